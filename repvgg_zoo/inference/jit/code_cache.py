"""load_or_compile: machine code from the derived cache, or compiled and stored there.

The key of an entry is all that decides on the code: the digest of the modules that generate it, the versions of
llvmlite and LLVM, the processor with its features, and the configuration. So code of another version or for another
processor is never found, and no version has to be raised by hand.
"""

from __future__ import annotations

import hashlib
import pkgutil
import sys
from typing import Callable, Mapping, Optional

from ..._derived_cache import DerivedCache, DerivedKey

STEP = "code"
VERSION = 1  # of the entry's content: an object file


def load_or_compile(
    compile: Callable[[], bytes], cache: Optional[DerivedCache], parameters: Mapping[str, object]
) -> bytes:
    """Return an object file: the entry for these parameters, if this user wrote it, else what ``compile`` returns.

    Whether storing it works does not matter.
    """
    source = None if cache is None else generator_digest()
    if cache is None or source is None:
        return compile()
    key = DerivedKey(source, STEP, VERSION, parameters)
    entry = cache.read_own(key)
    if entry is not None:
        return bytes(entry)
    code = compile()
    cache.write(key, lambda stream: stream.write(code))
    return code


def generator_digest(package: str = __package__) -> Optional[str]:
    """Return the SHA-256 of a package's modules, or None if they are distributed without their source text."""
    digest = hashlib.sha256()
    for name in sorted(module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)):
        try:
            text = pkgutil.get_data(package, f"{name}.py") or b""
        except OSError:
            return None
        digest.update(f"{name} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()
