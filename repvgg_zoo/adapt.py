"""adapt: fit a checkpoint to another number of input channels or classes; needs NumPy only."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, Iterable, List, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from ._log import get_logger
from .checkpoints import Checkpoint
from .checkpoints.layouts import CLASSIFIERS
from .checkpoints.state_dict import STEM_KERNELS, stem_channels

# Raised whenever `adapt` would return something else for the same weights.
ADAPT_VERSION = 1

logger = get_logger(__name__)


def adapt(
    checkpoint: Checkpoint, *, in_chans: int, num_classes: Optional[int], classifiers: Iterable[str] = CLASSIFIERS
) -> Tuple[Checkpoint, List[str]]:
    """Return the checkpoint with its stem adapted, without classifiers of another size, and the names of these.

    ``num_classes=None`` is for a network without a head. ``classifiers`` are the keys of the linear layers whose size
    is the number of classes. What is changed or left out is logged.
    """
    state_dict = dict(checkpoint.state_dict)
    stem = [key for key in STEM_KERNELS if key in state_dict]
    channels = {stem_channels(state_dict[key]) for key in stem}
    # Kernels that disagree are damaged: loading them into the network reports their shapes.
    if len(channels) == 1 and channels.isdisjoint((None, in_chans)):
        for key in stem:
            logger.info("%s is adapted from %d to %d input channels", key, state_dict[key].shape[1], in_chans)
            state_dict[key] = adapt_input_conv(state_dict[key], in_chans)
    removed: List[str] = []
    for name in classifiers if num_classes is not None else ():
        weight = state_dict.get(f"{name}.weight")
        if weight is not None and weight.ndim == 2 and weight.shape[0] != num_classes:
            logger.warning(
                "not loaded: %s, which has %d classes in the file and %d in the network",
                name,
                weight.shape[0],
                num_classes,
            )
            removed.append(name)
            for tensor in ("weight", "bias"):
                state_dict.pop(f"{name}.{tensor}", None)
    return replace(checkpoint, state_dict=MappingProxyType(state_dict)), removed


def adapt_input_conv(kernel: NDArray[Any], in_chans: int) -> NDArray[Any]:
    """Return a stem kernel (out, in, k, k) for another number of input channels.

    One channel gets the sum of all, so that a gray image gives what its three equal channels gave; otherwise the old
    channels are repeated in order and scaled by old / new, which keeps the scale of the output.
    """
    kernel = np.asarray(kernel)
    old = kernel.shape[1]
    if in_chans == 1:
        adapted = kernel.sum(axis=1, keepdims=True, dtype=np.float64)
    else:
        adapted = kernel[:, np.arange(in_chans) % old] * (old / in_chans)
    return np.asarray(adapted, dtype=kernel.dtype)
