"""URLs as text: the kinds of sources, the origin of a URL, and how a file's name is added to one."""

from __future__ import annotations

from typing import NamedTuple, Optional
from urllib.parse import urlsplit

# Neither "." nor ".." nor an escaped slash: they would lead out of a repository once the URL is normalized.
_KEY = r"(?!(\S*/)?(\.|%2[eE]){1,2}(/|$))(?!\S*%2[fF])[^\s?#\\]+"
HF_URL = (
    r"hf://(?P<repo>((datasets|spaces)/|(?!(datasets|spaces)/))[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
    rf"(@(?P<revision>[^\s/?#@\\]+))?/(?P<path>{_KEY})"
)
S3_URL = rf"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9])/(?P<key>{_KEY})"
# What a mirror may be, apart from an absolute folder.
MIRROR_URL = r"(?i)(https?|hf|s3)://[^/\s?#]\S*|file:(//(localhost)?)?/[^/\s]\S*"


class Origin(NamedTuple):
    """What a credential belongs to; each is empty or None in a text that is not a valid URL."""

    scheme: str
    host: str
    port: Optional[int]


def origin(url: str) -> Origin:
    """Return the scheme, host and port of a URL; the port is never left out if the scheme has a usual one."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return Origin("", "", None)
    return Origin(parts.scheme, parts.hostname or "", port)


def join_url(base: str, name: str) -> str:
    """Return the address of a file below a URL or a folder; a query, such as a SAS token, stays at the end.

    >>> from repvgg_zoo._urls import join_url
    >>> join_url("https://host.example/zoo?sig=x", "a.bin")
    'https://host.example/zoo/a.bin?sig=x'
    """
    path, mark, query = base.partition("?") if "://" in base else (base, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"
