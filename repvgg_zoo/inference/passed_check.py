"""check_once: the comparison with NumPy, left out where the same plan with the same weights has passed it before.

An entry of the derived cache says so. Its key is all that decides on the result: the weights' own key, the modules of
this package and NumPy's version, which pack them, the machine code, the processor, and each call of the plan. Like
machine code, it counts only where nobody else can have written it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any, Callable, Optional

import numpy as np

from .._derived_cache import DerivedCache, DerivedKey
from .._digest import hash_package
from .plan import ExecutionPlan
from .reference import MAX_ERROR

STEP = "check"
VERSION = 1  # of the entry's content


def check_once(check: Callable[[], float], cache: Optional[DerivedCache], key: Optional[DerivedKey]) -> float:
    """Return the error that the entry of a key has, else what ``check`` returns, which becomes the entry.

    Raises what ``check`` raises; then there is no entry.
    """
    if cache is None or key is None:
        return check()
    error = _read_error(cache, key)
    if error is None:
        error = check()
        text = json.dumps({"error": error})
        cache.write_own(key, lambda stream: stream.write(text.encode()))
    return error


def check_key(
    weights: Optional[DerivedKey], plan: ExecutionPlan, *, threads: int, code: str, processor: str
) -> Optional[DerivedKey]:
    """Return the key of a check, or None if it is not known which weights these are.

    ``code`` is the digest of the machine code.
    """
    source = hash_package(__package__)
    if weights is None or source is None:
        return None
    parameters = {
        "weights": weights.digest(),
        "modules": source,
        "numpy": np.__version__,
        "code": code,
        "processor": processor,
        "shape": plan.input_shape,
        "threads": threads,
        "calls": _digest_calls(plan),
    }
    return DerivedKey(weights.source, STEP, VERSION, parameters)


def _digest_calls(plan: ExecutionPlan) -> str:
    """Return the SHA-256 of a plan's calls, whose addresses, which no two processes share, count as zeros."""
    addresses = [array.ctypes.data for array in plan.arrays]
    arguments = np.concatenate([call.arguments for call in plan.calls])
    arguments[np.isin(arguments, addresses)] = 0
    digest = hashlib.sha256(" ".join(call.kernel for call in plan.calls).encode())
    digest.update(arguments.tobytes())
    return digest.hexdigest()


def _read_error(cache: DerivedCache, key: DerivedKey) -> Optional[float]:
    entry = cache.read_own(key)
    if entry is None:
        return None
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        error: Any = json.loads(bytes(entry))["error"]
        if isinstance(error, float) and 0 <= error <= MAX_ERROR:
            return error
    return None
