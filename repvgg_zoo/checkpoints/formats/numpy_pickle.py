"""One pickle of NumPy arrays: MegEngine's files (megengine.save of a state dict) and PaddlePaddle's .pdparams.

PaddlePaddle before 2.1 writes arrays and a table of its internal names beside them; later ones write each tensor as
(internal name, array). Without either the two frameworks' files are the same, and are called MegEngine's.
"""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from .arrays import numpy_globals
from .file_buffer import Buffer, MalformedFile, UnsupportedFile
from .pickles import Budget, load, resolve

PADDLE_NAMES = "StructuredToParameterName@@"
PADDLE_SLICES = "UnpackBigParamInfor@@"


def read(data: Buffer) -> Tuple[str, Any]:
    """Return "megengine" or "paddle", and the payload. Raises MalformedFile and UnsafePickleError."""
    allowed_globals = numpy_globals(Budget(4 * len(data)))
    # paddle.save writes each tensor as a call of tuple.
    allowed_globals["builtins.tuple"] = allowed_globals["__builtin__.tuple"] = _tuple
    value, end = load(data, 0, allowed_globals)
    if end != len(data):
        raise MalformedFile(f"{len(data) - end} bytes follow the pickle")
    payload = resolve(value)
    if isinstance(payload, dict) and PADDLE_SLICES in payload:
        raise UnsupportedFile("paddle.save has cut its tensors into slices, which its protocols 2 and 3 do above 1 GiB")
    if isinstance(payload, dict) and (PADDLE_NAMES in payload or any(map(_is_tensor, payload.values()))):
        payload.pop(PADDLE_NAMES, None)
        return "paddle", {key: value[1] if _is_tensor(value) else value for key, value in payload.items()}
    return "megengine", payload


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray)
    )


def _tuple(items: Any) -> Any:
    if not isinstance(items, tuple):
        raise MalformedFile("tuple() is called with something other than the pair that paddle.save writes")
    return items
