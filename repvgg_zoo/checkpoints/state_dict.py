"""Checkpoint: the value that travels from a file to a network, and what its keys say about its form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np
from numpy.typing import NDArray

from .._html import html_table
from ..errors import LayoutError
from .layouts import AUXILIARY_HEADS, BLOCK, BN_TENSORS, KERNELS, has_identity
from .metadata import CheckpointMetadata

BRANCHES = ("rbr_dense.", "rbr_1x1.", "rbr_identity.")
STEM_KERNELS = tuple(f"stage0.{name}" for name in KERNELS)
REPARAM = ("rbr_reparam.weight", "rbr_reparam.bias")
MAX_LISTED = 10
MAX_KEY_CHARS = 120  # of a key in a message; the longest one of any publisher has 40


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's arrays: canonical keys, and for ``skipped`` (the file's key, why).

    ``state`` and ``prefix`` say where the network was, in the words of ``load_checkpoint``'s arguments.
    """

    loaded: Tuple[str, ...]
    skipped: Tuple[Tuple[str, str], ...] = ()
    reshaped: Tuple[str, ...] = ()
    transposed: Tuple[str, ...] = ()
    state: str = ""
    prefix: str = ""

    def __repr__(self) -> str:
        counts = (f"{len(getattr(self, name))} {name}" for name in ("loaded", "skipped", "reshaped", "transposed"))
        return f"<LoadReport {', '.join(counts)}>"

    def _repr_html_(self) -> str:
        reshaped, transposed = set(self.reshaped), set(self.transposed)
        rows = [
            *((key, "skipped", reason) for key, reason in self.skipped),
            *((key, "loaded, reshaped", None) for key in self.reshaped),
            *((key, "loaded, transposed", None) for key in self.transposed),
            *((key, "loaded", None) for key in self.loaded if key not in reshaped and key not in transposed),
        ]
        return html_table(repr(self)[1:-1], ("key", "outcome", "reason"), rows)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one file by canonical key and in canonical shape (see ``layouts``), with the file's dtypes.

    ``form`` is "train" or "deploy"; ``layout`` and ``format`` are the file's. ``source_sha256`` is the digest of the
    file where it was verified, else None. ``metadata`` is what the file says about its weights, see
    ``save_checkpoint``. Arrays may be read-only. ``canonicalize``, ``fuse`` and ``adapt`` return such a value without
    changing their arguments.
    """

    state_dict: Mapping[str, NDArray[Any]] = field(repr=False)
    form: str
    layout: str
    format: str
    path: str
    report: LoadReport = field(repr=False)
    source_sha256: Optional[str] = None
    metadata: CheckpointMetadata = field(default_factory=CheckpointMetadata, repr=False)

    @property
    def arrays(self) -> Dict[str, NDArray[Any]]:
        """The state dict as a dict, for ``load_state_dict`` of any Module; the arrays are the same ones."""
        return {key: np.asarray(array) for key, array in self.state_dict.items()}


def input_channels(state_dict: Mapping[str, NDArray[Any]]) -> Optional[int]:
    """Return the number of input channels that the weights were trained for, or None if they have no RepVGG stem."""
    numbers = (stem_channels(state_dict.get(key)) for key in STEM_KERNELS)
    return next((number for number in numbers if number is not None), None)


def stem_channels(kernel: Optional[NDArray[Any]]) -> Optional[int]:
    """Return the number of input channels of a 4-D stem kernel, or None if the array is not one."""
    return kernel.shape[1] if kernel is not None and kernel.ndim == 4 and kernel.shape[1] else None


def class_count(state_dict: Mapping[str, NDArray[Any]]) -> Optional[int]:
    """Return the number of classes that the weights were trained for, or None if they have no head."""
    head = state_dict.get("linear.weight")
    return None if head is None or head.ndim != 2 else int(head.shape[0])


def block_channels(arrays: Iterable[Tuple[str, NDArray[Any]]]) -> Dict[str, int]:
    """Return the output channels of each block, of (canonical key, array) pairs."""
    channels: Dict[str, int] = {}
    for key, array in arrays:
        match = BLOCK.match(key)
        if match and key[match.end() :] in KERNELS and array.ndim in (4, 5):
            channels[match.group(1)] = math.prod(array.shape[:-3])
    return channels


def detect_form(state_dict: Mapping[str, NDArray[Any]]) -> Tuple[str, Dict[str, str]]:
    """Return "train" or "deploy", and the canonical keys that this form does not need, each with the reason.

    Raises LayoutError, which names blocks, if they are not all of one form, or if there is none.
    """
    blocks: Dict[str, List[str]] = {}
    for key in state_dict:
        match = BLOCK.match(key)
        if match:
            blocks.setdefault(match.group(1), []).append(key[match.end() :])
    forms: Dict[str, List[str]] = {"train": [], "deploy": []}
    redundant: Dict[str, str] = {}
    for block, names in blocks.items():
        form, unused, reason = classify_block(block, names)
        if form is not None:
            forms[form].append(block)
        redundant.update((f"{block}.{name}", reason) for name in unused)
    _check_single_form(forms, state_dict)
    if forms["train"]:
        return "train", redundant
    # Converters that only know blocks leave RepVGGplus's auxiliary heads in the file.
    heads = tuple(f"{head}." for head in AUXILIARY_HEADS)
    redundant.update((key, "only training needs it") for key in state_dict if key.startswith(heads))
    return "deploy", redundant


def classify_block(block: str, names: Sequence[str]) -> Tuple[Optional[str], List[str], str]:
    """Return the form of a block, the tensors that this form does not need, and why; None if it has no convolution.

    Some publishers keep a block's branches beside its fused convolution. Complete branches are then used, since the
    convolution can be computed from them; otherwise a complete convolution is.
    """
    branches = [name for name in names if name.startswith(BRANCHES)]
    reparam = [name for name in names if name in REPARAM]
    if not branches:
        return ("deploy" if reparam else None), [], ""
    if not reparam:
        return "train", [], ""
    if _branch_tensors(block) <= set(branches) or len(reparam) < len(REPARAM):
        return "train", reparam, "the block's branches are in the file and are used instead"
    return "deploy", branches, "the block's branches are incomplete, so its fused convolution is used"


def required_tensors(block: str, names: Sequence[str]) -> List[str]:
    """Return the convolutions and BN tensors of a block that has ``names``, in the form that it is of."""
    return sorted(REPARAM if classify_block(block, names)[0] == "deploy" else _branch_tensors(block))


def format_keys(keys: Sequence[str], max_listed: int = MAX_LISTED) -> str:
    """Return the first keys for a message: they come from the file, and may be long or hold control characters."""
    printable = (
        key if key.isprintable() and len(key) <= MAX_KEY_CHARS else f"{key[:MAX_KEY_CHARS]!r}..."
        for key in keys[:max_listed]
    )
    return ", ".join(printable) + (f" and {len(keys) - max_listed} more" if len(keys) > max_listed else "")


def _check_single_form(forms: Mapping[str, List[str]], state_dict: Mapping[str, NDArray[Any]]) -> None:
    train, deploy = forms["train"], forms["deploy"]
    if train and deploy:
        raise LayoutError(
            f"some blocks have branches ({format_keys(train, 3)}), others are fused ({format_keys(deploy, 3)})",
            actual=dict(forms),
            hint="save the network either before re-parameterizing it or after all of its blocks are",
        )
    if not train and not deploy:
        raise LayoutError(
            f"the file has no RepVGG block, only {format_keys(list(state_dict))}",
            actual=list(state_dict),
            hint="pass a file that holds the whole network",
        )


def _branch_tensors(block: str) -> Set[str]:
    """Return the tensors of all branches that ``block`` must have in the train form."""
    required = {f"{branch}.conv.weight" for branch in ("rbr_dense", "rbr_1x1")}
    required |= {f"{branch}.bn.{name}" for branch in ("rbr_dense", "rbr_1x1") for name in BN_TENSORS}
    return required | ({f"rbr_identity.{name}" for name in BN_TENSORS} if has_identity(block) else set())
