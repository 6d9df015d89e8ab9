"""TarShard: a tar file in webdataset's convention, read once from beginning to end.

The files of one sample have one name up to the first dot of the base name, and are adjacent: ``a/0001.jpg``,
``a/0001.cls``. Python's tarfile takes damage behind the first file for the end of the archive, so the end is checked
here; nothing is ever written to the disk.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO, Dict, Iterator, Optional, Set, Tuple, cast

from .._json import parse_json
from .._redact import redact
from ..errors import ArgumentError
from ..registry.model_or_file import IMAGE_SUFFIXES
from .remote import open_binary, read_errors, size_of, where
from .samples import Sample

BLOCK = tarfile.BLOCKSIZE
READ_BYTES = 1 << 20
MAX_MEMBER_BYTES = 1 << 28
MAX_LABEL_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of one member: long names and other extensions
IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
LABELS = ("cls", "json")
JSON_LABELS = ("label", "cls", "class", "class_name", "synset", "wnid")


@dataclass(frozen=True)
class TarShard:
    """The samples of one tar file, at a path or a URL."""

    name: str
    path: str
    prefix: str = ""

    @property
    def count(self) -> Optional[int]:
        """None: it is not known before all samples are read."""
        return None

    def __iter__(self) -> Iterator[Sample]:
        key: Optional[str] = None
        parts: Dict[str, bytes] = {}
        done: Set[str] = set()
        for name, extension, data in self._members():
            if name != key:
                if key is not None:
                    yield from self._sample(key, parts)
                    done.add(key)
                if name in done:
                    raise self._error(f"has files of {name} that are not adjacent", hint="write it sorted by name")
                key, parts = name, {}
            if extension in parts:
                raise self._error(f"has {name}.{extension} twice")
            parts[extension] = data
        if key is not None:
            yield from self._sample(key, parts)
        elif not done:
            raise self._error("has no images", hint=f"images end in {', '.join(IMAGE_SUFFIXES)}")

    def digest(self) -> str:
        """Return a SHA-256 of the name and the size."""
        return hashlib.sha256(f"{self.name}\0{size_of(self.path)}".encode("utf-8", "surrogateescape")).hexdigest()

    def split(self, size: int) -> Tuple[TarShard, ...]:
        """Return the shard itself: a tar file is read in one go."""
        return (self,)

    def _members(self) -> Iterator[Tuple[str, str, bytes]]:
        """Yield the key, the extension and the content of each image and label."""
        with read_errors(self.path), open_binary(self.path) as file:
            blocks = _Blocks(file)
            try:
                stream = cast(BinaryIO, blocks)  # all that tarfile needs of one
                archive = tarfile.open(fileobj=stream, mode="r|", bufsize=READ_BYTES)  # noqa: SIM115
                while True:
                    blocks.allow(MAX_HEADER_BYTES)
                    member = archive.next()
                    if member is None:
                        break
                    archive.members = []  # type: ignore[attr-defined]  # it would remember every one
                    if member.isdir():
                        continue
                    self._check(member)
                    blocks.allow(member.size + MAX_HEADER_BYTES)
                    base = posixpath.basename(member.name)
                    if base.startswith((".", "__")):  # macOS's resource forks, webdataset's own files
                        continue
                    stem, _, extension = base.partition(".")
                    extension = extension.lower()
                    if extension in IMAGES or extension in LABELS:
                        if extension in LABELS and member.size > MAX_LABEL_BYTES:
                            raise self._error(f"has {member.size} bytes in {member.name}", actual=member.size)
                        content = archive.extractfile(member)
                        assert content is not None
                        yield posixpath.join(posixpath.dirname(member.name), stem), extension, content.read()
            except (tarfile.TarError, EOFError) as error:
                raise self._error(f"is not a whole tar file: {error}") from error
            if not blocks.is_end(archive.offset):
                raise self._error(f"is damaged or truncated after {archive.offset} bytes", actual=archive.offset)

    def _check(self, member: tarfile.TarInfo) -> None:
        if not member.isreg() or member.issparse():
            kind = "a link" if member.islnk() or member.issym() else "not a plain file"
            raise self._error(f"has {member.name}, which is {kind}", hint="write files into it, tar --dereference")
        if member.size > MAX_MEMBER_BYTES:
            raise self._error(
                f"has {member.name} of {member.size} bytes", expected=f"at most {MAX_MEMBER_BYTES}", actual=member.size
            )

    def _sample(self, key: str, parts: Dict[str, bytes]) -> Iterator[Sample]:
        images = [extension for extension in parts if extension in IMAGES]
        if len(images) > 1:
            raise self._error(f"has {len(images)} images for {key}: {', '.join(images)}")
        if images:
            yield Sample(self.prefix + key, parts[images[0]], self._label(key, parts))
        elif "cls" in parts:
            raise self._error(f"has a label and no image for {key}")

    def _label(self, key: str, parts: Dict[str, bytes]) -> Optional[str]:
        if "cls" in parts:
            try:
                label = parts["cls"].decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                label = ""
            if not label:
                raise self._error(f"has no label in {key}.cls", hint="write an index or a class name into it")
            return label
        try:
            values = parse_json(parts["json"]) if "json" in parts else None
        except ValueError as error:
            raise self._error(f"has {key}.json, which is not valid JSON: {error}") from None
        if isinstance(values, dict):
            values = next((values[name] for name in JSON_LABELS if name in values), None)
        return str(values) if isinstance(values, (str, int)) and not isinstance(values, bool) else None

    def _error(self, problem: str, **data: Any) -> ArgumentError:
        hint = data.pop("hint", "write it again, with the files of a sample one after the other")
        return ArgumentError(f"{redact(self.path)} {problem}", hint=hint, **where(self.path), **data)


class _Blocks:
    """A stream for tarfile that reads whole blocks, remembers the last ones, and stops where a header is too long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = self._stop = 0  # of the last blocks that were read
        self._last = b""
        self._limit = MAX_HEADER_BYTES + READ_BYTES

    def allow(self, size: int) -> None:
        """Let so many bytes be read from here on, and what tarfile reads ahead."""
        self._limit = self._stop + size + READ_BYTES

    def read(self, size: int) -> bytes:
        pieces = []
        while size > 0:
            piece = self._file.read(size)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        data = b"".join(pieces)
        if data:
            self._start, self._stop, self._last = self._stop, self._stop + len(data), data
        if self._stop > self._limit:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return data

    def is_end(self, offset: int) -> bool:
        """Return whether the block at an offset is one of zeros, with which every archive ends."""
        first = offset - self._start
        return first >= 0 and self._last[first : first + BLOCK] == bytes(BLOCK)
