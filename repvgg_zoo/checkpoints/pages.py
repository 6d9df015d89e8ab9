"""tensors_on_file: tensors whose memory is the very pages of the file that their values lie in; nothing is copied.

MegEngine allocates one large tensor, which is never written to and so takes no memory; the file is mapped over it,
private and writable, and the tensors are views of it. A page comes from the page cache when it is first read, and is
the process's own from the first write on. MegEngine frees the block like any other: glibc had it mapped by itself and
gives it back with ``munmap``, which ends the map of the file as well, so that nobody else ever gets those pages. Where
one of these things is not so (another allocator or system, another device, a file on no disk of this machine) there are
no such tensors, and the caller copies.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np
from megengine import Tensor
from numpy.typing import NDArray

from .._tensors import address_of, unwritten
from .formats.mmap_file import MappedFile

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20  # Linux maps as much at a time where memory and file are aligned alike
# glibc maps a block of this size by itself (DEFAULT_MMAP_THRESHOLD_MAX), unless the heap has a gap as large, which a
# process that freed much may have; what lies in one is held until the gaps are full, or there are too many.
MAPPED_ALONE = 32 << 20
GAPS = 8
MAP_FIXED = 0x10  # include/uapi/asm-generic/mman-common.h
# File systems whose deleted files last as long as they are mapped. On a network's they need not, and whoever then
# touches a page is killed.
LASTING = {
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "XFS",
    0x9123683E: "Btrfs",
    0x2FC12FC1: "ZFS",
    0xF2F52010: "F2FS",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
}


def tensors_on_file(values: Mapping[int, Tuple[NDArray[Any], Tensor]]) -> Dict[int, Tensor]:
    """A tensor for each array that lies in a mapped file just as it is needed; for all of them or for none.

    The tensors beside the arrays, whose dtype and device the new ones get, are of the CPU. The file must never be
    written to again; to delete it, or to put another in its place, is harmless.
    """
    file, places = _places(values)
    if file is None or sys.platform != "linux":
        return {}
    first = min(places.values()) // PAGE * PAGE
    end = max(place + values[index][0].nbytes for index, place in places.items())
    room = _room_on(file, first, end - first, values[min(places)][1])
    if room is None:
        return {}
    made = {}
    for index, place in places.items():
        array = values[index][0]
        number = (place - first) // array.itemsize
        made[index] = room[number : number + array.size].reshape(array.shape)
    return made


def _places(values: Mapping[int, Tuple[NDArray[Any], Tensor]]) -> Tuple[Optional[MappedFile], Dict[int, int]]:
    """A file in which arrays lie, and at which byte each of them begins."""
    files = {index: file for index, (array, _) in values.items() for file in [_file_of(array)] if file is not None}
    if not files:
        return None, {}
    of_first, file = next(iter(files.items()))
    start, like = _address(np.frombuffer(file, np.uint8)), values[of_first][1]
    dtype, device = like.dtype, like.device
    places = {}
    for index, other in files.items():
        array, tensor = values[index]
        place = _address(array) - start
        suits = other is file and array.dtype == tensor.dtype == dtype and tensor.device == device
        if suits and array.flags.c_contiguous and place % array.itemsize == 0:
            places[index] = place
    return (file, places) if places else (None, {})


def _file_of(array: Any) -> Optional[MappedFile]:
    """The file whose map an array is a view of."""
    while isinstance(array, np.ndarray):
        array = array.base
    mapped = array.obj if isinstance(array, memoryview) else array
    return mapped if isinstance(mapped, MappedFile) else None


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]  # array.ctypes makes an object first
    return address


def _room_on(file: MappedFile, first: int, size: int, like: Tensor) -> Optional[Tensor]:
    """A flat tensor of the file's ``size`` bytes from ``first`` on, where a page begins."""
    itemsize = np.dtype(like.dtype).itemsize
    length = -(-size // PAGE) * PAGE
    in_gaps = []
    for _ in range(GAPS):
        block = unwritten((max(length + HUGE_PAGE, MAPPED_ALONE) // itemsize,), like)
        address = address_of(block)
        target = address + (first - address) % HUGE_PAGE
        if _is_mapped_alone(address, target + length):
            break
        in_gaps.append(block)
    else:
        return None
    if not _map_over(target, length, file, first):
        return None
    begin = (target - address) // itemsize
    room = block[begin : begin + size // itemsize]
    # MegEngine makes views of parts; if it copied them, nothing would be gained.
    return room if address_of(room) == target else None


def _is_mapped_alone(address: int, end: int) -> bool:
    """Whether what lies there is a block that glibc mapped for it alone, which ``free`` gives back with ``munmap``.

    glibc writes two numbers before a block: by how much it was moved to be aligned, and its size, to which such a block
    adds 2. Both together are whole pages then and only then, which is how ``free`` itself checks them.
    """
    if address % PAGE < 16:
        return False
    moved, size = (ctypes.c_size_t.from_address(address - before).value for before in (16, 8))
    start = address - 16 - moved
    whole = moved + size - 2
    return start % PAGE == 0 and whole % PAGE == 0 and start + whole >= end


def _map_over(target: int, length: int, file: MappedFile, first: int) -> bool:
    """Maps the file there, if it still is the same file and lies on a disk of this machine."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != file.identity or not _is_lasting(descriptor):
            return False
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        # Should this fail half-way, there may be a hole where the block was, which munmap does not mind.
        access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
        return bool(libc.mmap(target, length, access, kind, descriptor, first) == target)
    finally:
        os.close(descriptor)


def _is_lasting(descriptor: int) -> bool:
    answer = (ctypes.c_long * 32)()  # struct statfs begins with the type
    return ctypes.CDLL(None).fstatfs(descriptor, answer) == 0 and answer[0] in LASTING
