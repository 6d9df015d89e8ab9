"""One pickle of NumPy arrays: MegEngine's files (megengine.save of a state dict) and PaddlePaddle's .pdparams.

PaddlePaddle before 2.1 writes arrays and a table of its internal names beside them; later ones write each tensor as
(internal name, array). Without either the two frameworks' files are the same, and are called MegEngine's.
"""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from .arrays import numpy_table
from .mmap_file import Buffer, Damaged
from .pickles import Budget, load, resolve

PADDLE_NAMES = "StructuredToParameterName@@"
PADDLE_SLICES = "UnpackBigParamInfor@@"


def read(data: Buffer) -> Tuple[str, Any]:
    """ "megengine" or "paddle", and the tree. Raises Damaged and UnsafePickleError."""
    table = numpy_table(Budget(4 * len(data)))
    table["builtins.tuple"] = table["__builtin__.tuple"] = _tuple  # how paddle.save marks what was a tensor
    value, end = load(data, 0, table)
    if end != len(data):
        raise Damaged(f"{len(data) - end} bytes follow the pickle")
    tree = resolve(value)
    if isinstance(tree, dict) and PADDLE_SLICES in tree:
        raise Damaged("paddle.save has cut its tensors into slices, which its protocols 2 and 3 do above 1 GiB")
    if isinstance(tree, dict) and (PADDLE_NAMES in tree or any(map(_is_tensor, tree.values()))):
        tree.pop(PADDLE_NAMES, None)
        return "paddle", {key: value[1] if _is_tensor(value) else value for key, value in tree.items()}
    return "megengine", tree


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray)
    )


def _tuple(items: Any) -> Any:
    if not isinstance(items, tuple):
        raise Damaged("tuple() of something else than the pair that paddle.save writes")
    return items
