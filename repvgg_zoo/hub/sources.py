"""The sources of a file: mirrors first, then its own, after the user's rewrite rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional, Tuple
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from .._redact import mask_credentials, redact
from .._settings import HF_ENDPOINT_ENV, Settings
from .._urls import HF_URL, S3_URL, join_url
from ..errors import ArgumentError
from ..registry.specs import FileSpec
from .filenames import cache_filename

GDRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Source:
    """One place that serves a file: a ``url`` (https:, http: or s3:), or a ``path`` on this machine.

    ``is_substitute`` says that the user's settings chose it in place of what the registry states.
    """

    url: str = ""
    path: Optional[Path] = None
    is_gdrive: bool = False
    is_substitute: bool = False

    @property
    def label(self) -> str:
        """The name in messages and logs, without credentials."""
        return redact(self.url if self.path is None else str(self.path))

    def __repr__(self) -> str:
        return f"Source({self.label!r})"


def sources_of(file: FileSpec, settings: Settings) -> Tuple[Source, ...]:
    """Return the sources to try, best first; raises ArgumentError for a source of an unknown kind."""
    sources: List[Source] = []
    for root in settings.mirrors:
        sources.append(replace(_parse(join_url(root, cache_filename(file)), settings), is_substitute=True))
    defaults = Settings(cache_dir=settings.cache_dir)
    for text in file.sources:
        source = _parse(text, settings)
        sources.append(replace(source, is_substitute=source != _parse(text, defaults)))
    return tuple(dict.fromkeys(sources))


def rewrite_url(url: str, settings: Settings) -> str:
    """Return the URL after the first of the user's rewrite rules that matches."""
    for old, new in settings.url_rewrites:
        if url.startswith(old):
            return new + url[len(old) :]
    return url


def hf_url(text: str, endpoint: str) -> Optional[str]:
    """Return the https: URL of ``hf://owner/repo@revision/path``, or None if the text is not one."""
    match = re.fullmatch(HF_URL, text)
    if match is None:
        return None
    if not re.match(r"https?://[^/\s]", endpoint):
        raise ArgumentError(
            f"{HF_ENDPOINT_ENV} is {redact(endpoint)!r}", hint="write a URL, such as https://huggingface.co"
        )
    revision = unquote(match["revision"] or "main")
    return f"{endpoint}/{match['repo']}/resolve/{quote(revision, safe='')}/{quote(unquote(match['path']))}"


def _parse(text: str, settings: Settings) -> Source:
    is_gdrive = text.startswith("gdrive:")
    if is_gdrive:
        text = GDRIVE + quote(text[len("gdrive:") :], safe="")
    text = rewrite_url(hf_url(text, settings.hf_endpoint) or text, settings)
    text = hf_url(text, settings.hf_endpoint) or text  # a rule may lead to a repository
    if re.fullmatch(S3_URL, text):
        return Source(url=text)
    if text.lower().startswith(("https://", "http://")):
        return Source(url=text, is_gdrive=is_gdrive)
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            printed = mask_credentials(text)
            raise ArgumentError(f"{printed!r} names a file on another host", hint="write file:///path", actual=printed)
        if parts.path.startswith("/"):
            return Source(path=Path(url2pathname(parts.path)))
    elif Path(text).is_absolute():
        return Source(path=Path(text))
    raise ArgumentError(
        f"{mask_credentials(text)!r} is not a valid source",
        hint="a source is an https:, http: or file: URL, hf://owner/repo/path, s3://bucket/key, gdrive:<id>, "
        "or an absolute path",
        expected="a URL or an absolute path",
        actual=mask_credentials(text),
    )
