"""Zip archives within bounds, for torch's files and NumPy's .npz: members as views, or decompressed and checked.

Members stored uncompressed, as torch and NumPy write them, are views of the buffer; their CRC is not checked, which
would read all of it once more. Deflated ones are decompressed within the bounds of the archive's size.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import IO, Dict, Union, cast

from .file_buffer import Buffer, MalformedFile, UnsupportedFile

# That of a checkpoint with a thousand storages takes 150 kB; reading it takes some 20 bytes of memory for each byte.
MAX_DIRECTORY_BYTES = 1 << 20
LOCAL_HEADER = struct.Struct("<4s22x2H")
MAX_EXPANSION = 4  # deflated weights shrink by a tenth

# What zipfile and zlib raise on damage; ValueError for names that are not UTF-8, RuntimeError for passwords.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    LookupError,
    EOFError,
    RuntimeError,
    OSError,
    ValueError,
    OverflowError,
)


class Archive:
    """The members of a zip archive by name; nothing is ever extracted, so a name is only a key, never a path."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.zip = zipfile.ZipFile(cast(IO[bytes], _BoundedReader(data)))
        self.members: Dict[str, zipfile.ZipInfo] = {}
        packed = 0
        for member in self.zip.infolist():
            if member.filename in self.members:
                raise MalformedFile(f"the zip archive has two members {member.filename[:100]!r}")
            if member.flag_bits & 1:
                raise UnsupportedFile("the zip archive is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UnsupportedFile("the zip archive is compressed by another method than deflate")
            packed += 0 if member.compress_type == zipfile.ZIP_STORED else member.file_size
            self.members[member.filename] = member
        if packed > MAX_EXPANSION * len(data):
            raise UnsupportedFile("it would unpack to many times its size")

    def check(self) -> None:
        """Read every member and compare its CRC; raise MalformedFile, and ZIP_ERRORS, if one is damaged."""
        for name, member in self.members.items():
            # torch writes 0 where it was told not to compute the CRC.
            if member.CRC != 0 and zlib.crc32(self.content(name)) != member.CRC:
                raise MalformedFile(f"the zip archive's member {name[:100]!r} is damaged")

    def content(self, name: str) -> Union[bytes, memoryview]:
        """Return a member's bytes: a view of the buffer if it is stored, decompressed and checked if it is deflated."""
        member = self.members.get(name)
        if member is None:
            raise MalformedFile(f"the zip archive lacks {name[:100]!r}")
        if member.compress_type != zipfile.ZIP_STORED:
            with self.zip.open(member) as stream:
                return stream.read(member.file_size)
        start = member.header_offset
        signature, name_size, extra_size = LOCAL_HEADER.unpack(self.data[start : start + LOCAL_HEADER.size])
        start += LOCAL_HEADER.size + name_size + extra_size
        end = start + member.file_size
        if (
            signature != b"PK\3\4"
            or member.file_size != member.compress_size
            or not 0 <= start <= end <= len(self.data)
        ):
            raise MalformedFile(f"the zip archive's member {name[:100]!r} is damaged")
        return memoryview(self.data)[start:end]


class _BoundedReader(io.RawIOBase):
    """The file as ZipFile reads it, in reads of limited size.

    ZipFile reads the directory at once, and reports a short read as a truncated file. It decompresses members in as
    many reads as that takes.
    """

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self.position, len(self.data))[whence]
        if position < 0:
            raise OSError("a seek before the file's begin")  # what ZipFile expects
        self.position = position
        return position

    def read(self, size: int = -1) -> bytes:
        available = max(0, len(self.data) - self.position)
        size = min(available if size < 0 else size, available, MAX_DIRECTORY_BYTES)
        start, self.position = self.position, self.position + size
        return bytes(self.data[start : self.position])
