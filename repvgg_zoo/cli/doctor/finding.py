"""The result of one check of ``repvgg-zoo doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What was checked, its status ("ok", "warn" or "fail"), a description, and what to type if it is not ok."""

    name: str
    status: str
    text: str
    fix: Optional[str] = None


def ok(name: str, text: str) -> Finding:
    """Return the finding for something that works."""
    return Finding(name, OK, text)


def warn(name: str, text: str, fix: Optional[str] = None) -> Finding:
    """Return the finding for something that works with a limitation."""
    return Finding(name, WARN, text, fix)


def fail(name: str, text: str, fix: Optional[str] = None) -> Finding:
    """Return the finding for something that does not work."""
    return Finding(name, FAIL, text, fix)
