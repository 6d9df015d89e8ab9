"""The sources of a file: mirrors first, then its own, after the user's rewrite rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from .._settings import Settings
from ..errors import ArgumentError
from ..registry.specs import FileSpec
from .filenames import cache_filename

GDRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Source:
    """One place that serves a file: a ``url``, or a ``path`` on this machine."""

    url: str = ""
    path: Optional[Path] = None
    is_gdrive: bool = False

    @property
    def label(self) -> str:
        """The name in messages and logs, without credentials."""
        return str(self.path) if self.path is not None else redact(self.url)


def sources_of(file: FileSpec, settings: Settings) -> Tuple[Source, ...]:
    """Return the sources to try, best first; raises ArgumentError for a source of an unknown kind."""
    sources: List[Source] = []
    for root in settings.mirrors:
        sources.append(_parse(rewrite_url(f"{root.rstrip('/')}/{cache_filename(file)}", settings)))
    for text in file.sources:
        is_gdrive = text.startswith("gdrive:")
        url = GDRIVE + quote(text[len("gdrive:") :], safe="") if is_gdrive else text
        sources.append(_parse(rewrite_url(url, settings), is_gdrive))
    return tuple(dict.fromkeys(sources))


def redact(url: str) -> str:
    """Return a URL for a log: without user, password, query and fragment.

    >>> from repvgg_zoo.hub.sources import redact
    >>> redact("https://me:secret@host.example/a.bin?token=x")
    'https://host.example/a.bin?…'
    """
    if "://" not in url:  # gdrive:<id> or a path
        return url
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an invalid URL)"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{host}{port}{parts.path}{'?…' if parts.query else ''}"


def rewrite_url(url: str, settings: Settings) -> str:
    """Return the URL after the first of the user's rewrite rules that matches."""
    for old, new in settings.url_rewrites:
        if url.startswith(old):
            return new + url[len(old) :]
    return url


def _parse(text: str, is_gdrive: bool = False) -> Source:
    if text.lower().startswith(("https://", "http://")):
        return Source(url=text, is_gdrive=is_gdrive)
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ArgumentError(f"{text!r} names a file on another host", hint="write file:///path", actual=text)
        return Source(path=Path(url2pathname(parts.path)))
    if Path(text).is_absolute():
        return Source(path=Path(text))
    raise ArgumentError(
        f"{text!r} is not a valid source",
        hint="a source is an https:, http: or file: URL, gdrive:<id>, or an absolute path",
        expected="a URL or an absolute path",
        actual=text,
    )
