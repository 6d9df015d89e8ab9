"""What one check of ``repvgg-zoo doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is ("ok", "warn" or "fail"), in words, and what to do if it is not right."""

    name: str
    status: str
    text: str
    fix: Optional[str] = None


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, OK, text)


def warn(name: str, text: str, fix: Optional[str] = None) -> Finding:
    """It works, but not as well as it might."""
    return Finding(name, WARN, text, fix)


def fail(name: str, text: str, fix: Optional[str] = None) -> Finding:
    """It does not work until this is done."""
    return Finding(name, FAIL, text, fix)
