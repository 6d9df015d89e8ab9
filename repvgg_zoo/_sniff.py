"""What a file is that is not a checkpoint, from its first bytes."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Tuple

SNIFF_BYTES = 512  # how much of the start is enough


class ContentType(NamedTuple):
    """A kind of content, as a noun with its article, and what to do about it.

    ``is_placeholder`` is True for what servers send in place of a file: an error message, a Git LFS pointer, nothing.
    """

    name: str
    hint: str
    is_placeholder: bool
    matches: Callable[[bytes], bool]


def sniff_content_type(head: bytes) -> Optional[ContentType]:
    """Return what a file with these first bytes is, or None if it may be a checkpoint."""
    return next((kind for kind in _CONTENT_TYPES if kind.matches(head[:SNIFF_BYTES])), None)


def _text(head: bytes) -> bytes:
    """The start of a text in lower case; nothing if it is binary.

    The first byte of safetensors may be any, also ``<`` and ``{``: it is that of a length, whose high bytes are zero.
    """
    return b"" if b"\0" in head[:8] else head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()


_DIRECT_LINK = "a link to a page was downloaded instead of the file itself; look for its direct link"
_MESSAGE = "a server sent a message instead of the file; read it, and look for another link"

_CONTENT_TYPES: Tuple[ContentType, ...] = (
    ContentType("an empty file", "download it again", True, lambda head: not head),
    ContentType(
        "an HTML page",
        _DIRECT_LINK,
        True,
        lambda head: _text(head).startswith((b"<!doctype", b"<html", b"<head", b"<body")),
    ),
    ContentType("an XML document", _MESSAGE, True, lambda head: _text(head).startswith(b"<")),
    ContentType(
        "a JSON document", _MESSAGE, True, lambda head: _text(head)[:1] in (b"{", b"[") and b'"' in _text(head)
    ),
    ContentType(
        "a Git LFS pointer",
        "fetch the content with `git lfs pull`",
        True,
        lambda head: _text(head).startswith(b"version https://git-lfs"),
    ),
    ContentType("a gzip file", "unpack it with `gunzip`", False, lambda head: head.startswith(b"\x1f\x8b")),
    ContentType("a bzip2 file", "unpack it with `bunzip2`", False, lambda head: head.startswith(b"BZh")),
    ContentType("an xz file", "unpack it with `unxz`", False, lambda head: head.startswith(b"\xfd7zXZ")),
    ContentType(
        "a tar archive",
        "extract the checkpoint from it; if torch before 0.1.10 wrote it, save it again with a later version",
        False,
        lambda head: head[257:262] == b"ustar",
    ),
    ContentType("an HDF5 file", "save the network's state as safetensors", False, lambda head: head[:4] == b"\x89HDF"),
    ContentType(
        "a single NumPy array",
        "a checkpoint is a dict of arrays by name: save it as safetensors",
        False,
        lambda head: head.startswith(b"\x93NUMPY"),
    ),
)
