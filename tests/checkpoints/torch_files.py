"""Writes the byte streams that PyTorch, MegEngine and PaddlePaddle write, without any of them.

Pickles are assembled from opcodes, so that a test can also write what no honest writer would. tests/peers compares the
readers with files of the real writers; here the point is to bend them.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_CLASSES = {
    "f2": "HalfStorage",
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "i8": "LongStorage",
    "u1": "ByteStorage",
    "bf": "BFloat16Storage",
}


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(items: Dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(key: str, code: str, numel: int, view: Optional[bytes] = None, legacy: bool = False) -> bytes:
    parts = [text("storage"), name("torch", STORAGE_CLASSES[code]), text(key), text("cpu"), integer(numel)]
    if legacy:
        parts.append(view or b"N")
    return group(*parts) + b"Q"


def tensor(where: bytes, offset: int, size: Sequence[int], stride: Sequence[int]) -> bytes:
    arguments = [where, integer(offset), group(*map(integer, size)), group(*map(integer, stride))]
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + group(*arguments, b"\x89", name("collections", "OrderedDict") + b")R")
        + b"R"
    )


def zip_file(
    body: bytes,
    storages: Dict[str, bytes],
    root: str = "archive",
    extra: Iterable[Tuple[str, bytes]] = (),
    method: int = 0,
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(f"{root}/data.pkl", body)
        for key, raw in storages.items():
            archive.writestr(f"{root}/data/{key}", raw)
        for member, raw in extra:
            archive.writestr(member, raw)
    return stream.getvalue()


def legacy_file(
    body: bytes, storages: Dict[str, Tuple[int, bytes]], little: bool = True, keys: Optional[Any] = None
) -> bytes:
    parts = [
        pickle.dumps(MAGIC, 2),
        pickle.dumps(1001, 2),
        pickle.dumps({"protocol_version": 1001, "little_endian": little}, 2),
    ]
    parts += [body, pickle.dumps(list(storages) if keys is None else keys, 2)]
    for count, raw in storages.values():
        parts.append(struct.pack("<q" if little else ">q", count) + raw)
    return b"".join(parts)


VALUES = np.arange(24, dtype="<f4")


def good_zip(**options: Any) -> bytes:
    """weight: a transposed view of a storage of 24 numbers; shared: its last six."""
    where = storage("0", "f4", 24)
    state = {"weight": tensor(where, 0, (4, 6), (1, 4)), "shared": tensor(where, 18, (6,), (1,))}
    return zip_file(whole(mapping(state)), {"0": VALUES.tobytes()}, **options)


def good_legacy(little: bool = True) -> bytes:
    where = storage("94", "f4", 24, legacy=True)
    view = storage("94", "f4", 24, group(text("95"), integer(18), integer(6)), legacy=True)
    state = {"weight": tensor(where, 0, (4, 6), (1, 4)), "shared": tensor(view, 0, (6,), (1,))}
    raw = VALUES.astype("<f4" if little else ">f4").tobytes()
    return legacy_file(whole(mapping(state)), {"94": (24, raw)}, little)


def arrays() -> OrderedDict[str, Any]:
    return OrderedDict(weight=np.asfortranarray(VALUES.reshape(4, 6)), half=np.float16([1, 2]), count=np.int64(3))


def good_megengine(protocol: int = 4) -> bytes:
    return pickle.dumps(arrays(), protocol)


class _SavedTensor:
    """paddle.save reduces a tensor to the call of tuple() on its internal name and its array."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return tuple, (("param_0", self.value),)


def good_paddle(protocol: int = 4, marked: bool = True) -> bytes:
    state: Dict[str, Any] = {"weight": VALUES.reshape(4, 6), "_mean": VALUES[:6]}
    if marked:
        return pickle.dumps({key: _SavedTensor(value) for key, value in state.items()}, protocol)
    return pickle.dumps({**state, "StructuredToParameterName@@": dict.fromkeys(state, "param_0")}, protocol)


def good_safetensors() -> bytes:
    from safetensors.numpy import save

    return save({"weight": VALUES.reshape(4, 6), "half": np.float16([1, 2])}, metadata={"format": "np"})


def safetensors_file(header: bytes, body: bytes = b"", size: Optional[int] = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + body
