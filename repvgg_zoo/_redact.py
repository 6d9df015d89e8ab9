"""Keep passwords and tokens in URLs out of messages and logs."""

from __future__ import annotations

import re
from typing import TypeVar, cast
from urllib.parse import urlsplit

_T = TypeVar("_T")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|//")


def redact(url: str) -> str:
    """Return a URL for a message or a log: without user, password, query and fragment.

    >>> from repvgg_zoo._redact import redact
    >>> redact("https://me:secret@host.example/a.bin?token=x")
    'https://host.example/a.bin?…'
    """
    if "://" not in url:  # gdrive:<id>, a path, or a URL that lacks its scheme
        return mask_credentials(url) if ":" in url.partition("@")[0] and not re.match("/(?!/)", url) else url
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an invalid URL)"
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and port:
        return mask_credentials(url)  # http://me:12/3@host: a "/" in a password makes the URL mean something else
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{host}{port}{parts.path}{'?…' if parts.query else ''}"


def mask_credentials(value: _T) -> _T:
    """Return a text that may be a URL, valid or not, without what comes before the last "@"; of a tuple, each item.

    It is for messages about invalid values, where nothing is known about the parts of a URL.

    >>> from repvgg_zoo._redact import mask_credentials
    >>> mask_credentials("htps://me:secr/et@host.example/a.bin")
    'htps://…@host.example/a.bin'
    """
    if isinstance(value, (tuple, list)):
        masked = [mask_credentials(item) for item in value]
        return cast(_T, masked if isinstance(value, list) else tuple(masked))
    return cast(_T, _mask(value)) if isinstance(value, str) else value


def _mask(text: str) -> str:
    match = _SCHEME.match(text)
    scheme = match.group() if match else ""
    rest = text[len(scheme) :]
    hidden, at, visible = rest.rpartition("@")
    if at:
        return f"{scheme}…" if "?" in hidden else f"{scheme}…@{visible.partition('?')[0]}"
    if not scheme:
        return text
    if re.match(r"[^/?#]*:(?![0-9]*(?:[/?#]|$))", rest):
        return f"{scheme}…"  # what follows the ":" is not a port, so it may be the first part of a password
    return f"{scheme}{rest.partition('?')[0]}{'?…' if '?' in rest else ''}"
