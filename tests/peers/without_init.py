"""Importing a module of a publisher's package without the package's own requirements (used by the scripts here)."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path


def without_init(name: str, *below: str) -> None:
    """Let ``name.module`` be imported without running ``name/__init__.py``, and so for the packages ``below`` it.

    torchvision's needs the build of torch that it was compiled for, the others' need whole training frameworks; none
    of it matters here. All code that runs is the publisher's, unchanged.
    """
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    for part in ("", *below):
        package = types.ModuleType(f"{name}.{part}".rstrip("."))
        package.__path__ = [str(Path(folder, *part.split(".")))]
        package.__spec__ = importlib.machinery.ModuleSpec(package.__name__, None, is_package=True)
        sys.modules[package.__name__] = package
