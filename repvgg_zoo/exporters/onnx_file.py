"""ONNX files: a graph encoded as protobuf, and the parts of a file that this package reads again.

The message types and field numbers are those of onnx.proto, which are fixed for good. Weights are written from where
they are, one after the other, so memory does not grow by them.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple, Union

import numpy as np

from .._files import open_regular_file
from ..errors import ArgumentError, CheckpointFormatError, PathLike
from .graph import Attribute, Graph
from .report import TensorInfo

PRODUCER = "repvgg_zoo"
OPSET, IR_VERSION = 17, 8  # supported by every runtime of the last years; ONNX Runtime 1.19 stops at IR version 10
MAX_BYTES = (1 << 31) - 1  # of a protobuf message
MAX_FIELDS = 100_000  # that are read of one file; RepVGGplus_L2pse has 2,000
MAX_TEXT_BYTES = 1 << 22  # of one entry of the metadata
CHUNK_BYTES = 1 << 20

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
ATTRIBUTE_TYPES = {float: 1, int: 2, tuple: 7}

# Messages are lists of these until they are written: bytes, or arrays whose bytes follow.
Chunks = List[Union[bytes, Any]]


class OnnxSummary(NamedTuple):
    """What ``read_onnx`` returns: operators by (type, output), arrays by name (dtype, shape, CRC-32), metadata."""

    ir_version: int
    opset: int
    producer: str
    inputs: Tuple[TensorInfo, ...]
    outputs: Tuple[TensorInfo, ...]
    nodes: Tuple[Tuple[str, str], ...]
    initializers: Mapping[str, Tuple[str, Tuple[int, ...], int]]
    metadata: Mapping[str, str]


def write_onnx(stream: BinaryIO, graph: Graph, *, producer_version: str, metadata: Mapping[str, str], doc: str) -> None:
    """Write a model; the same graph gives the same bytes. Raises ArgumentError for one of more than 2 GiB."""
    chunks = _model(graph, producer_version, metadata, doc)
    size = _size(chunks)
    if size > MAX_BYTES:
        raise ArgumentError(
            f"the model would have {size} bytes, and an ONNX file at most {MAX_BYTES}",
            expected=MAX_BYTES,
            actual=size,
            hint="export the deploy form, which is the smaller one",
        )
    for chunk in chunks:
        stream.write(chunk if isinstance(chunk, bytes) else _raw(chunk))


def summarize(graph: Graph, metadata: Mapping[str, str]) -> OnnxSummary:
    """Return what ``read_onnx`` must find in the file of this graph."""
    initializers = {
        name: (array.dtype.name, tuple(array.shape), zlib.crc32(_raw(array)))
        for name, array in graph.initializers.items()
    }
    nodes = tuple((node.op_type, node.output) for node in graph.nodes)
    inputs, outputs = tuple(graph.inputs), tuple(graph.outputs)
    return OnnxSummary(IR_VERSION, OPSET, PRODUCER, inputs, outputs, nodes, initializers, dict(metadata))


# Encoding ----------------------------------------------------------------------------------------------------


def _model(graph: Graph, producer_version: str, metadata: Mapping[str, str], doc: str) -> Chunks:
    return [
        *_int(1, IR_VERSION),
        *_text(2, PRODUCER),
        *_text(3, producer_version),
        *_text(6, doc),
        *_message(7, _graph(graph)),
        *_message(8, _int(2, OPSET)),
        *(chunk for key, value in metadata.items() for chunk in _message(14, [*_text(1, key), *_text(2, value)])),
    ]


def _graph(graph: Graph) -> Chunks:
    chunks: Chunks = []
    for node in graph.nodes:
        inputs = [chunk for name in node.inputs for chunk in _text(1, name)]
        attributes = [chunk for item in node.attributes.items() for chunk in _message(5, _attribute(*item))]
        names = [*_text(2, node.output), *_text(3, node.output), *_text(4, node.op_type)]
        chunks += _message(1, [*inputs, *names, *attributes])
    chunks += _text(2, graph.name)
    for name, array in graph.initializers.items():
        dims = [chunk for size in array.shape for chunk in _int(1, size)]
        header = [*dims, *_int(2, DTYPES[array.dtype.name]), *_text(8, name), _tag(9, BYTES), _varint(array.nbytes)]
        chunks += _message(5, [*header, array])
    for field, values in ((11, graph.inputs), (12, graph.outputs)):
        for value in values:
            chunks += _message(field, _value_info(value))
    return chunks


def _attribute(name: str, value: Attribute) -> Chunks:
    kind = _int(20, ATTRIBUTE_TYPES[type(value)])
    if isinstance(value, float):
        return [*_text(1, name), _tag(2, FIXED32), struct.pack("<f", value), *kind]
    if isinstance(value, int):
        return [*_text(1, name), *_int(3, value), *kind]
    return [*_text(1, name), *(chunk for item in value for chunk in _int(8, item)), *kind]


def _value_info(value: TensorInfo) -> Chunks:
    dims: Chunks = []
    for size in value.shape:
        dims += _message(1, _text(2, size) if isinstance(size, str) else _int(1, size))
    tensor = [*_int(1, DTYPES[value.dtype]), *_message(2, dims)]
    return [*_text(1, value.name), *_message(2, _message(1, tensor))]


def _message(field: int, chunks: Chunks) -> Chunks:
    return [_tag(field, BYTES) + _varint(_size(chunks)), *chunks]


def _text(field: int, text: str) -> Chunks:
    data = text.encode()
    return [_tag(field, BYTES) + _varint(len(data)) + data]


def _int(field: int, value: int) -> Chunks:
    return [_tag(field, VARINT) + _varint(value)]


def _tag(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    assert value >= 0
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _size(chunks: Chunks) -> int:
    return sum(len(chunk) if isinstance(chunk, bytes) else chunk.nbytes for chunk in chunks)


def _raw(array: Any) -> Any:
    """Return the values as bytes in the order of the format, without a copy where they are so already."""
    values = np.ascontiguousarray(array)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


# Decoding ----------------------------------------------------------------------------------------------------


def read_onnx(path: PathLike, *, checksums: bool = True) -> OnnxSummary:
    """Return the structure of a file and, unless told not to, the checksums of its arrays.

    Fields that this package does not write are skipped. Raises CheckpointFormatError for a file that is not ONNX, is
    damaged, or has more than a bounded number of fields, and OSError.
    """
    with io.BufferedReader(open_regular_file(path)) as stream:
        try:
            return _Reader(stream, checksums).read()
        except (ValueError, struct.error) as error:
            raise CheckpointFormatError(
                f"{path} is not a valid ONNX file: {error}", path=path, hint="export the network again"
            ) from None


class _Span(NamedTuple):
    """Where the content of a field of bytes is in the file."""

    start: int
    size: int


Value = Union[int, bytes, _Span]


class _Reader:
    def __init__(self, stream: BinaryIO, checksums: bool) -> None:
        self._stream = stream
        self._checksums = checksums
        self._fields_left = MAX_FIELDS
        self._size = stream.seek(0, 2)

    def read(self) -> OnnxSummary:
        model = self._message(_Span(0, self._size), {1: VARINT, 2: BYTES, 7: BYTES, 8: BYTES, 14: BYTES})
        if not model[7] or not model[1]:
            raise ValueError("it has no graph")
        opsets = [self._message(span, {1: BYTES, 2: VARINT}) for span in model[8]]
        # The domain of the standard operators is the empty text.
        opset = max([item[2][0] for item in opsets if item[2] and not self._texts(item[1])], default=0)
        entries = [self._message(span, {1: BYTES, 2: BYTES}) for span in model[14]]
        metadata = {self._one_text(entry[1]): self._one_text(entry[2]) for entry in entries}
        graph = self._message(model[7][0], {1: BYTES, 5: BYTES, 11: BYTES, 12: BYTES})
        nodes = [self._message(span, {2: BYTES, 4: BYTES}) for span in graph[1]]
        return OnnxSummary(
            ir_version=model[1][0],
            opset=opset,
            producer=self._one_text(model[2]),
            inputs=tuple(map(self._value_info, graph[11])),
            outputs=tuple(map(self._value_info, graph[12])),
            nodes=tuple((self._one_text(node[4]), self._one_text(node[2])) for node in nodes),
            initializers=dict(map(self._initializer, graph[5])),
            metadata=metadata,
        )

    def _initializer(self, span: _Span) -> Tuple[str, Tuple[str, Tuple[int, ...], int]]:
        tensor = self._message(span, {1: VARINT, 2: VARINT, 8: BYTES, 9: BYTES})
        names = {number: name for name, number in DTYPES.items()}
        dtype = names.get(tensor[2][0] if tensor[2] else 0, "another type")
        checksum = self._crc32(tensor[9][0]) if tensor[9] and self._checksums else 0
        return self._one_text(tensor[8]), (dtype, tuple(tensor[1]), checksum)

    def _value_info(self, span: _Span) -> TensorInfo:
        info = self._message(span, {1: BYTES, 2: BYTES})
        kind = self._message(info[2][0], {1: BYTES}) if info[2] else {1: []}
        tensor = self._message(kind[1][0], {1: VARINT, 2: BYTES}) if kind[1] else {1: [], 2: []}
        shape = self._message(tensor[2][0], {1: BYTES}) if tensor[2] else {1: []}
        dims = [self._message(dim, {1: VARINT, 2: BYTES}) for dim in shape[1]]
        names = {number: name for name, number in DTYPES.items()}
        return TensorInfo(
            self._one_text(info[1]),
            names.get(tensor[1][0] if tensor[1] else 0, "another type"),
            tuple(dim[1][0] if dim[1] else self._one_text(dim[2]) for dim in dims),
        )

    def _message(self, span: _Span, kinds: Mapping[int, int]) -> Dict[int, List[Any]]:
        """Return the values of these fields of a message, by field."""
        values: Dict[int, List[Any]] = {field: [] for field in kinds}
        for field, wire_type, value in self._fields(span):
            if field in kinds:
                if wire_type != kinds[field]:
                    raise ValueError(f"field {field} has wire type {wire_type}")
                values[field].append(value)
        return values

    def _fields(self, span: _Span) -> Iterator[Tuple[int, int, Value]]:
        position, end = span.start, span.start + span.size
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, end)
            field, wire_type = tag >> 3, tag & 7
            value: Value
            if wire_type == VARINT:
                value, position = self._varint(position, end)
            elif wire_type == BYTES:
                size, position = self._varint(position, end)
                value, position = _Span(position, size), position + size
            elif wire_type in (FIXED32, FIXED64):
                size = 4 if wire_type == FIXED32 else 8
                value, position = self._read(_Span(position, size)), position + size
            else:
                raise ValueError(f"there is no wire type {wire_type}")
            if position > end:
                raise ValueError("a field ends behind the message that it is in")
            yield field, wire_type, value

    def _varint(self, position: int, end: int) -> Tuple[int, int]:
        data = self._read(_Span(position, min(10, end - position)))
        value = 0
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, position + index + 1
        raise ValueError("a number has no end")

    def _read(self, span: _Span) -> bytes:
        self._stream.seek(span.start)
        data = self._stream.read(span.size)
        if len(data) < span.size:
            raise ValueError("it ends too early")
        return data

    def _texts(self, spans: Sequence[_Span]) -> List[str]:
        if any(span.size > MAX_TEXT_BYTES for span in spans):
            raise ValueError(f"a text has more than {MAX_TEXT_BYTES} bytes")
        return [self._read(span).decode() for span in spans]

    def _one_text(self, spans: Sequence[_Span]) -> str:
        return self._texts(spans[:1])[0] if spans else ""

    def _crc32(self, span: _Span) -> int:
        checksum = 0
        for start in range(0, span.size, CHUNK_BYTES):
            chunk = self._read(_Span(span.start + start, min(CHUNK_BYTES, span.size - start)))
            checksum = zlib.crc32(chunk, checksum)
        return checksum
