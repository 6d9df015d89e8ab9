"""load_checkpoint: from a file of any publisher's format and layout to a Checkpoint, with a report of what was done.

It needs NumPy only. The steps are one function each: read the file, find the state dict in it, detect the layout,
rename the keys, detect the form, and bring every array into canonical shape.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_items, check_local_path, check_text
from .._log import get_logger
from ..errors import ArgumentError, CheckpointFormatError, LayoutError, PathLike
from .detect import MAX_TENSORS, detect_layout, is_counter, missing_keys
from .find_state import choose_state_dict
from .formats import blocked_names, read_file, unsafe_pickle
from .layouts import (
    BLOCK,
    LAYOUTS,
    Layout,
    block_sort_key,
    get_layout,
    is_bn,
    to_canonical_array,
)
from .metadata import METADATA_KEY, QUANTIZATION, CheckpointMetadata, from_text, parse_text
from .state_dict import Checkpoint, LoadReport, block_channels, detect_form, format_keys

# Raised whenever `canonicalize` would return something else for the same payload.
CANONICALIZE_VERSION = 1
SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")  # as in model-00001-of-00002.safetensors

logger = get_logger(__name__)


def load_checkpoint(
    path: PathLike,
    *,
    layout: Union[str, Layout, None] = None,
    extra_layouts: Sequence[Union[str, Layout]] = (),
    state: Optional[str] = None,
    prefix: Optional[str] = None,
    sha256: Optional[str] = None,
) -> Checkpoint:
    """Read a checkpoint file of any known format and layout; needs neither MegEngine nor torch nor Paddle.

    The arrays have memory of their own: the file may be changed or deleted afterwards. ``layout`` is detected from the
    keys unless it is passed, by name or as a ``Layout`` of your own; ``extra_layouts`` are tried after ours, such as
    those of a plugin (``acme/name``). Where a trainer saved several state dicts, the plain one is taken rather than an
    averaged one; ``state`` picks another, by its key (``"state_dict_ema"``, ``"generator.model"``) or as ``"ema"``.
    Keys may have prefixes, and foreign ones may stand beside complete weights; ``prefix`` (``"backbone."``) picks one
    of several networks. The report lists what was passed over. With ``sha256``, 64 lowercase hex digits, the bytes that
    are read must have that digest. Raises IntegrityError if they do not, CheckpointFormatError for a damaged or unknown
    encoding, UnsafePickleError for weights that are not arrays alone, LayoutError for keys that fit no layout or not
    the one passed, ArgumentError for a URL and for a layout or state that does not exist, and PluginError.
    """
    file = str(check_local_path("the path", path))
    chosen = None if layout is None else get_layout(layout)
    extra = [get_layout(name) for name in check_items("extra_layouts", extra_layouts)]
    state = None if state is None else check_text("state", state)
    prefix = None if prefix is None else check_text("prefix", prefix)
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", check_text("sha256", sha256)):
        raise ArgumentError(
            f"{sha256!r} is not a SHA-256 digest",
            expected="64 lowercase hex digits",
            actual=sha256,
            hint="pass 64 lowercase hex digits",
        )
    format, payload = read_file(file, sha256)
    try:
        checkpoint = canonicalize(
            payload, format=format, path=file, layout=chosen, extra_layouts=extra, state=state, prefix=prefix
        )
        _check_memory(checkpoint.state_dict)
        if SHARD.search(file) and missing_keys(checkpoint.state_dict):
            raise LayoutError("the file holds only some of the weights", actual=list(checkpoint.state_dict))
        return checkpoint
    except LayoutError as error:
        if SHARD.search(file):
            error.hint = "it is one of several shards: pass the index beside them, which ends in .index.json"
        error.path, error.message = file, f"{file}: {error.message}"
        raise


def checkpoint_from_arrays(arrays: Mapping[str, Any], extra_layouts: Sequence[Layout] = ()) -> Checkpoint:
    """Return the Checkpoint of a dict of arrays, such as ``megengine.load`` returns; raise as ``canonicalize`` does."""
    text = getattr(arrays, METADATA_KEY, None)
    payload = dict(arrays) if text is None else {**arrays, METADATA_KEY: text}
    return canonicalize(payload, format="arrays", path="the dict", extra_layouts=extra_layouts)


def canonicalize(
    payload: Any,
    *,
    format: str,
    path: str,
    layout: Optional[Layout] = None,
    extra_layouts: Sequence[Layout] = (),
    state: Optional[str] = None,
    prefix: Optional[str] = None,
) -> Checkpoint:
    """Return the weights in a file's content by canonical key and in canonical shape.

    Raises LayoutError, UnsafePickleError, and ArgumentError for a ``state`` that the file does not have.
    """
    candidates = [layout] if layout else [*_candidates(format), *extra_layouts]
    chosen, found, skipped = choose_state_dict(payload, candidates, state, prefix)
    blocked = blocked_names(found)
    if blocked:
        raise unsafe_pickle(blocked, path)
    if not isinstance(found, Mapping):
        raise LayoutError(
            f"the file holds a {type(found).__name__}, not a dict of arrays", hint="save model.state_dict()"
        )
    metadata = _metadata(payload, found, path)
    arrays, others = _only_arrays(found, chosen)
    skipped = [(key, reason) for key, reason in [*skipped, *others] if not key.endswith(METADATA_KEY)]
    network = detect_layout(arrays, candidates, prefix)
    detected, names = network.layout, network.names
    skipped += [(f"{chosen}{key}", reason) for key, reason in network.strangers]
    _log_strangers(path, [f"{chosen}{key}" for key, _ in network.strangers if arrays[key].dtype.kind == "f"], prefix)
    renamed = {names[key]: array for key, array in arrays.items() if key in names}
    _check_dtypes(renamed)
    form, redundant = detect_form(renamed)
    skipped += [(key, redundant[name]) for key, name in names.items() if name in redundant]
    needed = {key: array for key, array in renamed.items() if key not in redundant}
    state_dict, reshaped, transposed = _to_canonical_arrays(needed, detected)
    return Checkpoint(
        state_dict=MappingProxyType(state_dict),
        form=form,
        layout=layout.name if layout else _layout_name(detected, format, reshaped),
        format=format,
        path=path,
        report=LoadReport(
            tuple(state_dict),
            tuple(skipped),
            tuple(reshaped),
            tuple(transposed),
            state=chosen.rstrip("."),
            prefix=network.prefix,
        ),
        metadata=metadata,
    )


def _log_strangers(path: str, keys: Sequence[str], prefix: Optional[str]) -> None:
    """Log the weights that are left aside: with a warning, unless a part of the file was asked for."""
    if keys:
        level = logging.WARNING if prefix is None else logging.INFO
        count = "1 array is" if len(keys) == 1 else f"{len(keys)} arrays are"
        logger.log(level, "%s: %s not of the network and not loaded: %s", path, count, format_keys(keys))


def _metadata(payload: Any, found: Mapping[Any, Any], path: str) -> CheckpointMetadata:
    """Return what the file says about its weights, beside them or at its top.

    Raises CheckpointFormatError, and LayoutError for the file of a quantized network.
    """
    texts = [part[METADATA_KEY] for part in (found, payload) if isinstance(part.get(METADATA_KEY), str)]
    if not texts:
        return CheckpointMetadata()
    try:
        metadata, is_quantized = from_text(texts[0]), QUANTIZATION in parse_text(texts[0])
    except ValueError as error:
        raise CheckpointFormatError(
            f"{path}: what the file says about its weights ({METADATA_KEY}) is not valid: {error}",
            path=path,
            hint="save the network again with repvgg_zoo.save_checkpoint, or remove this text from the file",
        ) from error
    if is_quantized:
        raise LayoutError(
            "the file is a quantized network, not a checkpoint", hint="repvgg_zoo.QuantizedNetwork.load(path) reads it"
        )
    return replace(metadata, preprocessing_source="the file" if metadata.preprocessing else None)


def _only_arrays(values: Mapping[Any, Any], path: str) -> Tuple[Dict[str, NDArray[Any]], List[Tuple[str, str]]]:
    """Return the arrays of a state dict by the file's keys, and (key, reason) for everything else.

    Raises LayoutError if there are no arrays, or too many.
    """
    skipped: List[Tuple[str, str]] = []
    state_dict: Dict[str, NDArray[Any]] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            skipped.append((f"{path}{key}", "not an array"))
        elif is_counter(key):
            skipped.append((f"{path}{key}", "a counter or helper"))
        else:
            state_dict[key] = value
    if not state_dict:
        keys = format_keys([str(key) for key in values])
        raise LayoutError(
            "the file holds no arrays by name" + (f", only {keys}" if keys else ""),
            actual=list(values),
            hint="pass a file that holds a state dict",
        )
    if len(state_dict) > MAX_TENSORS:
        raise LayoutError(
            f"the file has {len(state_dict)} arrays, more than any RepVGG, such as {format_keys(list(state_dict), 3)}",
            expected=MAX_TENSORS,
            actual=len(state_dict),
            hint="pass a file that holds only the network",
        )
    return state_dict, skipped


def _check_dtypes(arrays: Mapping[str, NDArray[Any]]) -> None:
    other = [f"{key} ({array.dtype})" for key, array in arrays.items() if array.dtype.kind != "f"]
    if other:
        raise LayoutError(
            f"the weights are not floating point: {format_keys(other)}", hint="quantized weights cannot be loaded"
        )


def _to_canonical_arrays(
    arrays: Mapping[str, NDArray[Any]], layout: Layout
) -> Tuple[Dict[str, NDArray[Any]], List[str], List[str]]:
    """Return the arrays in canonical shape, in the order of the file, and the keys reshaped and transposed.

    Torch's shapes do not say into how many groups a kernel (out, in / groups, k, k) is divided, but the block before it
    does: its output channels are this block's ``in``. The stem is never grouped (paper, section 3.4).
    """
    in_channels = _input_channels(arrays)
    state_dict: Dict[str, NDArray[Any]] = {}
    reshaped: List[str] = []
    transposed: List[str] = []
    for key, array in arrays.items():
        match = BLOCK.match(key)
        state_dict[key] = to_canonical_array(layout, key, array, in_channels.get(match.group(1)) if match else None)
        if layout.head_transposed and key == "linear.weight":
            transposed.append(key)
        elif state_dict[key].shape != array.shape:
            reshaped.append(key)
    return state_dict, reshaped, transposed


def _input_channels(arrays: Mapping[str, NDArray[Any]]) -> Dict[str, int]:
    """Return the input channels of each block but the stem: the output channels of the block before it."""
    out_channels = block_channels(arrays.items())
    blocks = sorted(out_channels, key=block_sort_key)
    return {block: out_channels[before] for before, block in zip(blocks, blocks[1:])}


def _check_memory(state_dict: Mapping[str, NDArray[Any]]) -> None:
    """Raise LayoutError if tensors share memory: fused or saved, they could be many times the file's size."""
    total = sum(array.nbytes for array in state_dict.values())
    distinct = end = 0
    for first, last in sorted(map(_extent, state_dict.values())):
        distinct += max(0, last - max(first, end))
        end = max(end, last)
    if total > distinct:
        raise LayoutError(
            f"the tensors share memory: they have {total} bytes together, of which the file holds {distinct}",
            expected=distinct,
            actual=total,
            hint="save a copy of each, with torch {key: tensor.clone() for key, tensor in model.state_dict().items()}",
        )


def _extent(array: NDArray[Any]) -> Tuple[int, int]:
    """Return the address of an array's first byte and that after its last; readers make no negative strides."""
    start = array.ctypes.data
    if not array.size:
        return start, start
    return start, start + sum((n - 1) * stride for n, stride in zip(array.shape, array.strides)) + array.itemsize


def _candidates(format: str) -> List[Layout]:
    """Return the layouts in the order in which they are tried; only its format tells a deploy file of Paddle's."""
    first = ["paddleclas"] if format == "paddle" else []
    return [LAYOUTS[name] for name in (*first, *LAYOUTS) if name != "canonical"]


def _layout_name(layout: Layout, format: str, reshaped: Sequence[str]) -> str:
    """The canonical layout and the official one share their keys, and for most variants their shapes too."""
    if layout.name not in ("official", "official_plus") or format not in ("safetensors", "megengine"):
        return layout.name
    from_torch = any(not is_bn(key) for key in reshaped)
    return layout.name if from_torch else "canonical"
