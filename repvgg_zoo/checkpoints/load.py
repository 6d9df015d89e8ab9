"""load_checkpoint: a file of any publisher's format and layout becomes native arrays, with a report of what was done.

Needs NumPy only. The steps are one function each: read the file, find the state in it, recognise the layout, rename,
tell the form, and bring every array into native shape.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import LayoutError, PathLike
from .block_keys import BLOCK, block_order, has_identity
from .formats import read_file
from .layouts import AUXILIARY, BN_TENSORS, IGNORED, LAYOUTS, Layout, is_bn, layout_called, native_array, native_keys

SHOWN = 10
MAX_SHOWN = 120  # characters of a key in a message; the longest honest one has 40

# RepVGGplus_L2pse, the largest, has 867; trying every layout on many more takes minutes.
MAX_TENSORS = 5000

# Where trainers put the state; plain weights come before averaged ones, which are a training's by-product.
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
# What wrappers around a network put in front of every key.
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "network.", "net.")

BRANCHES = ("rbr_dense.", "rbr_1x1.", "rbr_identity.")
REPARAM = ("rbr_reparam.weight", "rbr_reparam.bias")
KERNELS = ("rbr_dense.conv.weight", "rbr_1x1.conv.weight", "rbr_reparam.weight")


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's arrays: native keys, and for ``skipped`` (the file's key, why)."""

    loaded: Tuple[str, ...]
    skipped: Tuple[Tuple[str, str], ...] = ()
    reshaped: Tuple[str, ...] = ()
    transposed: Tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one file in the native layout (see ``layouts``), with the dtype that the file has.

    ``form`` is "train" or "deploy"; ``layout`` and ``format`` are the file's. Arrays may be read-only views of it.
    """

    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    form: str
    layout: str
    format: str
    path: str
    report: LoadReport = field(repr=False)


def load_checkpoint(
    path: PathLike, *, layout: Union[str, Layout, None] = None, also: Sequence[Union[str, Layout]] = ()
) -> Checkpoint:
    """Reads a checkpoint file of any known format and layout; needs neither MegEngine nor torch nor Paddle.

    ``layout`` is recognised from the keys unless it is given, by name or as a ``Layout`` of your own; ``also`` has
    layouts to try after ours, such as those of a plug-in (``acme/name``). Raises CheckpointFormatError for a damaged or
    unknown encoding, UnsafePickleError for a pickle that asks for code, LayoutError for keys that fit no layout or not
    the one given, ArgumentError for a layout that does not exist, and PluginError.
    """
    given = None if layout is None else layout_called(layout)
    more = [layout_called(name) for name in also]
    file = os.fspath(path)
    format, tree = read_file(file)
    try:
        return interpret(tree, format=format, path=file, layout=given, also=more)
    except LayoutError as error:
        error.path, error.message = file, f"{file}: {error.message}"
        raise


def interpret(
    tree: Any, *, format: str, path: str, layout: Optional[Layout] = None, also: Sequence[Layout] = ()
) -> Checkpoint:
    """What a file's content means: its arrays by native key and in native shape. Raises LayoutError."""
    state, skipped = find_state(tree)
    chosen, names = recognise(state, [layout] if layout else [*_candidates(format), *also])
    renamed = {names[key]: array for key, array in state.items()}
    form, superfluous = find_form(renamed)
    skipped += [(key, superfluous[name]) for key, name in names.items() if name in superfluous]
    kept = {key: array for key, array in renamed.items() if key not in superfluous}
    arrays, reshaped, transposed = to_native(kept, chosen)
    return Checkpoint(
        arrays=MappingProxyType(arrays),
        form=form,
        layout=layout.name if layout else _layout_name(chosen, format, reshaped),
        format=format,
        path=path,
        report=LoadReport(tuple(arrays), tuple(skipped), tuple(reshaped), tuple(transposed)),
    )


def find_state(tree: Any) -> Tuple[Dict[str, NDArray[Any]], List[Tuple[str, str]]]:
    """The arrays by the file's keys, out of any wrappers, and (key, why) for everything that is left aside."""
    if not isinstance(tree, Mapping):
        raise LayoutError(
            f"the file holds a {type(tree).__name__} where a dict of arrays should be", hint="save model.state_dict()"
        )
    skipped: List[Tuple[str, str]] = []
    path = ""
    for _ in range(MAX_DEPTH):
        wrapper = next((name for name in WRAPPERS if isinstance(tree.get(name), Mapping)), None)
        if wrapper is None:
            break
        skipped += [(f"{path}{key}", f"beside {path}{wrapper}") for key in tree if key != wrapper]
        path, tree = f"{path}{wrapper}.", tree[wrapper]
    state: Dict[str, NDArray[Any]] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            skipped.append((f"{path}{key}", "not an array"))
        elif not IGNORED.isdisjoint(key.split(".")):
            skipped.append((f"{path}{key}", "a counter or helper"))
        else:
            state[key] = value
    if not state:
        raise LayoutError(
            f"no arrays at the top or under {', '.join(WRAPPERS)}; there is {_some([str(key) for key in tree])}",
            actual=list(tree),
            hint="give a file that holds a state dict",
        )
    if len(state) > MAX_TENSORS:
        raise LayoutError(
            f"the file holds {len(state)} arrays, more than any RepVGG, such as {_some(list(state), 3)}",
            expected=MAX_TENSORS,
            actual=len(state),
            hint="give a file that holds the network alone",
        )
    integers = [f"{key} ({array.dtype})" for key, array in state.items() if array.dtype.kind != "f"]
    if integers:
        raise LayoutError(
            f"the weights are not floating point: {_some(integers)}", hint="quantised weights cannot be loaded"
        )
    return state, skipped


def recognise(state: Mapping[str, NDArray[Any]], candidates: Sequence[Layout]) -> Tuple[Layout, Dict[str, str]]:
    """The first layout that knows every key, and the native name of each; common prefixes are taken off if need be."""
    prefixes = _prefix_lengths(state)
    for cut in prefixes:
        for layout in candidates:
            names: Dict[str, str] = {}
            for key, name in _named(state, layout, cut):
                if name is None:
                    break
                names[key] = name
            else:
                return layout, names
    raise _unrecognised(state, candidates, prefixes)


def find_form(arrays: Mapping[str, NDArray[Any]]) -> Tuple[str, Dict[str, str]]:
    """ "train" or "deploy", and the keys (with a reason) that the form has no use for.

    Some publishers keep a block's branches beside its fused convolution. Complete branches are then the truth, since
    the convolution can be made from them; otherwise a complete convolution is. Raises LayoutError, which names blocks,
    if they are not all of one form.
    """
    keys: Dict[str, List[str]] = {}
    for key in arrays:
        match = BLOCK.match(key)
        if match:
            keys.setdefault(match.group(1), []).append(key[match.end() :])
    forms: Dict[str, List[str]] = {"train": [], "deploy": []}
    superfluous: Dict[str, str] = {}
    for block, tensors in keys.items():
        branches = [name for name in tensors if name.startswith(BRANCHES)]
        reparam = [name for name in tensors if name in REPARAM]
        if branches and reparam:
            if _is_complete(block, branches) or len(reparam) < len(REPARAM):
                form, dropped, why = "train", reparam, "the block's branches are here, and they are what counts"
            else:
                form, dropped, why = "deploy", branches, "the block's branches are not complete, its fused form is"
            superfluous.update({f"{block}.{name}": why for name in dropped})
            forms[form].append(block)
        elif branches or reparam:
            forms["train" if branches else "deploy"].append(block)
    if forms["train"] and forms["deploy"]:
        raise LayoutError(
            f"some blocks have branches ({_some(forms['train'], 3)}), others are fused ({_some(forms['deploy'], 3)})",
            actual=forms,
            hint="save the network either before re-parameterising it or after all of its blocks are",
        )
    if not forms["train"] and not forms["deploy"]:
        raise LayoutError(
            f"the file holds no RepVGG block, only {_some(list(arrays))}",
            actual=list(arrays),
            hint="give a file that holds the whole network",
        )
    if forms["train"]:
        return "train", superfluous
    # Converters that know blocks only leave RepVGGplus's auxiliary heads, which the deploy form has no place for.
    auxiliary = tuple(f"{head}." for head in AUXILIARY)
    superfluous.update({key: "only training needs it" for key in arrays if key.startswith(auxiliary)})
    return "deploy", superfluous


def to_native(
    arrays: Mapping[str, NDArray[Any]], layout: Layout
) -> Tuple[Dict[str, NDArray[Any]], List[str], List[str]]:
    """Arrays under native keys in native shapes, in the order of the file, and the keys reshaped and transposed.

    Torch's shapes do not say into how many groups a kernel (out, in / groups, k, k) falls, but the block before it
    does: its output channels are this block's ``in``. The stem is never grouped (paper, section 3.4).
    """
    entering = _input_channels(arrays)
    native: Dict[str, NDArray[Any]] = {}
    reshaped: List[str] = []
    transposed: List[str] = []
    for key, array in arrays.items():
        match = BLOCK.match(key)
        native[key] = native_array(layout, key, array, entering.get(match.group(1)) if match else None)
        if layout.head_transposed and key == "linear.weight":
            transposed.append(key)
        elif native[key].shape != array.shape:
            reshaped.append(key)
    return native, reshaped, transposed


def _input_channels(arrays: Mapping[str, NDArray[Any]]) -> Dict[str, int]:
    """What enters each block, from the output channels of the one before it; the stem is left out."""
    leaving: Dict[str, int] = {}
    for key, array in arrays.items():
        match = BLOCK.match(key)
        if match and key[match.end() :] in KERNELS and array.ndim in (4, 5):
            leaving[match.group(1)] = math.prod(array.shape[:-3])
    blocks = sorted(leaving, key=block_order)
    return {block: leaving[before] for before, block in zip(blocks, blocks[1:])}


def _is_complete(block: str, branches: Iterable[str]) -> bool:
    """Whether all branches that ``block`` must have are there in full."""
    wanted = {f"{branch}.conv.weight" for branch in ("rbr_dense", "rbr_1x1")}
    wanted |= {f"{branch}.bn.{name}" for branch in ("rbr_dense", "rbr_1x1") for name in BN_TENSORS}
    if has_identity(block):
        wanted |= {f"rbr_identity.{name}" for name in BN_TENSORS}
    return wanted <= set(branches)


def _prefix_lengths(state: Mapping[str, NDArray[Any]]) -> List[int]:
    """How many characters of every key may be a wrapper's prefix: 0, and then one known prefix more each time."""
    lengths = [0]
    for _ in range(MAX_DEPTH):
        cut = lengths[-1]
        prefix = next((name for name in PREFIXES if all(key.startswith(name, cut) for key in state)), None)
        if prefix is None:
            break
        lengths.append(cut + len(prefix))
    return lengths


def _named(state: Iterable[str], layout: Layout, cut: int) -> Iterator[Tuple[str, Optional[str]]]:
    """Each key with its native name in a layout, once ``cut`` characters are taken off."""
    return zip(state, native_keys(layout, (key[cut:] for key in state)))


def _unrecognised(
    state: Mapping[str, NDArray[Any]], candidates: Sequence[Layout], prefixes: Sequence[int]
) -> LayoutError:
    """The error that names the layout which comes closest, and the keys that it does not have."""
    unknown = {
        layout.name: min(
            ([key for key, name in _named(state, layout, cut) if name is None] for cut in prefixes), key=len
        )
        for layout in candidates
    }
    nearest = min(unknown, key=lambda name: len(unknown[name]))
    if len(unknown[nearest]) == len(state):
        message = f"no key is in layout {' or '.join(unknown)}"
        hint = "give a checkpoint of a RepVGG; if layout= was given, try without it"
    else:
        message = f"{len(unknown[nearest])} of {len(state)} keys are not in the closest layout, {nearest}"
        hint = "remove what is not the network's; if layout= was given, try without it"
    return LayoutError(
        f"{message}: {_some(unknown[nearest])}", expected=list(unknown), actual=unknown[nearest], hint=hint
    )


def _candidates(format: str) -> List[Layout]:
    """The layouts in the order in which they are tried; only its format tells a deploy file of Paddle's."""
    first = ["paddleclas"] if format == "paddle" else []
    return [LAYOUTS[name] for name in (*first, *LAYOUTS) if name != "native"]


def _layout_name(layout: Layout, format: str, reshaped: Sequence[str]) -> str:
    """The native layout and the official one share their keys, and for most variants their shapes too."""
    if layout.name not in ("official", "official_plus") or format not in ("safetensors", "megengine"):
        return layout.name
    from_torch = any(not is_bn(key) for key in reshaped)
    return layout.name if from_torch else "native"


def _some(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names, made fit for a terminal: keys come from the file, and may be long or hold control characters."""
    fit = (
        name if name.isprintable() and len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]!r}..." for name in names[:shown]
    )
    return ", ".join(fit) + (f" and {len(names) - shown} more" if len(names) > shown else "")
