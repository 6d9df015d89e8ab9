"""Fitting a checkpoint's arrays to the network that was asked for: form, stem, head, and parts not built."""

from __future__ import annotations

import logging
from typing import Any, Dict, List, Mapping, Optional

import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from ._tensors import load_state_dict
from .checkpoints import Checkpoint
from .errors import FormError
from .models.layers import reset_parameters
from .reparam.fusion import fuse_arrays

logger = logging.getLogger(__name__)

STEM_KERNELS = ("stage0.rbr_dense.conv.weight", "stage0.rbr_1x1.conv.weight", "stage0.rbr_reparam.weight")
HEADS = ("linear", "stage1_aux.3", "stage2_aux.3", "stage3_first_aux.3")


def load_adapted(network: M.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Loads native arrays into ``network``: the stem fitted, a head of another size started anew, the rest strictly.

    Parts that the network does not have at all (its head with ``features_only``, stages beyond ``out_indices``) are
    passed over. The heads are the linear layers that the network names in ``heads``, or else those of RepVGG and
    RepVGGplus. Raises StateError, with the network untouched, when anything else does not fit.
    """
    wanted = {key: value for key, value in arrays.items() if getattr(network, key.split(".")[0], None) is not None}
    stem = [key for key in STEM_KERNELS if key in wanted]
    channels = {_channels(wanted[key]) for key in stem}
    # Kernels that disagree are damaged, and stay as they are, to be refused.
    if len(channels) == 1 and channels.isdisjoint((None, network.in_chans)):
        for key in stem:
            logger.info("%s is fitted from %d to %d input channels", key, wanted[key].shape[1], network.in_chans)
            wanted[key] = fitted_stem(wanted[key], network.in_chans)
    fresh: List[str] = []
    for head in getattr(network, "heads", HEADS):
        weight = wanted.get(f"{head}.weight")
        if weight is not None and weight.ndim == 2 and weight.shape[0] != network.num_classes:
            logger.warning(
                "not loaded: %s, %d classes in the file, %d here", head, weight.shape[0], network.num_classes
            )
            fresh.append(head)
            for name in ("weight", "bias"):
                wanted.pop(f"{head}.{name}", None)
    kept = [f"{head}.{name}" for head in fresh for name in ("weight", "bias")]
    load_state_dict(network, wanted, allow_missing=kept)
    parts = dict(network.named_modules()) if fresh else {}
    for name in fresh:
        head = parts[name]
        if type(head) is M.Linear:  # as ours are
            reset_parameters(head)
        else:
            head.reset_parameters()


def in_form(checkpoint: Checkpoint, deploy: bool) -> Dict[str, NDArray[Any]]:
    """The checkpoint's arrays in the form asked for; raises FormError for a train form from deploy weights."""
    if not deploy and checkpoint.form == "deploy":
        raise FormError(
            f"{checkpoint.path} holds deploy weights, from which the train form's branches cannot be recovered",
            path=checkpoint.path,
            expected="train",
            actual="deploy",
            hint="create the network with deploy=True, or load a train-form checkpoint",
        )
    return fuse_arrays(checkpoint.arrays) if deploy and checkpoint.form == "train" else dict(checkpoint.arrays)


def stem_channels(arrays: Mapping[str, NDArray[Any]]) -> Optional[int]:
    """How many input channels the weights were trained for, or None if they have no RepVGG stem."""
    found = (_channels(arrays.get(key)) for key in STEM_KERNELS)
    return next((channels for channels in found if channels is not None), None)


def _channels(kernel: Optional[NDArray[Any]]) -> Optional[int]:
    """A stem kernel's input channels; None for what is none, which loading then refuses by its shape."""
    return kernel.shape[1] if kernel is not None and kernel.ndim == 4 and kernel.shape[1] else None


def fitted_stem(kernel: NDArray[Any], in_chans: int) -> NDArray[Any]:
    """A stem kernel (out, in, k, k) for another number of input channels.

    One channel gets the sum of all, so that a grey image gives what its three equal channels gave; otherwise the old
    channels are taken in turn and scaled by old / new, which keeps the size of the response.
    """
    old = kernel.shape[1]
    if in_chans == 1:
        fitted = kernel.sum(axis=1, keepdims=True, dtype=np.float64)
    else:
        fitted = kernel[:, np.arange(in_chans) % old] * (old / in_chans)
    return np.asarray(fitted, dtype=kernel.dtype)
