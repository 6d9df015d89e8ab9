"""Names on disk: the stored name of a file, the same in a cache, a mirror, a bundle and the repository's hub folder."""

from __future__ import annotations

import hashlib
import re

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.registry.specs import FileSpec

KEY_LENGTH = 16
_NAME_LENGTH = 120  # leaves room for the key and for a suffix within the 255 bytes of common file systems
_STORED = re.compile(r"(u?[0-9a-f]{8,16})-[A-Za-z0-9_+.-]{1,120}")


def cache_filename(file: FileSpec) -> str:
    """The flat name of a file: a key from what proves it, a dash, and its own name made harmless.

    Two files share a stored name only if they share a digest, so names that differ in case alone never collide.
    Raises ArgumentError if the digest is not one.
    """
    return f"{cache_key(file)}-{sanitize_filename(file.name)}"


def is_cache_filename(name: str) -> bool:
    """Whether a name could have come from :func:`cache_filename`."""
    return _STORED.fullmatch(name) is not None and name == name.rstrip(".")


def cache_key(file: FileSpec) -> str:
    """The first 16 hex digits of the digest or its prefix; ``u`` and 15 of the source's digest if there is none."""
    if file.integrity == "none":
        source = file.sources[0] if file.sources else file.name
        return "u" + hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[: KEY_LENGTH - 1]
    digest = (file.sha256 or file.sha256_prefix or "").lower()
    if re.fullmatch("[0-9a-f]{64}" if file.sha256 else "[0-9a-f]{8,64}", digest) is None:
        raise ArgumentError(
            f"{digest!r} is no SHA-256 digest",
            hint="sha256 takes 64 hex digits, sha256_prefix 8 or more",
            expected="hex digits",
            actual=digest,
        )
    return digest[:KEY_LENGTH]


def sanitize_filename(name: str) -> str:
    """A file name that no file system takes amiss: the last path component, in plain ASCII, of bounded length.

    >>> from repvgg_zoo.hub.filenames import sanitize_filename
    >>> sanitize_filename("../../etc/pass wd.")
    'pass_wd'
    """
    last = re.split(r"[/\\]", name)[-1]
    plain = re.sub(r"[^A-Za-z0-9_+.-]", "_", last)
    if len(plain) > _NAME_LENGTH:
        plain = plain[: _NAME_LENGTH - 20] + plain[-20:]
    return plain.rstrip(".").lstrip(".") or "file"
