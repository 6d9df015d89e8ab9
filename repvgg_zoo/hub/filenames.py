"""File names: the same for a file in a cache, on a mirror, in a bundle and in the repository's hub folder."""

from __future__ import annotations

import hashlib
import re

from ..errors import ArgumentError
from ..registry.specs import FileSpec

KEY_LENGTH = 16
_MAX_LENGTH = 120  # leaves room for the key and for a suffix within the 255 bytes of common file systems
_CACHE_FILENAME = re.compile(r"(u?[0-9a-f]{8,16})-[A-Za-z0-9_+.-]{1,120}")


def cache_filename(file: FileSpec) -> str:
    """Return the name of a file in a cache: a key from its digest, a dash, and its own name sanitized.

    Two files have the same name only if they have the same digest, so names that differ in case alone never collide.
    Raises ArgumentError if the digest is not valid.
    """
    return f"{cache_key(file)}-{sanitize_filename(file.name)}"


def is_cache_filename(name: str) -> bool:
    """Return whether a name could have come from :func:`cache_filename`."""
    return _CACHE_FILENAME.fullmatch(name) is not None and name == name.rstrip(".")


def cache_key(file: FileSpec) -> str:
    """Return the first 16 hex digits of the digest or its prefix; without either, ``u`` and 15 of the source's hash."""
    if file.integrity == "none":
        source = file.sources[0] if file.sources else file.name
        return "u" + hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[: KEY_LENGTH - 1]
    digest = (file.sha256 or file.sha256_prefix or "").lower()
    if re.fullmatch("[0-9a-f]{64}" if file.sha256 else "[0-9a-f]{8,64}", digest) is None:
        raise ArgumentError(
            f"{digest!r} is not a valid SHA-256 digest",
            hint="sha256 takes 64 hex digits, sha256_prefix 8 or more",
            expected="hex digits",
            actual=digest,
        )
    return digest[:KEY_LENGTH]


def sanitize_filename(name: str) -> str:
    """Return a name that is valid on every file system: the last path component, in ASCII, of bounded length.

    >>> from repvgg_zoo.hub.filenames import sanitize_filename
    >>> sanitize_filename("../../etc/pass wd.")
    'pass_wd'
    """
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"[^A-Za-z0-9_+.-]", "_", last)
    if len(plain) > _MAX_LENGTH:
        plain = plain[: _MAX_LENGTH - 20] + plain[-20:]
    return plain.rstrip(".").lstrip(".") or "file"
