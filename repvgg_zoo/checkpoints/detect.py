"""detect_layout: which layout the keys of a state dict follow."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from numpy.typing import NDArray

from ..errors import LayoutError
from .layouts import IGNORED, Layout, to_canonical_keys
from .state_dict import format_keys

# RepVGGplus_L2pse, the largest, has 867; trying every layout on many more takes long.
MAX_TENSORS = 2000
MAX_KEY_CHARS = 1000  # the longest key of any publisher has 40
MAX_PREFIXES = 4
# Prefixes that wrappers of a network put before every key.
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "network.", "net.")


def detect_layout(
    state_dict: Mapping[str, NDArray[Any]], candidates: Sequence[Layout]
) -> Tuple[Layout, Dict[str, str]]:
    """Return the first layout that has every key, and the canonical name of each; remove common prefixes if needed.

    Raises LayoutError with the layout that comes closest.
    """
    prefix_lengths = _prefix_lengths(state_dict)
    for length in prefix_lengths:
        for layout in candidates:
            names: Dict[str, str] = {}
            for key, name in _canonical_names(state_dict, layout, length):
                if name is None:
                    break
                names[key] = name
            else:
                return layout, names
    raise _unknown_layout(state_dict, candidates, prefix_lengths)


def is_counter(key: str) -> bool:
    return len(key) <= MAX_KEY_CHARS and not IGNORED.isdisjoint(key.split("."))


def _prefix_lengths(state_dict: Mapping[str, NDArray[Any]]) -> List[int]:
    """Return how many characters of every key may be a wrapper's prefix: 0, then one more known prefix each time."""
    lengths = [0]
    for _ in range(MAX_PREFIXES):
        length = lengths[-1]
        prefix = next((name for name in PREFIXES if all(key.startswith(name, length) for key in state_dict)), None)
        if prefix is None:
            break
        lengths.append(length + len(prefix))
    return lengths


def _canonical_names(keys: Iterable[str], layout: Layout, prefix_length: int) -> Iterator[Tuple[str, Optional[str]]]:
    """Return each key with its canonical name in a layout, or None, once its prefix is removed."""
    return zip(keys, to_canonical_keys(layout, (key[prefix_length:] for key in keys)))


def _unknown_layout(
    state_dict: Mapping[str, NDArray[Any]], candidates: Sequence[Layout], prefix_lengths: Sequence[int]
) -> LayoutError:
    """Return the error that names the closest layout and the keys that it does not have."""
    unknown = {
        layout.name: min(
            (
                [key for key, name in _canonical_names(state_dict, layout, length) if name is None]
                for length in prefix_lengths
            ),
            key=len,
        )
        for layout in candidates
    }
    closest = min(unknown, key=lambda name: len(unknown[name]))
    if len(unknown[closest]) == len(state_dict):
        message = f"no key is in layout {' or '.join(unknown)}"
        hint = "pass a checkpoint of a RepVGG; if layout= was passed, try without it"
    else:
        message = f"{len(unknown[closest])} of {len(state_dict)} keys are not in the closest layout, {closest}"
        hint = "remove what is not part of the network; if layout= was passed, try without it"
    return LayoutError(
        f"{message}: {format_keys(unknown[closest])}", expected=list(unknown), actual=unknown[closest], hint=hint
    )
