"""save_checkpoint: from a network or its state dict to a file, in the canonical layout or in a publisher's."""

from __future__ import annotations

import json
import pickle
import struct
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Dict, Mapping, Optional, Sequence, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_items, check_local_path, check_text
from .._atomic import atomic_write
from ..errors import ArgumentError, LayoutError, PathLike
from ..registry.specs import Preprocessing
from .formats.file_buffer import METADATA_KEY
from .layouts import Layout, get_layout, to_publisher_array, to_publisher_key
from .metadata import CheckpointMetadata, from_text, to_text
from .network_metadata import metadata_of_network
from .publisher import complete_metadata
from .state_dict import Checkpoint, format_keys
from .torch_file import write_torch

if TYPE_CHECKING:
    from megengine.module import Module

WRITABLE_LAYOUTS = ("canonical", "official", "timm", "openmmlab", "basecls")
FORMAT_SUFFIXES = {"safetensors": ".safetensors", "megengine": ".pkl", "torch": ".pth"}
FLOAT_DTYPES = ("float16", "float32", "float64")
SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32", "float64": "F64", "int8": "I8", "uint8": "U8"}


def save_checkpoint(
    path: PathLike,
    weights: Union[Mapping[str, NDArray[Any]], Checkpoint, Module],
    *,
    layout: Union[str, Layout, None] = None,
    format: Optional[str] = None,
    class_names: Optional[Sequence[str]] = None,
    preprocessing: Union[Preprocessing, Mapping[str, Any], None] = None,
) -> None:
    """Write the weights of a network, a Checkpoint or a state dict to ``path``, completely or not at all.

    A state dict has canonical keys and NumPy arrays, such as ``module.state_dict()`` of a network of this package.
    ``layout`` is "canonical" or a publisher's: "official" (torch's shapes; RepVGGplus too), "timm", "openmmlab",
    "basecls", a plugin's (``acme/name``), or a ``Layout`` of your own; by default it is "official" for torch and else
    "canonical". ``format`` is "safetensors", "megengine" (a pickle of NumPy arrays that ``megengine.load`` reads) or
    "torch" (tensors, which ``torch.load`` reads with ``weights_only=True``; torch is not needed to write them); by
    default the suffix decides, ``.safetensors``, ``.pkl`` or ``.pth``. Values and dtypes do not change.

    With a network or a Checkpoint, the file also says what is known about the weights (CheckpointMetadata): variant,
    classes, preprocessing, the eps of BN layers, and which published checkpoint they come from. ``class_names``, in the
    order of the logits, and ``preprocessing``, a Preprocessing or fields of one, replace what is known. So ``create``,
    ``predict`` and ``compile`` need nothing else than the file.

    Raises ArgumentError for a layout, format or suffix that cannot be written and for metadata that are not valid,
    LayoutError for keys that the publisher has no name for, PluginError, and OSError from the file system.
    """
    file = check_local_path("the path", path)
    chosen = output_format(file, None if format is None else check_text("format", format))
    layout = default_layout(chosen) if layout is None else layout
    arrays = _state_dict(weights)
    text = _metadata_text(weights, arrays, class_names, preprocessing)
    state_dict = to_publisher_state_dict(arrays, layout)
    if not file.parent.is_dir():
        raise ArgumentError(f"{file.parent} is not a folder", path=file, hint="create the folder first")
    atomic_write(file, lambda stream: WRITERS[chosen](stream, state_dict, text))


def output_format(path: PathLike, format: Optional[str] = None) -> str:
    """Return the format in which a file with this name is written; raise ArgumentError if its suffix has none."""
    name, suffix = Path(path).name, Path(path).suffix.lower()
    chosen = format or next((known for known, ending in FORMAT_SUFFIXES.items() if ending == suffix), "")
    if chosen not in FORMAT_SUFFIXES:
        raise ArgumentError(
            f"cannot tell the format to write from {name!r}",
            path=path,
            expected=sorted(FORMAT_SUFFIXES),
            actual=chosen,
            hint=f"end the name in {' or '.join(FORMAT_SUFFIXES.values())}, or pass format="
            f" {' or '.join(FORMAT_SUFFIXES)}",
        )
    return chosen


def default_layout(format: str) -> str:
    """Return the layout that a file of this format has unless another one is asked for."""
    return "official" if format == "torch" else "canonical"


def to_publisher_state_dict(
    state_dict: Mapping[str, NDArray[Any]], layout: Union[str, Layout]
) -> Dict[str, NDArray[Any]]:
    """Return canonical arrays under a publisher's keys and in its shapes, as views where that is possible."""
    if not isinstance(layout, Layout):
        check_text("layout", layout, "the name of a layout, or a Layout")
    if isinstance(layout, str) and "/" not in layout and layout not in WRITABLE_LAYOUTS:
        known = ", ".join(WRITABLE_LAYOUTS)
        raise ArgumentError(
            f"layout {layout!r} cannot be written", expected=known, actual=layout, hint=f"choose from {known}"
        )
    if layout == "canonical":
        return dict(state_dict)
    target = get_layout(layout)
    names = {key: to_publisher_key(target, key) for key in state_dict}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise LayoutError(
            f"layout {target.name} has no name for {len(unknown)} keys: {format_keys(unknown)}",
            actual=unknown,
            hint='write layout "canonical", which takes every key',
        )
    return {str(name): to_publisher_array(target, key, state_dict[key]) for key, name in names.items()}


def _state_dict(source: Union[Mapping[str, NDArray[Any]], Checkpoint, Module]) -> Mapping[str, NDArray[Any]]:
    if isinstance(source, Checkpoint):
        state_dict = source.state_dict
    elif isinstance(source, Mapping):
        state_dict = source
    else:
        state_dict = getattr(source, "state_dict", dict)()  # MegEngine's has BN tensors as (C,), as the canonical one
    if not state_dict:
        raise ArgumentError(
            f"{type(source).__name__} holds no arrays to save", hint="pass a network, or a dict of NumPy arrays"
        )
    other = [
        str(key)
        for key, value in state_dict.items()
        if not (isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.name in FLOAT_DTYPES)
    ]
    if other:
        raise ArgumentError(
            f"only NumPy arrays of float16, float32 or float64 can be saved, unlike {format_keys(other)}",
            actual=other,
            hint="tensor.numpy() returns the array of a tensor; save counters and settings in another file",
        )
    return state_dict


def _metadata(source: Union[Mapping[str, NDArray[Any]], Checkpoint, Module]) -> CheckpointMetadata:
    if isinstance(source, Checkpoint):
        return complete_metadata(source)
    if isinstance(source, Mapping):
        text = getattr(source, METADATA_KEY, None)  # as megengine.load returns it from a file of ours
        return from_text(text) if isinstance(text, str) else CheckpointMetadata()
    return metadata_of_network(source)


def _metadata_text(
    source: Union[Mapping[str, NDArray[Any]], Checkpoint, Module],
    arrays: Mapping[str, NDArray[Any]],
    class_names: Optional[Sequence[str]],
    preprocessing: Union[Preprocessing, Mapping[str, Any], None],
) -> Optional[str]:
    """Return what the file says about its weights, or None if nothing is known; raise ArgumentError."""
    try:
        metadata = _metadata(source)
        if class_names is not None:
            metadata = replace(metadata, dataset=None, class_names=check_items("class_names", class_names))
        if preprocessing is not None:
            metadata = replace(metadata, preprocessing=_with_fields(metadata.preprocessing, preprocessing))
        text = None if metadata == CheckpointMetadata() else to_text(metadata)
    except ArgumentError:
        raise
    except ValueError as error:
        raise ArgumentError(f"the metadata cannot be saved: {error}", hint="correct the value that is named") from None
    head = arrays.get("linear.weight")
    if metadata.class_names and head is not None and len(metadata.class_names) != len(head):
        raise ArgumentError(
            f"{len(metadata.class_names)} class names for {len(head)} classes",
            expected=len(head),
            actual=len(metadata.class_names),
            hint="pass one name for each output, in their order",
        )
    return text


def _with_fields(known: Optional[Preprocessing], fields: Union[Preprocessing, Mapping[str, Any]]) -> Preprocessing:
    """Return the preprocessing with fields replaced; their values are checked later."""
    if isinstance(fields, Preprocessing):
        return fields
    values = {} if known is None else known._asdict()
    values.update(fields if isinstance(fields, Mapping) else {"preprocessing": fields})
    try:
        return Preprocessing(**values)
    except TypeError as error:
        raise ArgumentError(
            f"preprocessing is not valid: {error}",
            expected=Preprocessing._fields,
            actual=fields,
            hint=f"pass a Preprocessing, or a mapping with some of its fields: {', '.join(Preprocessing._fields)}",
        ) from None


def write_safetensors(stream: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Optional[str] = None) -> None:
    """Write what the safetensors library would, byte for byte, but array by array.

    ``safetensors.numpy.save`` first makes two copies of everything in memory: on B3, 0.9 GB and three times as long.
    Its ``save_file`` makes none, but replaces the target by a file of its own, with mode 600.
    """
    ordered = sorted(_contiguous(arrays).items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: Dict[str, Any] = {} if metadata is None else {"__metadata__": {METADATA_KEY: metadata}}
    end = 0
    for key, array in ordered:
        begin, end = end, end + array.nbytes
        header[key] = {
            "dtype": SAFETENSORS_DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    stream.write(struct.pack("<Q", len(text)) + text)
    for _, array in ordered:
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def _write_pickle(stream: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Optional[str] = None) -> None:
    # Protocol 4 and an OrderedDict are what megengine.save writes, on every Python that it runs on.
    state_dict = _contiguous(arrays)
    if metadata is not None:
        setattr(state_dict, METADATA_KEY, metadata)
    pickle.dump(state_dict, stream, protocol=4)


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> OrderedDict[str, NDArray[Any]]:
    # A subclass of ndarray, such as a memory map, would be pickled as such.
    return OrderedDict((key, np.asarray(array, order="C")) for key, array in arrays.items())


WRITERS: Mapping[str, Callable[[BinaryIO, Mapping[str, NDArray[Any]], Optional[str]], None]] = {
    "safetensors": write_safetensors,
    "megengine": _write_pickle,
    "torch": write_torch,
}
