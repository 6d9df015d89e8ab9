"""The requirement ranges of this package, which pyproject.toml states and nothing else repeats."""

from __future__ import annotations

import functools
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional

from .errors import DependencyError

DISTRIBUTION = "repvgg-zoo"
# Import names that are not the distribution's.
IMPORT_NAMES: Mapping[str, str] = {"opencv-python": "cv2", "pillow": "PIL", "pyyaml": "yaml"}


class Requirement(NamedTuple):
    """A distribution and its range of versions; ``str`` is what pip takes, such as "numpy>=1.21.2,<2"."""

    name: str
    lower: Optional[str]
    upper: Optional[str]

    def __str__(self) -> str:
        bounds = [f">={self.lower}" if self.lower else "", f"<{self.upper}" if self.upper else ""]
        return self.name + ",".join(filter(None, bounds))

    @property
    def import_name(self) -> str:
        """The name of its module."""
        return IMPORT_NAMES.get(self.name, self.name)


@functools.lru_cache(maxsize=1)
def requirements() -> Mapping[str, Requirement]:
    """Return all requirements by the name of the distribution.

    A checkout's pyproject.toml comes first, as another version of this package may be installed beside it. The only
    marker that requirements have is where MegEngine has wheels; those that are for it are left out elsewhere.
    """
    return _merge(text for text in _stated() if ";" not in text or has_megengine_wheels())


def has_megengine_wheels() -> bool:
    """Whether MegEngine has wheels for this interpreter: CPython 3.8 to 3.10 on x86_64."""
    return sys.version_info < (3, 11) and _machine() in ("x86_64", "AMD64")


def _machine() -> str:
    import platform  # which imports subprocess

    return platform.machine()


def requirement(name: str) -> Requirement:
    """Return the requirement on a distribution or a module, such as "numpy" or "cv2"; of others any version will do."""
    distributions = {module: distribution for distribution, module in IMPORT_NAMES.items()}
    distribution = distributions.get(name, name)
    return requirements().get(distribution, Requirement(distribution, None, None))


@contextmanager
def needed_by(name: str) -> Iterator[None]:
    """Let imports in the body that fail in a required package raise DependencyError with the cure."""
    try:
        yield
    except ImportError as error:
        explained = dependency_error(error, name)
        if explained is None:
            raise
        raise explained from error


def dependency_error(error: ImportError, name: str) -> Optional[DependencyError]:
    """Return the error for an import of ``name`` that failed in a required package; None if it failed elsewhere."""
    from traceback import walk_tb

    if isinstance(error, DependencyError):
        return None
    required = {one.import_name: one for one in _merge(_stated()).values()}
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    packages = [module.partition(".")[0] for module in [*modules, error.name or ""]]
    package = next((package for package in packages if package in required), None)
    if package is None:
        return None
    if package == "megengine" and not has_megengine_wheels():
        return _no_wheels(name)
    label = "MegEngine" if package == "megengine" else package
    is_missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
    if is_missing:
        problem, cure = "is not installed", f"pip install '{required[package]}'"
    else:
        problem, cure = f"cannot be imported: {error}", import_fix(str(error), package)
    explained = DependencyError(
        f"{name} needs {label}, which {problem}",
        expected=str(required[package]),
        hint=f"{cure}; repvgg-zoo doctor checks the whole installation",
    )
    explained.__cause__ = error
    return explained


def _no_wheels(name: str) -> DependencyError:
    version = ".".join(map(str, sys.version_info[:2]))
    return DependencyError(
        f"{name} needs MegEngine, which has no wheel for CPython {version} on {_machine()}",
        expected="CPython 3.8 to 3.10 on x86_64",
        actual=f"CPython {version} on {_machine()}",
        hint="uv venv --python 3.10, and install there; compile, predict, fetch and load_checkpoint work here as well",
    )


def import_fix(problem: str, package: str = "megengine") -> str:
    """Return what to type for the known reasons why the import of MegEngine, or what it imports, fails."""
    if "libGL" in problem or "libgthread" in problem:
        headless = requirement("opencv-python")._replace(name="opencv-python-headless")
        return f"pip uninstall opencv-python && pip install '{headless}'"
    if "numpy" in problem:
        return f"pip install '{requirement('numpy')}'"
    if "pkg_resources" in problem:
        return f"pip install '{requirement('setuptools')}'"
    if "cache" in problem or "Permission" in problem or "Read-only" in problem:
        return "export MGE_HOME=/a/writable/folder (MegEngine writes there when it is imported)"
    return f"python -c 'import {package}', and pip install --force-reinstall '{requirement(package)}'"


def _merge(texts: Iterable[str]) -> Dict[str, Requirement]:
    """Return requirements by name; those of one name have one bound each."""
    merged: Dict[str, Requirement] = {}
    for one in map(_parse, texts):
        other = merged.get(one.name, one)
        merged[one.name] = one._replace(lower=one.lower or other.lower, upper=one.upper or other.upper)
    return merged


def _stated() -> List[str]:
    root = Path(__file__).resolve().parents[1]
    return _stated_in_checkout(root / "pyproject.toml") or _stated_in_metadata()


def _stated_in_checkout(pyproject: Path) -> List[str]:
    try:
        text = pyproject.read_text(encoding="utf-8")
    except OSError:
        return []
    if f'name = "{DISTRIBUTION}"' not in text:
        return []
    table = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^\s*"([^"]+)"', table.group(1), re.MULTILINE) if table else []


def _stated_in_metadata() -> List[str]:
    from importlib import metadata  # here, as it takes 20 ms

    try:
        return [text for text in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:  # copied without its metadata
        return []


def _parse(text: str) -> Requirement:
    name = re.match(r"[A-Za-z0-9._-]+", text)
    assert name is not None, text
    bounds = dict(re.findall(r"(>=|<)\s*([0-9][0-9A-Za-z.]*)", text.partition(";")[0]))
    return Requirement(name.group(), bounds.get(">="), bounds.get("<"))
