"""Read files into private memory on all cores, hashed on the way if asked.

What was read cannot change afterwards, whatever happens to the file; a FileRegion reads when it is asked. A memory map
would follow the file: another writer changes the arrays, and a truncation ends the process with SIGBUS.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Callable, List, Sequence, Tuple, Union

from ._cpu import usable_cores
from ._file_state import FileState
from .errors import CacheError

CHUNK_BYTES = 4 << 20
MAX_THREADS = 8  # reading waits for memory, which a few cores keep busy


class FileRegion:
    """The bytes of an open file from ``offset`` on, read when they are needed; closed with its last user."""

    def __init__(self, descriptor: int, path: Path, offset: int) -> None:
        self.descriptor = descriptor
        self.path = path
        self.offset = offset
        self.state = FileState.of(os.fstat(descriptor))
        self.size = self.state.size - offset
        weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``start`` on; raise CacheError as ``read_into`` does."""
        buffer = memoryview(bytearray(size))
        self.read_into(buffer, start)
        return buffer

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` with the bytes from ``start`` on; raise CacheError if the file is not what it was."""
        try:
            _read_into(self.descriptor, buffer, self.offset + start)
            state = FileState.of(os.fstat(self.descriptor))
        except (OSError, EOFError) as error:
            raise self._error(str(error)) from error
        if state[:-1] != self.state[:-1]:  # all but ctime, which deleting the file sets as well
            raise self._error("another process wrote to it")

    def _error(self, reason: str) -> CacheError:
        return CacheError(
            f"{self.path} changed while it was read: {reason}",
            hint="try again; it is computed again when its content is no longer what was written",
            path=str(self.path),
        )


def read_file(descriptor: int, size: int, offset: int = 0) -> memoryview:
    """Return ``size`` bytes of a file from ``offset`` on, in private memory; raise EOFError if it is shorter."""
    return _read(descriptor, size, offset, hashed=False)[0]


def read_and_hash(descriptor: int, size: int, offset: int = 0) -> Tuple[memoryview, str]:
    """Do the same and return the bytes, and SHA-256 over the SHA-256 of each 4 MB chunk, which all cores compute."""
    return _read(descriptor, size, offset, hashed=True)


class HashingWriter:
    """Writes to a stream, and meanwhile hashes on the other cores what it writes; a context, which ends its threads.

    What is written must not be changed before ``digest`` has returned.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pool = ThreadPoolExecutor(min(usable_cores(), MAX_THREADS))
        self._digests: List[Future[bytes]] = []
        self._chunk: List[memoryview] = []  # the parts of a chunk that is not complete
        self._missing = CHUNK_BYTES  # to complete it

    def write(self, data: Union[bytes, memoryview]) -> None:
        """Write bytes to the stream."""
        rest = memoryview(data)
        while len(rest):
            part, rest = rest[: self._missing], rest[self._missing :]
            self._chunk.append(part)
            self._missing -= len(part)
            if not self._missing:
                self._hash_chunk()
        self._stream.write(data)

    def digest(self) -> str:
        """Return SHA-256 over the SHA-256 of each 4 MB chunk that was written, as ``read_and_hash`` does."""
        if self._chunk:
            self._hash_chunk()
        return _combine([digest.result() for digest in self._digests])

    def _hash_chunk(self) -> None:
        self._digests.append(self._pool.submit(_hash_parts, self._chunk))
        self._chunk, self._missing = [], CHUNK_BYTES

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _hash_parts(parts: Sequence[memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def allocate(size: int) -> memoryview:
    """Return ``size`` writable bytes, all zero."""
    if size < CHUNK_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(bytearray(size))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # which takes no pass of zeros
    with suppress(AttributeError, OSError):  # not Linux, or an old kernel
        memory.madvise(mmap.MADV_HUGEPAGE)  # a page fault for each 4 KB takes a third of the time of reading
    return memoryview(memory)


def _read(descriptor: int, size: int, offset: int, *, hashed: bool) -> Tuple[memoryview, str]:
    buffer = allocate(size)

    def read_chunk(start: int) -> bytes:
        chunk = buffer[start : start + CHUNK_BYTES]
        _read_into(descriptor, chunk, offset + start)
        return hashlib.sha256(chunk).digest() if hashed else b""

    return buffer, _combine(_for_each_chunk(read_chunk, size))


def _for_each_chunk(function: Callable[[int], bytes], size: int) -> List[bytes]:
    """Call a function with the start of each chunk, in several threads; return the results in order."""
    starts = range(0, size, CHUNK_BYTES)
    threads = min(usable_cores(), MAX_THREADS, len(starts))
    if threads > 1 and hasattr(os, "preadv"):
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, starts))
    return [function(start) for start in starts]


def _combine(digests: List[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _read_into(descriptor: int, chunk: memoryview, offset: int) -> None:
    """Fill ``chunk`` with the bytes of a file from ``offset`` on; raise EOFError if it is shorter."""
    position = 0
    while position < len(chunk):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [chunk[position:]], offset + position)
        else:  # Windows and older macOS
            os.lseek(descriptor, offset + position, os.SEEK_SET)
            data = os.read(descriptor, len(chunk) - position)
            count = len(data)
            chunk[position : position + count] = data
        if not count:
            raise EOFError(f"the file ended {len(chunk) - position} bytes early")
        position += count
