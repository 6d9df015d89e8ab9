"""load_or_compile: machine code from the derived cache, or compiled and stored there.

The key of an entry is all that decides on the code: the digest of the modules that generate it, the versions of
llvmlite and LLVM, the processor with its features, and the configuration. So code of another version or for another
processor is never found, and no version has to be raised by hand.
"""

from __future__ import annotations

from typing import Callable, Mapping, Optional

from ..._derived_cache import DerivedCache, DerivedKey
from ..._digest import hash_package

STEP = "code"
VERSION = 1  # of the entry's content: an object file


def load_or_compile(
    compile: Callable[[], bytes], cache: Optional[DerivedCache], parameters: Mapping[str, object]
) -> bytes:
    """Return an object file: the entry for these parameters, if this user wrote it, else what ``compile`` returns.

    Whether storing it works does not matter.
    """
    source = None if cache is None else hash_package(__package__)
    if cache is None or source is None:
        return compile()
    key = DerivedKey(source, STEP, VERSION, parameters)
    entry = cache.read_own(key)
    if entry is not None:
        return bytes(entry)
    code = compile()
    cache.write_own(key, lambda stream: stream.write(code))
    return code
