"""Putting arrays into a network: every key and shape is checked before the first number is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Collection, Dict, List, Mapping, Sequence, Tuple

from numpy.typing import NDArray

from ..errors import StateError

if TYPE_CHECKING:
    from megengine.module import Module

Shape = Tuple[int, ...]
SHOWN = 10


def load_state(
    module: Module, arrays: Mapping[str, NDArray[Any]], *, keep: Collection[str] = (), file_stays: bool = False
) -> None:
    """Gives all parameters and BN statistics of ``module`` the values of native arrays, or leaves it as it is.

    The network keeps its dtype and device: values are cast once, as they are written. A vector of (C,) fits a tensor
    of (1, C, 1, 1) and the other way round, since MegEngine saves BN in the one and holds it in the other. Keys in
    ``keep`` may be missing and then stay as they are. With ``file_stays``, a promise that the arrays' file is never
    written to again, its pages become the network's memory where they can, and nothing is copied. NaN and infinity are
    taken like any other value; re-parameterisation is where they are refused. Raises StateError with every key that is
    missing, unexpected, misshapen or not made of real numbers.
    """
    from .._tensors import tensors_of  # here, because files are read where there is no MegEngine

    tensors = dict(module.named_tensors())
    missing = [key for key in tensors if key not in arrays and key not in keep]
    unexpected = [key for key in arrays if key not in tensors]
    misshapen = [
        (key, tuple(tensor.shape), tuple(arrays[key].shape))
        for key, tensor in tensors.items()
        if key in arrays and not same_shape(tuple(tensor.shape), tuple(arrays[key].shape))
    ]
    wrong_kind = [key for key, array in arrays.items() if key in tensors and array.dtype.kind not in "fiu"]
    if missing or unexpected or misshapen or wrong_kind:
        raise _state_error(arrays, missing, unexpected, misshapen, wrong_kind)

    given = [(arrays[key].reshape(tuple(tensor.shape)), tensor) for key, tensor in tensors.items() if key in arrays]
    for (_, tensor), loaded in zip(given, tensors_of(given, file_stays=file_stays)):
        # `tensor[...] = value` is the public way, but it takes two copies more. _reset is how MegEngine's own
        # load_state_dict does it; neither looks at the shape.
        tensor._reset(loaded)


def same_shape(one: Shape, other: Shape) -> bool:
    """Whether the shapes are equal once (1, C, 1, 1) is written as (C,)."""
    return as_vector(one) == as_vector(other)


def as_vector(shape: Shape) -> Shape:
    """(1, C, 1, 1) as (C,), which is how MegEngine saves BN; any other shape unchanged."""
    return shape[1:2] if len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1 else shape


def _state_error(
    arrays: Mapping[str, NDArray[Any]],
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[Tuple[str, Shape, Shape]],
    wrong_kind: Sequence[str],
) -> StateError:
    lists: Dict[str, List[str]] = {
        "missing": list(missing),
        "unexpected": list(unexpected),
        "of another shape": [f"{key} {theirs} for {ours}" for key, ours, theirs in misshapen],
        "not real numbers": [f"{key} ({arrays[key].dtype})" for key in wrong_kind],
    }
    counts = ", ".join(f"{len(lines)} {title}" for title, lines in lists.items() if lines)
    lines = [f"{title}: {line}" for title, group in lists.items() for line in group]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return StateError(
        f"the weights do not fit the network, which was left as it was: {counts}\n  "
        + "\n  ".join(lines[:SHOWN])
        + more,
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
        hint="build the variant, form and number of classes that the file was saved from",
    )
