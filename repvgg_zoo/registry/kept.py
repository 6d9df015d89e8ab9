"""A registry that is parsed once and then read from ``__pycache__``, as Python does with its own modules.

To import PyYAML and read the shipped registry takes three times as long as all the rest of a listing. What is kept is
Python code, the records' own ``repr``, so only the registry that is part of this package is read in this way: whoever
can write beside it can change the package itself. Where nothing may be written, it is parsed each time.
"""

from __future__ import annotations

import os
import zlib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Dict

from . import specs
from .specs import Registry


def load_kept(path: Path) -> Registry:
    """Reads a registry file as ``load_registry`` does, through its parsed form if that is there and still true."""
    try:
        code = _Parser(specs.__name__, str(path)).get_code(specs.__name__)
    except (OSError, EOFError, ImportError, TypeError, ValueError):  # the file is damaged, or what is kept of it
        from .parser import load_registry

        return load_registry(path)  # which says what is wrong with the file, if it is the file
    registry: Registry = eval(code, vars(specs))  # type: ignore[arg-type]
    return registry


class _Parser(SourceFileLoader):
    """Python's importer, for which the registry is a module: it finds, checks and writes what is kept."""

    def source_to_code(self, data: Any, path: Any, **_: Any) -> Any:  # type: ignore[override]  # a method, as theirs is
        from .parser import parse_registry

        return compile(repr(parse_registry(data, path=Path(path))), path, "eval")

    def path_stats(self, path: Any) -> Dict[str, int]:
        """What the importer compares; the place counts, as sources are relative to it, and the code that reads it."""
        place = Path(__file__).parent
        stats = [Path(path).stat(), *(entry.stat() for entry in os.scandir(place) if entry.name.endswith(".py"))]
        facts = [str(path), *sorted((stat.st_mtime_ns, stat.st_size) for stat in stats)]
        return {"mtime": zlib.crc32(repr(facts).encode()), "size": stats[0].st_size}
