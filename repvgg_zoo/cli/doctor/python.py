"""The doctor's checks of the interpreter and its packages; nothing heavy is imported into this process."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib import metadata
from typing import Callable, List, Optional, Tuple

from ..megengine_setup import has_gpu
from .finding import Finding, fail, ok, warn

IMPORT_SECONDS = 60.0  # 0.7 to 3 s on a quiet machine, far more from a cold network disk

Version = Tuple[int, ...]

# name, lowest version, first one that does not work, what that breaks. The ranges are those of pyproject.toml.
REQUIRED: Tuple[Tuple[str, str, Optional[str], str], ...] = (
    ("numpy", "1.21.2", "2", "MegEngine is built against NumPy 1"),
    ("setuptools", "59.0.1", "82", "MegEngine imports pkg_resources, which 82 no longer has"),
    ("filelock", "3.12", None, ""),
    ("llvmlite", "0.41.1", None, ""),
    ("pillow", "9.1", None, ""),
    ("pyyaml", "6.0", None, ""),
    ("requests", "2.25", None, ""),
    ("safetensors", "0.4.3", None, ""),
)
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def python(offline: bool) -> List[Finding]:
    """CPython 3.8 to 3.10, for which MegEngine has wheels."""
    version, kind = platform.python_version(), platform.python_implementation()
    text = f"{kind} {version} at {sys.executable}"
    if kind != "CPython" or not (3, 8) <= sys.version_info[:2] <= (3, 10):
        fix = "uv venv --python 3.10 (or python3.10 -m venv .venv), and install there"
        return [fail("Python", f"{text}; MegEngine has wheels for CPython 3.8 to 3.10 only", fix)]
    return [ok("Python", text)]


def packages(offline: bool) -> List[Finding]:
    """Each package that is needed, by its metadata."""
    found = [required(*one, installed=installed) for one in REQUIRED]
    return [*found, opencv(installed)]


def required(
    name: str, lowest: str, broken: Optional[str], why: str, installed: Callable[[str], Optional[str]]
) -> Finding:
    """One package within its range."""
    wanted = f"{name}>={lowest}" + (f",<{broken}" if broken else "")
    have = installed(name)
    if have is None:
        return fail(name, "is not installed", f"pip install '{wanted}'")
    if numbers(have) < numbers(lowest):
        return fail(name, f"{have} is older than {lowest}", f"pip install '{wanted}'")
    if broken is not None and numbers(have) >= numbers(broken):
        return fail(name, f"{have} does not work: {why}", f"pip install '{wanted}'")
    if name == "setuptools" and numbers(have) >= (80, 9):
        return warn(name, f"{have} warns at each import of MegEngine", "pip install 'setuptools>=59.0.1,<80.9'")
    return ok(name, have)


def opencv(installed: Callable[[str], Optional[str]]) -> Finding:
    """Any of OpenCV's distributions, as MegEngine imports it."""
    have = {name: version for name, version in ((name, installed(name)) for name in OPENCV) if version}
    fix = "pip install 'opencv-python>=4.5.5.64,<4.12'"
    if not have:
        return fail("opencv", "is not installed, and MegEngine imports it", fix)
    text = ", ".join(f"{name} {version}" for name, version in have.items())
    if any(numbers(version) >= (4, 12) for version in have.values()):
        return warn("opencv", f"{text}; 4.12 and later ask for NumPy 2", fix)
    if len(have) > 1:
        return warn("opencv", f"{text}: two overwrite each other's files", f"pip uninstall {next(iter(have))}")
    return ok("opencv", text)


def megengine(offline: bool) -> List[Finding]:
    """MegEngine's version, and whether it can be imported: in a process of its own, since it may crash."""
    have = installed("megengine")
    if have is None:
        fix = "pip install 'megengine>=1.13,<1.14' (CPython 3.8 to 3.10 on x86_64)"
        return [fail("MegEngine", "is not installed; list, info, fetch and convert work without it", fix)]
    if numbers(have)[:2] != (1, 13):
        return [fail("MegEngine", f"{have} is not the version this is made for", "pip install 'megengine>=1.13,<1.14'")]
    seconds, problem = imported("megengine", IMPORT_SECONDS)
    if problem is not None:
        return [fail("MegEngine", f"{have} cannot be imported: {problem}", cure(problem))]
    return [ok("MegEngine", f"{have}, imported in {seconds:.1f} s")]


def imported(module: str, seconds: float) -> Tuple[float, Optional[str]]:
    """Seconds that importing a module took in a child process, and what went wrong if anything did."""
    code = f"import time; t = time.monotonic(); import {module}; print(time.monotonic() - t)"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return seconds, f"it took more than {seconds:g} s"
    if done.returncode < 0:
        return 0.0, f"it crashed with signal {-done.returncode}"
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return 0.0, last[0].strip() if last else f"exit code {done.returncode}"
    return float(done.stdout.split()[-1]), None


def cure(problem: str) -> str:
    """What to type for the ways in which the import is known to fail."""
    if "libGL" in problem or "libgthread" in problem:
        return "pip uninstall opencv-python && pip install 'opencv-python-headless>=4.5.5.64,<4.12'"
    if "numpy" in problem:
        return "pip install 'numpy>=1.21.2,<2'"
    if "pkg_resources" in problem:
        return "pip install 'setuptools>=59.0.1,<80.9'"
    if "cache" in problem or "Permission" in problem or "Read-only" in problem:
        return "export MGE_HOME=/a/folder/you/may/write (MegEngine writes there when it is imported)"
    return "python -c 'import megengine', and pip install --force-reinstall 'megengine>=1.13,<1.14'"


def gpu(offline: bool) -> List[Finding]:
    """Whether there is one; working without is no fault."""
    return [ok("GPU", "an NVIDIA driver is here" if has_gpu() else "none; MegEngine runs on the CPU")]


def installed(name: str) -> Optional[str]:
    """The version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> Version:
    """The numbers at the start of a version, to compare.

    >>> from repvgg_zoo.cli.doctor.python import numbers
    >>> numbers("4.5.5.64"), numbers("2.0.0rc1")
    ((4, 5, 5, 64), (2, 0, 0))
    """
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
