"""Installed distributions with plugins, and processes that have them on sys.path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from repvgg_zoo.registry.plugins import load_plugin

ROOT = Path(__file__).resolve().parents[2]

REGISTRY = """\
schema: 1
variants:
  {name}:
    family: RepVGG-Q
    architecture: {{num_blocks: [1, 1, 1, 1], width_multiplier: [0.1, 0.1, 0.1, 0.1]}}
    params: {{train: 2, deploy: 1}}
    macs: {{train: 2, deploy: 1}}
    no_weights: it is a test
"""

MODULE = """\
from pathlib import Path
from repvgg_zoo import Plugin
plugin = Plugin(registry=Path(__file__).with_name("{module}.yaml"))
"""


def registry(name: str, extra: str = "") -> str:
    """Return a registry of one variant; ``extra`` is more lines of its entry."""
    return REGISTRY.format(name=name) + textwrap.indent(extra, "    ")


def install(
    site: Path,
    namespace: str,
    *,
    code: Optional[str] = None,
    yaml: Optional[str] = None,
    module: Optional[str] = None,
    distribution: Optional[str] = None,
    entry_points: Optional[str] = None,
    info: str = "dist-info",
) -> Path:
    """Install a module with a registry of one variant, ``namespace/RepVGG_Q``; return its metadata folder."""
    module = module or f"{namespace}_plugin".replace("-", "_")
    distribution = distribution or f"{namespace}-repvgg"
    # An earlier test in this process may have had a plugin of this name, whose files are gone.
    sys.modules.pop(module, None)
    load_plugin.cache_clear()
    site.mkdir(parents=True, exist_ok=True)
    (site / f"{module}.py").write_text(MODULE.format(module=module) if code is None else textwrap.dedent(code))
    (site / f"{module}.yaml").write_text(registry(f"{namespace}/RepVGG_Q") if yaml is None else yaml)
    folder = site / f"{distribution.replace('-', '_')}-1.0.{info}"
    folder.mkdir()
    header = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    (folder / ("METADATA" if info == "dist-info" else "PKG-INFO")).write_text(header)
    (folder / "entry_points.txt").write_text(
        entry_points or f"[console_scripts]\nx = y:z\n\n[repvgg_zoo.plugins]\n{namespace} = {module}:plugin\n"
    )
    return folder


def run(
    code: str, sites: Sequence[Path] = (), environ: Optional[Mapping[str, str]] = None
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process with ``sites`` first on sys.path; ``emit(value)`` prints a value as JSON."""
    start = "import json, sys, repvgg_zoo\nfrom repvgg_zoo.errors import *\ndef emit(value): print(json.dumps(value))\n"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "REPVGG_ZOO"))}
    path = os.pathsep.join(map(str, (*sites, ROOT)))
    process = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)],
        env={**inherited, "PYTHONPATH": path, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process


def run_json(code: str, sites: Sequence[Path] = (), environ: Optional[Mapping[str, str]] = None) -> Any:
    """Return the value that the code emits, or a list if there are several."""
    lines = [json.loads(line) for line in run(code, sites, environ).stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines
