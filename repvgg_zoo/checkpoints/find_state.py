"""choose_state_dict: which of the dicts in a file's content holds the weights."""

from __future__ import annotations

import itertools
import re
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, LayoutError
from .detect import MAX_KEY_CHARS, MAX_TENSORS, holds_network, is_averaged, is_counter
from .layouts import Layout
from .state_dict import format_keys

MAX_STATE_DICTS = 100  # dicts with arrays in one file
MAX_COMPARED = 4 * MAX_TENSORS  # arrays of all dicts whose keys are compared with the layouts

# The keys under which trainers save the state dict; plain weights come before averaged ones.
MAX_DEPTH = 4
WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "network",
    "module",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema",
)

# Trainers that save averaged weights as the state dict, as they load it for inference, and the plain ones beside it: a
# key that only they have, and the key of the plain weights (mmengine's EMAHook, Lightning's WeightAveraging).
SWAPPED = (("message_hub", "ema_state_dict"), ("averaging_state", "current_model_state"))

Path = Tuple[str, ...]  # the keys that lead to a dict in a file's content
Candidate = Tuple[Path, Mapping[str, NDArray[Any]]]


def choose_state_dict(
    payload: Any, layouts: Sequence[Layout], state: Optional[str], prefix: Optional[str] = None
) -> Tuple[str, Any, List[Tuple[str, str]]]:
    """Return the path of the state dict in a file's content, the state dict, and (key, reason) of what is beside it.

    It is the first dict, in the order of WRAPPERS, in which there is a RepVGG, else the first that holds arrays,
    else the whole content. Raises ArgumentError if there is none that is called ``state``, and LayoutError if several
    have the same right to be taken.
    """
    dicts = itertools.islice(_dicts_of_arrays(payload, ()), MAX_STATE_DICTS)
    candidates = sorted(dicts, key=lambda item: _rank(item[0]))
    plain = _plain_beside_average(payload)
    if state == "ema" and plain is not None:
        state = "state_dict"
    if state is not None:
        chosen = [path for path, _ in candidates if state in (".".join(path), path[-1:] and path[-1])]
        chosen += [path for path, _ in candidates if path and state in re.split(r"[._]", path[-1])]
        if not chosen:
            compared = _within_limit(candidates)
            fitting = [(path, arrays) for path, arrays in compared if _fits(arrays, layouts, prefix)]
            names = [".".join(path) for path, _ in fitting or candidates]
            raise ArgumentError(
                f"the file has no state dict {state!r}",
                expected=names,
                actual=state,
                hint=f"choose from {format_keys(names)}" if any(names) else "leave state= out",
            )
        candidates = [(path, arrays) for path, arrays in candidates if path == chosen[0]]
    path: Path = candidates[0][0] if candidates else ()
    if len(candidates) > 1:  # a single one is compared with the layouts later, with an error if it fits none
        path = _first_fitting(_within_limit(candidates), layouts, prefix) or path
    skipped: List[Tuple[str, str]] = []
    for depth, name in enumerate(path):
        above = "".join(f"{part}." for part in path[:depth])
        skipped += [(f"{above}{key}", f"beside {above}{name}") for key in payload if key != name]
        payload = payload[name]
    if plain is not None and path[:1] == ("state_dict",):
        reason = "plain weights, beside averaged ones in state_dict"
        skipped = [(key, reason if key == plain else other) for key, other in skipped]
    return "".join(f"{part}." for part in path), payload, skipped


def _plain_beside_average(payload: Any) -> Optional[str]:
    """Return the key of the plain weights in a file whose ``state_dict`` has the averaged ones, else None."""
    rows = SWAPPED if isinstance(payload, Mapping) and "state_dict" in payload else ()
    return next((plain for mark, plain in rows if mark in payload and plain in payload), None)


def _within_limit(candidates: Sequence[Candidate]) -> List[Candidate]:
    """Return the first dicts, with MAX_COMPARED arrays together: comparing all could cost more than the file weighs."""
    sizes = itertools.accumulate(len(arrays) for _, arrays in candidates)
    return [item for item, size in zip(candidates, sizes) if size <= MAX_COMPARED]


def _first_fitting(candidates: Sequence[Candidate], layouts: Sequence[Layout], prefix: Optional[str]) -> Optional[Path]:
    """Return the path of the first dict with a RepVGG, or None; raise LayoutError if another has the same rank."""
    fitting = (path for path, arrays in candidates if _fits(arrays, layouts, prefix))
    first = next(fitting, None)
    second = None if first is None else next(fitting, None)
    if first is None or second is None or _rank(first) != _rank(second):
        return first
    names = [".".join(path) for path in (first, second)]
    raise LayoutError(
        f"the file holds several RepVGGs, such as {' and '.join(map(repr, names))}",
        expected="one RepVGG",
        actual=names,
        hint="pass one of these names as state= to load_checkpoint; create takes what it returns as checkpoint=",
    )


def _dicts_of_arrays(value: Any, path: Path) -> Iterator[Candidate]:
    """Return each dict that holds arrays under text keys, with the keys that lead to it, down to MAX_DEPTH."""
    if not isinstance(value, Mapping):
        return
    arrays = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, np.ndarray)}
    if arrays:
        yield path, arrays
    for key, item in value.items() if len(path) < MAX_DEPTH else ():
        if isinstance(key, str) and len(key) <= MAX_KEY_CHARS:
            yield from _dicts_of_arrays(item, (*path, key))


def _rank(path: Path) -> Tuple[bool, bool, Sequence[int], int]:
    """Return what orders the dicts of a file: plain before averaged ones, known names first, then outer ones."""
    places = [WRAPPERS.index(name) if name in WRAPPERS else len(WRAPPERS) for name in path]
    return any(map(is_averaged, path)), not path, places, len(path)


def _fits(arrays: Mapping[str, NDArray[Any]], layouts: Sequence[Layout], prefix: Optional[str]) -> bool:
    weights = {key: array for key, array in arrays.items() if not is_counter(key)}
    if not 0 < len(weights) <= MAX_TENSORS:
        return False
    return holds_network(weights, layouts, prefix)
