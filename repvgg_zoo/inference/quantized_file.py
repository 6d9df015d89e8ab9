"""The file of a quantized network: safetensors with int8 kernels, float scales, and a JSON text about them.

Keys are those of the canonical deploy form: ``stage1.0.rbr_reparam.weight`` is int8 where a block is quantized, with
``scale``, ``center_shift``, ``identity`` and ``input_scale`` beside its ``bias``. The text is that of any checkpoint of
ours (``checkpoints.metadata``), which other versions read, with one more field: ``quantization``.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_path
from .._atomic import atomic_write
from .._files import open_regular_file
from ..checkpoints import CheckpointMetadata
from ..checkpoints.formats import read_file
from ..checkpoints.formats.safetensors_file import MAX_HEADER_BYTES
from ..checkpoints.metadata import METADATA_KEY, QUANTIZATION, from_text, parse_text, to_text
from ..checkpoints.save import write_safetensors
from ..errors import ArgumentError, CheckpointFormatError, PathLike
from .ir import ConvLayer, LinearWeights, SEWeights, state_error
from .quantization_report import QuantizationReport, from_plain, to_plain
from .quantized import QuantizedConvLayer, QuantizedWeights, check_quantized_layers

VERSION = 1
SUFFIX = ".safetensors"
MAX_LAYERS = 4000
MAX_STEP = 64  # stride or dilation: more would make the padding larger than any image
MAX_SIDE = 1 << 14  # of an image
NAME = re.compile(r"[A-Za-z0-9_. ]{1,100}")
FIELD = re.compile(rf'\\"{QUANTIZATION}\\"\s*:\s*\{{'.encode())  # in JSON text within the header, which is JSON
SE_POSITIONS = {"se": False, "post_se": True}  # by key: whether it stands after the block's ReLU


class QuantizedContent(NamedTuple):
    """What is in a file."""

    weights: QuantizedWeights
    report: QuantizationReport
    image_size: Tuple[int, int]
    metadata: CheckpointMetadata


def check_target(path: Path) -> None:
    """Raise ArgumentError for a path where no file of a quantized network can be written."""
    if path.suffix.lower() != SUFFIX:
        raise ArgumentError(
            f"{path.name!r} does not end in {SUFFIX}", path=path, expected=SUFFIX, hint=f"end the name in {SUFFIX}"
        )
    if not path.parent.is_dir():
        raise ArgumentError(f"{path.parent} is not a folder", path=path, hint="create the folder first")


def write_quantized(
    path: Path,
    weights: QuantizedWeights,
    report: QuantizationReport,
    image_size: Tuple[int, int],
    metadata: CheckpointMetadata,
) -> None:
    """Write a quantized network; raise ArgumentError for a path that cannot be one of its files."""
    check_target(path)
    arrays: Dict[str, NDArray[Any]] = {}
    blocks = []
    for block, layer in zip(report.blocks, weights.layers):
        arrays.update(block_arrays(block.name, layer))
        blocks.append(_Block(block.name, layer.stride, layer.dilation, layer.feature)._asdict())
    if weights.head is not None:
        arrays.update(linear_arrays("linear", weights.head))
    quantization = {"version": VERSION, "image_size": image_size, "blocks": blocks, "report": to_plain(report)}
    text = json.dumps({**json.loads(to_text(metadata)), QUANTIZATION: quantization}, allow_nan=False)
    atomic_write(path, lambda stream: write_safetensors(stream, arrays, text))


def is_quantized_file(path: PathLike) -> bool:
    """Return whether a path is the file of a quantized network, by its header alone."""
    with suppress(OSError, ValueError), open_regular_file(check_path("the path", path)) as stream:
        size = int.from_bytes(stream.read(8), "little")
        return size <= MAX_HEADER_BYTES and FIELD.search(stream.read(size)) is not None
    return False


def read_quantized(path: Path) -> QuantizedContent:
    """Return what ``write_quantized`` wrote, checked as a whole.

    Raises CheckpointFormatError and StateError.
    """
    _, payload = read_file(path)
    text = payload.get(METADATA_KEY) if isinstance(payload, dict) else None
    if not isinstance(text, str) or QUANTIZATION not in text:
        raise CheckpointFormatError(
            f"{path} is not a quantized network",
            path=path,
            damaged=False,
            hint="quantize writes such a file: quantize(name, images).save(path)",
        )
    try:
        metadata = from_text(text)
        values = parse_text(text)[QUANTIZATION]
        if values["version"] != VERSION:
            raise ValueError(f"it is of version {values['version']!r:.20}, and this program reads {VERSION}")
        height, width = (_number(side, MAX_SIDE) for side in values["image_size"])
        blocks = [_Block.of(block) for block in values["blocks"][:MAX_LAYERS]]
        report = from_plain(values["report"])
        if [block.name for block in report.blocks] != [block.name for block in blocks]:
            raise ValueError("its report is about other blocks")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointFormatError(
            f"{path}: what the file says about its quantization is not valid: {error}",
            path=path,
            hint="quantize the network again, and save it with this version of repvgg-zoo",
        ) from error
    arrays = {key: array for key, array in payload.items() if isinstance(array, np.ndarray)}
    return QuantizedContent(_weights(arrays, blocks, path), report, (height, width), metadata)


class _Block(NamedTuple):
    """What the arrays of a block do not say."""

    name: str
    stride: int
    dilation: int
    feature: Optional[str]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> _Block:
        """Return the block of a JSON object; raise ValueError, TypeError or KeyError."""
        name, feature = values["name"], values["feature"]
        for text in (name, "feature" if feature is None else feature):
            if not NAME.fullmatch(text):
                raise ValueError(f"{text!r:.40} is not the name of a block or a feature")
        return cls(name, _number(values["stride"], MAX_STEP), _number(values["dilation"], MAX_STEP), feature)


def _number(value: Any, maximum: int) -> int:
    if type(value) is not int or not 1 <= value <= maximum:
        raise ValueError(f"{value!r:.40} is not a number of 1 to {maximum}")
    return value


def block_arrays(name: str, layer: Union[ConvLayer, QuantizedConvLayer]) -> Dict[str, NDArray[Any]]:
    """Return a block's arrays by key."""
    key = f"{name}.rbr_reparam"
    kernel = layer.kernel[0] if layer.groups == 1 else layer.kernel
    arrays = {f"{key}.weight": kernel, f"{key}.bias": layer.bias}
    if isinstance(layer, QuantizedConvLayer):
        arrays[f"{key}.scale"] = layer.kernel_scale
        arrays[f"{key}.center_shift"] = layer.center_shift
        arrays[f"{key}.input_scale"] = np.array(layer.input_scale, np.float32)
        if layer.identity is not None:
            arrays[f"{key}.identity"] = layer.identity
    if layer.se is not None:
        position = next(key for key, after in SE_POSITIONS.items() if after == layer.se.after_relu)
        arrays.update(linear_arrays(f"{name}.{position}.down", layer.se.down))
        arrays.update(linear_arrays(f"{name}.{position}.up", layer.se.up))
    return arrays


def linear_arrays(key: str, linear: LinearWeights) -> Dict[str, NDArray[Any]]:
    """Return a linear layer's arrays by key."""
    return {f"{key}.weight": linear.weight, f"{key}.bias": linear.bias}


def _weights(payload: Mapping[str, NDArray[Any]], blocks: Sequence[_Block], path: Path) -> QuantizedWeights:
    """Return the network of a file's arrays, as copies; raise StateError unless they are exactly the ones needed."""
    arrays = _Arrays(payload)
    layers = tuple(_layer(arrays, block) for block in blocks)
    head = arrays.linear("linear") if "linear.weight" in payload else None
    unexpected = sorted(arrays.rest)
    problems = [*(f"missing: {key}" for key in arrays.missing), *(f"unexpected: {key}" for key in unexpected)]
    if problems:
        raise state_error(problems, path=path, missing=arrays.missing, unexpected=unexpected)
    weights = QuantizedWeights(layers, head)
    check_quantized_layers(weights, path=path)
    return weights


class _Arrays:
    """The arrays of a file: those not yet taken are the ``rest``, and what was not there is ``missing``."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.rest = dict(arrays)
        self.missing: List[str] = []

    def take(self, key: str) -> NDArray[Any]:
        """Return a copy of an array, which is aligned and not a part of the file's buffer."""
        if key not in self.rest:
            self.missing.append(key)
            return np.zeros(0, np.float32)
        return self.rest.pop(key).copy()

    def linear(self, key: str) -> LinearWeights:
        """Return a linear layer."""
        return LinearWeights(self.take(f"{key}.weight"), self.take(f"{key}.bias"))


def _layer(arrays: _Arrays, block: _Block) -> Union[ConvLayer, QuantizedConvLayer]:
    key = f"{block.name}.rbr_reparam"
    kernel, bias = arrays.take(f"{key}.weight"), arrays.take(f"{key}.bias")
    geometry: Dict[str, Any] = {
        "kernel": kernel if kernel.ndim == 5 else kernel[None],
        "bias": bias,
        "stride": block.stride,
        "dilation": block.dilation,
        "feature": block.feature,
        "name": block.name,
        "se": _se(arrays, block.name),
    }
    if f"{key}.scale" not in arrays.rest:
        return ConvLayer(**geometry)
    input_scale = arrays.take(f"{key}.input_scale")
    return QuantizedConvLayer(
        **geometry,
        kernel_scale=arrays.take(f"{key}.scale"),
        center_shift=arrays.take(f"{key}.center_shift"),
        identity=arrays.take(f"{key}.identity") if f"{key}.identity" in arrays.rest else None,
        input_scale=float(input_scale) if input_scale.shape == () else float("nan"),
    )


def _se(arrays: _Arrays, name: str) -> Optional[SEWeights]:
    for position, after_relu in SE_POSITIONS.items():
        key = f"{name}.{position}"
        if f"{key}.down.weight" in arrays.rest:
            return SEWeights(arrays.linear(f"{key}.down"), arrays.linear(f"{key}.up"), after_relu)
    return None
