"""PyTorch's format from before 1.6: five pickles in a row, then the storages one after another.

The pickles are a magic number, the protocol version, properties of the machine, the object, and the storages' keys in
file order. Each storage is its element count (int64) and its elements, in the byte order of the machine that wrote it.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

from .file_buffer import Buffer, MalformedFile
from .pickles import Budget, load, load_plain, resolve
from .torch_tensors import StorageId, Storages, torch_globals

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def is_legacy(data: Buffer) -> bool:
    """Return whether the first pickle is the magic number, in binary or, before protocol 2, in decimal digits."""
    start = data[:40]
    return MAGIC.to_bytes(10, "little") in start or str(MAGIC).encode() in start


def read(data: Buffer) -> Any:
    """Return the payload of a legacy file. Raises MalformedFile and UnsafePickleError."""
    magic, position = load_plain(data, 0)
    version, position = load_plain(data, position)
    machine, position = load_plain(data, position)
    if magic != MAGIC or version != PROTOCOL or not isinstance(machine, dict):
        raise MalformedFile(f"the header of torch's legacy format is not of protocol {PROTOCOL}")
    order = "<" if machine.get("little_endian", True) else ">"

    ranges: Dict[str, Tuple[int, int]] = {}  # key: the first byte and the end of the storage's elements

    def storage_bytes(identity: StorageId) -> Any:
        if identity.key not in ranges:
            raise MalformedFile(f"storage {identity.key[:50]!r} is not in the file")
        start, end = ranges[identity.key]
        return memoryview(data)[start:end]

    storages = Storages(storage_bytes, order, Budget(4 * len(data)))
    value, position = load(data, position, torch_globals(storages), storages.identify)
    keys, position = load_plain(data, position)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise MalformedFile("the list of storages is damaged")
    for key in keys:
        if key not in storages.known or key in ranges:
            raise MalformedFile(f"storage {key[:50]!r} belongs to no tensor or comes twice")
        start = position + 8
        count = int.from_bytes(data[position:start], "little" if order == "<" else "big", signed=True)
        position = start + count * storages.known[key].itemsize
        if count != storages.known[key].numel or position > len(data):
            raise MalformedFile(f"storage {key[:50]!r} is cut off or of another size than its tensors say")
        ranges[key] = start, position
    if position != len(data):
        raise MalformedFile(f"{len(data) - position} bytes follow the last storage")
    return resolve(value)
