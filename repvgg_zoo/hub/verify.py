"""Compare what arrived with what the registry states."""

from __future__ import annotations

from typing import Optional

from .._sniff import sniff_content_type
from ..registry.specs import FileSpec


def digest_matches(file: FileSpec, sha256: str) -> bool:
    """Return whether a digest is the one that the registry states; True if it states none."""
    if file.sha256:
        return sha256 == file.sha256.lower()
    return sha256.startswith((file.sha256_prefix or "").lower())


def expected_digest(file: FileSpec) -> Optional[str]:
    """Return the digest that the registry states, or a prefix with an ellipsis, or None."""
    if file.sha256:
        return file.sha256.lower()
    return f"{file.sha256_prefix.lower()}…" if file.sha256_prefix else None


def sniff_placeholder(head: bytes) -> Optional[str]:
    """Return what a server sent in place of a file, such as "an HTML page", from the first bytes; None for a file."""
    kind = sniff_content_type(head)
    return kind.name if kind is not None and kind.is_placeholder else None
