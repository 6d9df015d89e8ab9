"""Files at URLs, through megfile, which MegEngine brings with it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, cast

from .._redact import redact
from ..errors import ArgumentError, DependencyError, MissingFileError, ZooError
from ..registry.model_or_file import IMAGE_SUFFIXES

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_QUOTED_URL = re.compile(_URL.pattern + r"""[^\s"'<>]*""")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_EXPANDED = 1_000_000


def is_url(text: str) -> bool:
    """Return whether a text is a URL rather than a path."""
    return _URL.match(text) is not None


def base_name(path: str) -> str:
    """Return the last part of a path or of a URL, without its query."""
    parts = (path.partition("?")[0] if is_url(path) else path).replace("\\", "/").rstrip("/").rsplit("/", 1)
    return parts[-1] or path


def join(root: str, name: str) -> str:
    """Return the path or URL of a file in a folder."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else str(Path(root, name))


def expand_braces(text: str) -> List[str]:
    """Return a name for each number of ranges such as ``{000..049}``, as shells and webdataset write them.

    >>> from repvgg_zoo.data.remote import expand_braces
    >>> expand_braces("val-{08..10}.tar")
    ['val-08.tar', 'val-09.tar', 'val-10.tar']
    """
    match = _RANGE.search(text)
    if match is None:
        return [text]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_EXPANDED:
        raise ArgumentError(f"{match[0]} is not a valid range", expected="such as {000..049}", actual=match[0])
    width = len(match[1])
    return [
        name
        for number in range(first, last + 1)
        for name in expand_braces(f"{text[: match.start()]}{number:0{width}d}{text[match.end() :]}")
    ]


def open_binary(path: str) -> BinaryIO:
    """Open a file or a URL for reading, within ``read_errors``."""
    return cast(BinaryIO, megfile_for(path).smart_open(path, "rb")) if is_url(path) else Path(path).open("rb")


def read(url: str) -> bytes:
    """Return the content of a URL."""
    with read_errors(url), open_binary(url) as file:
        return file.read()


def size_of(path: str) -> int:
    """Return the size of a file or of what a URL names."""
    with read_errors(path):
        return int(megfile_for(path).smart_getsize(path)) if is_url(path) else Path(path).stat().st_size


def list_remote_images(url: str) -> Dict[str, Optional[int]]:
    """Return the paths and sizes of the images in a folder at a URL, sorted by path."""
    root = url.rstrip("/") + "/"
    with read_errors(url):
        entries = list(megfile_for(url).smart_scan_stat(root))
    sizes = {entry.path[len(root) :]: entry.stat.size for entry in entries}
    images = {name: sizes[name] for name in sorted(sizes) if name.lower().endswith(IMAGE_SUFFIXES)}
    if not images:
        raise ArgumentError(f"{redact(url)} holds no images", actual=redact(url), hint="check the URL")
    return images


@contextmanager
def read_errors(path: str) -> Iterator[None]:
    """Raise ArgumentError for an OSError of the body, and for whatever megfile raises if the path is a URL."""
    with _file_errors(path, "read"):
        yield


@contextmanager
def write_errors(path: str) -> Iterator[None]:
    """Raise ArgumentError in the same way where a file is written."""
    with _file_errors(path, "written"):
        yield


@contextmanager
def _file_errors(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except ZooError:
        raise
    except Exception as error:
        if not is_url(path) and not isinstance(error, OSError):
            raise
        if isinstance(error, FileNotFoundError):
            is_bucket = is_url(path) and what == "written"  # which has no folders
            name = f"the bucket of {redact(path)}" if is_bucket else redact(path)
            hint = "create it, or check the URL" if is_bucket else "check the path"
            raise MissingFileError(f"{name} does not exist", **where(path), hint=hint) from error
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        hint = "check the URL, the credentials, and megfile's settings" if is_url(path) else "check its permissions"
        raise ArgumentError(
            f"{redact(path)} cannot be {what}: {_redact_all(reason)}", **where(path), hint=hint
        ) from error


def _redact_all(text: str) -> str:
    """Return a text without the credentials of the URLs in it."""
    return _QUOTED_URL.sub(lambda match: redact(match[0]), text)


def where(path: str) -> Dict[str, str]:
    """Return the field of an error for a path or a URL, of which only the former is printed."""
    return {"url": path} if is_url(path) else {"path": path}


def megfile_for(url: str) -> Any:
    """Return the module megfile; raise DependencyError, which names the URL, if it is not installed."""
    try:
        import megfile
    except ImportError as error:
        raise DependencyError(
            f"{redact(url)} needs megfile, which is not installed", expected="megfile", hint="pip install megfile"
        ) from error
    return megfile
