"""Check the interpreter and its packages; nothing heavy is imported into this process."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib import metadata
from typing import Callable, List, Mapping, Optional, Tuple

from ..._requirements import Requirement, has_megengine_wheels, import_fix, requirement, requirements
from ..megengine_setup import has_gpu
from .finding import FAIL, Finding, fail, ok, warn

IMPORT_SECONDS = 60.0  # 0.7 to 3 s on an idle machine, far more from a network disk
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
# Why a version above the range does not work.
REASONS: Mapping[str, str] = {
    "numpy": "MegEngine is built against NumPy 1",
    "setuptools": "MegEngine imports pkg_resources, which 82 no longer has",
}

OLDER_PYTHON = "uv venv --python 3.10 (or python3.10 -m venv .venv), and install there"

InstalledVersion = Callable[[str], Optional[str]]


def check_python() -> List[Finding]:
    """Check for CPython from 3.8, and whether MegEngine has wheels for it."""
    version, implementation = platform.python_version(), platform.python_implementation()
    text = f"{implementation} {version} at {sys.executable}"
    if implementation != "CPython" or sys.version_info < (3, 8):
        return [fail("Python", f"{text}; CPython from 3.8 is required", OLDER_PYTHON)]
    if not has_megengine_wheels():
        return [warn("Python", f"{text}; MegEngine has wheels for CPython 3.8 to 3.10 on x86_64 only", OLDER_PYTHON)]
    return [ok("Python", text)]


def check_packages() -> List[Finding]:
    """Check the version of each required package, by its metadata."""
    others = [item for item in requirements().values() if item.name not in ("megengine", "opencv-python")]
    findings = [check_package(item, installed_version(item.name)) for item in others]
    return [*findings, check_opencv(installed_version)] if has_megengine_wheels() else findings


def check_package(required: Requirement, version: Optional[str]) -> Finding:
    """Check that a package is installed in a version of its range."""
    name, fix = required.name, f"pip install '{required}'"
    if version is None:
        return fail(name, "is not installed", fix)
    if required.lower and version_tuple(version) < version_tuple(required.lower):
        return fail(name, f"{version} is older than {required.lower}", fix)
    if required.upper and version_tuple(version) >= version_tuple(required.upper):
        if name == "setuptools" and version_tuple(version) < (82,):
            return warn(name, f"{version} warns at each import of MegEngine", fix)
        return fail(name, f"{version} is too new: {REASONS.get(name, f'it must be older than {required.upper}')}", fix)
    return ok(name, version)


def check_opencv(installed_version: InstalledVersion) -> Finding:
    """Check for one of OpenCV's distributions, as MegEngine imports it."""
    required = requirement("opencv-python")
    fix = f"pip install '{required}'"
    versions = {name: version for name, version in ((name, installed_version(name)) for name in OPENCV) if version}
    if not versions:
        return fail("opencv", "is not installed, and MegEngine imports it", fix)
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    if required.upper and any(version_tuple(item) >= version_tuple(required.upper) for item in versions.values()):
        return warn("opencv", f"{text}; {required.upper} and later need NumPy 2", fix)
    if len(versions) > 1:
        return warn("opencv", f"{text}: they overwrite each other's files", f"pip uninstall {next(iter(versions))}")
    return ok("opencv", text)


def check_megengine() -> List[Finding]:
    """Check MegEngine's version, and that it can be imported: in another process, since it may crash."""
    required, version = requirement("megengine"), installed_version("megengine")
    if version is None:
        text = "is not installed; all but create, to_deploy and what needs networks of it works without"
        if not has_megengine_wheels():
            return [warn("MegEngine", text, OLDER_PYTHON)]
        return [fail("MegEngine", text, f"pip install '{required}'")]
    finding = check_package(required, version)
    if finding.status == FAIL:
        return [fail("MegEngine", finding.text, finding.fix)]
    if is_frozen():
        return [ok("MegEngine", f"{version}, not imported, as that takes a second process of Python")]
    seconds, problem = time_import("megengine", IMPORT_SECONDS)
    if problem is not None:
        return [fail("MegEngine", f"{version} cannot be imported: {problem}", import_fix(problem))]
    return [ok("MegEngine", f"{version}, imported in {seconds:.1f} s")]


def is_frozen() -> bool:
    """Return whether this is a frozen program, whose ``sys.executable`` is not Python but would start it again."""
    return bool(getattr(sys, "frozen", False))


def time_import(module: str, timeout: float) -> Tuple[float, Optional[str]]:
    """Return the seconds that importing a module took in a child process, and the problem or None."""
    code = f"import time; t = time.monotonic(); import {module}; print(time.monotonic() - t)"
    try:
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return timeout, f"it took more than {timeout:g} s"
    if process.returncode < 0:
        return 0.0, f"it crashed with signal {-process.returncode}"
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.strip()]
        return 0.0, lines[-1].strip() if lines else f"exit code {process.returncode}"
    return float(process.stdout.split()[-1]), None


def check_gpu() -> List[Finding]:
    """Report whether there is a GPU; none is required."""
    return [ok("GPU", "an NVIDIA driver is installed" if has_gpu() else "none; MegEngine runs on the CPU")]


def installed_version(name: str) -> Optional[str]:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_tuple(version: str) -> Tuple[int, ...]:
    """Return the numbers at the start of a version, for comparisons.

    >>> from repvgg_zoo.cli.doctor.python import version_tuple
    >>> version_tuple("4.5.5.64"), version_tuple("2.0.0rc1")
    ((4, 5, 5, 64), (2, 0, 0))
    """
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
