"""Check the environment variables, the registry, and the plugins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import List, Optional

from ..._digest import hash_file
from ..._resources import hub_folder
from ..._settings import PREFIX, VARIABLES, has_megengine_home, package_variables, read_settings
from ..._text import pluralize
from ...errors import PluginError, ZooError
from ...hub.credentials import read_credentials
from ..parser import closest
from .finding import Finding, fail, ok, warn

EARLIEST_TIME = 1_700_000_000  # in seconds since 1970; older than this package
KNOWN = (*VARIABLES, "REPVGG_ZOO_PYTHON")  # the last one is read by ./dev


def check_environment(now: Optional[float] = None) -> List[Finding]:
    """Check our environment variables, which are set, have invalid values or do not exist; and the clock.

    ``now`` is the time in seconds since 1970, by default the clock's.
    """
    findings = []
    variables = package_variables()
    for name in variables:
        if name not in KNOWN and not name.startswith(f"{PREFIX}TEST_"):
            close = closest(name, [known.lower() for known in KNOWN])
            fix = f"unset {name}" + (f" (did you mean {close.upper()}?)" if close else "")
            findings.append(warn("environment", f"{name} is set, but does not exist", fix))
    try:
        read_settings()
        read_credentials()
    except ZooError as error:
        return [*findings, fail("environment", error.message, error.hint)]
    now = time.time() if now is None else now
    if now < EARLIEST_TIME:
        today = time.strftime("%Y-%m-%d", time.gmtime(now))
        text = f"the clock of this machine says {today}, so no TLS certificate is valid yet"
        findings.append(warn("clock", text, "set the clock, for example with date -s or NTP"))
    if not has_megengine_home():
        text = "this user has no home folder, so MegEngine writes to a folder called ~ in the current one"
        findings.append(warn("environment", text, "export MGE_HOME=/a/writable/folder"))
    set_variables = ", ".join(name for name in KNOWN if variables.get(name))
    return [*findings, ok("environment", set_variables or "no variable of repvgg-zoo is set")]


def check_registry() -> List[Finding]:
    """Check that the registry, its plugins and REPVGG_ZOO_REGISTRY's files can be read."""
    from ...registry.api import load_all_registries

    registry, failures = load_all_registries()
    checkpoints = sum(len(model.checkpoints) for model in registry.models)
    text = f"{pluralize(len(registry.models), 'variant')}, {pluralize(checkpoints, 'checkpoint')}"
    findings = [ok("registry", text)]
    for failure in failures:
        name = "plugins" if isinstance(failure, PluginError) else "registry"
        prefix = f"{failure.path}: " if failure.path and failure.path not in failure.message else ""
        findings.append(fail(name, f"{prefix}{failure.message}", failure.hint))
    return findings


def check_bundled_files(folder: Optional[Path] = None) -> List[Finding]:
    """Check the digests of the checkpoints that are installed with the package, or are in ``folder``."""
    paths = sorted((folder or hub_folder()).glob("*.safetensors"))
    damaged = [path for path in paths if not hash_file(path).startswith(path.name.partition("-")[0])]
    fix = "pip install --force-reinstall --no-deps repvgg-zoo"
    return [fail("files", f"{path} is damaged", fix) for path in damaged] or [
        ok("files", f"{pluralize(len(paths), 'checkpoint')} of this package")
    ]
