"""What a file is that is not a checkpoint, from its first bytes, or from its name if these say nothing."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Tuple

SNIFF_BYTES = 512  # how much of the start is enough


class ContentType(NamedTuple):
    """A kind of content, as a noun with its article, and what to do about it.

    ``is_placeholder`` is True for what servers send in place of a file: an error message, a Git LFS pointer, nothing.
    ``suffixes`` are those of files that are of this kind whatever their first bytes are.
    """

    name: str
    hint: str
    is_placeholder: bool
    matches: Callable[[bytes], bool]
    suffixes: Tuple[str, ...] = ()


def sniff_content_type(head: bytes) -> Optional[ContentType]:
    """Return what a file with these first bytes is, or None if it may be a checkpoint."""
    return next((kind for kind in _CONTENT_TYPES if kind.matches(head[:SNIFF_BYTES])), None)


def content_type_of_suffix(path: str) -> Optional[ContentType]:
    """Return what a file with this name is meant to be, or None if it may be a checkpoint."""
    return next((kind for kind in _CONTENT_TYPES if kind.suffixes and path.lower().endswith(kind.suffixes)), None)


def _text(head: bytes) -> bytes:
    """The start of a text in lower case; nothing if it is binary.

    The first byte of safetensors may be any, also ``<`` and ``{``: it is that of a length, whose high bytes are zero.
    """
    return b"" if b"\0" in head[:8] else head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()


def _binary(head: bytes) -> bytes:
    """The start of a file; nothing if it may be safetensors, which begins with a length and then a brace."""
    return b"" if head[8:9] == b"{" and head[5:8] == bytes(3) else head


def _is_onnx(head: bytes) -> bool:
    """The version of the format, which is above 2, and then one of the other fields of the protobuf."""
    start = _binary(head)[:8]
    return len(start) == 8 and start[0] == 8 and 2 < start[1] < 64 and start[2] in _ONNX_FIELDS and any(start[3:])


_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42\x72"
_DIRECT_LINK = "a link to a page was downloaded instead of the file itself; look for its direct link"
_MESSAGE = "a server sent a message instead of the file; read it, and look for another link"
_EXPORTED = "an exported program has no weights by name: pass the checkpoint that it was exported from"
_PADDLE = "pass the checkpoint of the training, a .pdparams file that paddle.save wrote"

_CONTENT_TYPES: Tuple[ContentType, ...] = (
    ContentType("an empty file", "download it again", True, lambda head: not head),
    ContentType(
        "an HTML page",
        _DIRECT_LINK,
        True,
        lambda head: _text(head).startswith((b"<!doctype", b"<html", b"<head", b"<body")),
    ),
    ContentType(
        "an OpenVINO model", _EXPORTED, False, lambda head: _text(head).startswith(b"<") and b"<net name=" in head
    ),
    ContentType("an XML document", _MESSAGE, True, lambda head: _text(head).startswith(b"<")),
    ContentType(
        "a PaddlePaddle program",
        _PADDLE,
        False,
        lambda head: (
            _text(head).startswith(b'{"base_code":{"magic":"pir"')
            or (_binary(head)[:1] == b"\n" and b"\x08\0\x10" + b"\xff" * 9 + b"\x01" in head[:20])
        ),
        (".pdmodel",),
    ),
    ContentType(
        "a PaddlePaddle inference model's weights",
        f"they have no names: {_PADDLE}",
        False,
        lambda head: head[:16] == bytes(16) and head[17:21] == b"\0\0\0\x08",
        (".pdiparams",),
    ),
    ContentType(
        "the index of a checkpoint's shards",
        'keep its name, which ends in ".index.json", and the shards beside it',
        False,
        lambda head: _text(head).startswith(b"{") and b'"weight_map"' in head,
    ),
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
    ContentType("an ONNX model", _EXPORTED, False, _is_onnx, (".onnx",)),
    ContentType("a TensorFlow Lite model", _EXPORTED, False, lambda head: _binary(head)[4:8] == b"TFL3", (".tflite",)),
    ContentType(
        "a TensorRT engine",
        _EXPORTED,
        False,
        lambda head: head[:4] in (b"ftrt", b"ptrt"),
        (".engine", ".plan", ".trt"),
    ),
    ContentType(
        "a MegEngine model",
        "it is what trace.dump wrote: pass the file that megengine.save wrote of the network's state_dict()",
        False,
        lambda head: _binary(head)[8:12] == b"mgv2" or head[:4] == b"MGBC",
        (".mge",),
    ),
    ContentType(
        "a TensorFlow model",
        "save the network's weights by name as safetensors",
        False,
        lambda head: _binary(head)[:3] == b"\x08\x01\x12" and any(head[3:8]),
        (".pb",),
    ),
    ContentType("a Core ML model", _EXPORTED, False, lambda head: False, (".mlmodel", ".mlpackage")),
    ContentType(
        "an HDF5 file",
        "save the network's state as safetensors",
        False,
        lambda head: head[:4] == b"\x89HDF",
        (".h5", ".hdf5", ".keras"),
    ),
    ContentType(
        "a single NumPy array",
        "a checkpoint is a dict of arrays by name: save it as safetensors",
        False,
        lambda head: head.startswith(b"\x93NUMPY"),
    ),
)
