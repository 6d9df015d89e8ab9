"""SHA-256 of files, of arrays, and of the modules of a package."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Optional, Tuple

from ._files import open_regular_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits; raises OSError, also for what is not a regular file."""
    try:
        stream = open_regular_file(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    with stream:
        return hash_descriptor(stream.fileno())


def hash_descriptor(descriptor: int, copy: Callable[[bytes], Any] = lambda data: None) -> str:
    """Return the SHA-256 of what is left to read of an open file as 64 hex digits; raises OSError.

    ``copy`` is called with all that is read, such as the ``write`` of another file.
    """
    digest = hashlib.sha256()
    while True:
        data = os.read(descriptor, CHUNK_BYTES)
        if not data:
            return digest.hexdigest()
        digest.update(data)
        copy(data)


def hash_arrays(arrays: Iterable[Tuple[str, NDArray[Any]]]) -> str:
    """Return the SHA-256 of named arrays, with their dtypes and shapes, in whatever order they come."""
    import numpy as np  # here, as most users of this module hash files

    digest = hashlib.sha256()
    for name, array in sorted(arrays, key=lambda item: item[0]):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def hash_package(package: str) -> Optional[str]:
    """Return the SHA-256 of all modules in an imported package, or None if it has come without their source text."""
    import pkgutil  # here, as most users of this module hash files

    digest = hashlib.sha256()
    for name in _module_files(sys.modules[package].__path__[0]):
        try:
            text = pkgutil.get_data(package, name) or b""
        except OSError:
            return None
        digest.update(f"{name} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def _module_files(folder: str, prefix: str = "") -> Iterator[str]:
    import pkgutil

    yield f"{prefix}__init__.py"
    for module in sorted(pkgutil.iter_modules([f"{folder}/{prefix}"]), key=lambda module: module.name):
        if module.ispkg:
            yield from _module_files(folder, f"{prefix}{module.name}/")
        else:
            yield f"{prefix}{module.name}.py"
