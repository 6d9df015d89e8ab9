"""Words of messages."""

from __future__ import annotations

from typing import Optional


def pluralize(count: int, singular: str, plural: Optional[str] = None) -> str:
    """Return a count with its noun.

    >>> from repvgg_zoo._text import pluralize
    >>> pluralize(1, "file"), pluralize(2, "file")
    ('1 file', '2 files')
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
