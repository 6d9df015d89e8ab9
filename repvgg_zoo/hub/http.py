"""HTTP over requests: one guarded GET with its redirects, header fields and URLs.

``requests`` is imported only when a file must be downloaded.
"""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

from .._redact import redact
from .._urls import Origin, origin
from .addresses import scope_of
from .credentials import Credentials
from .netrc_file import netrc_credentials
from .s3 import S3Error, S3Signer, bucket_region
from .sources import Source

if TYPE_CHECKING:
    from .connection import Connections

MAX_REDIRECTS = 10
# Of a request; the values of all others may be secrets.
PUBLIC_HEADERS = ("accept", "accept-encoding", "cache-control", "connection", "if-range", "range", "user-agent")

Auth = Union[Tuple[str, str], Callable[[Any], Any]]  # what requests takes: user and password, or a change of a request


class SourceError(Exception):
    """One attempt at one source failed.

    ``retryable`` says whether another attempt can succeed, ``retry_after`` how many seconds the server asks to wait
    first. ``mismatch`` is the expected and the actual digest or size if the source sent another file.
    """

    def __init__(
        self,
        reason: str,
        *,
        retryable: bool,
        retry_after: Optional[float] = None,
        mismatch: Optional[Tuple[Any, Any]] = None,
    ) -> None:
        super().__init__(reason)
        self.retryable = retryable
        self.retry_after = retry_after
        self.mismatch = mismatch


class Response(Protocol):
    """A response whose body is read in pieces."""

    status: int

    @property
    def secrets(self) -> Sequence[str]:
        """What was sent in confidence: a server may repeat it, but it must not be in a message."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields."""

    def read(self, limit: int) -> bytes:
        """Return what has arrived, at most ``limit`` bytes, or nothing at the end; raises SourceError."""

    def close(self) -> None:
        """Release the connection."""


class HttpClient(Protocol):
    """Sends GET requests; nothing else in the package opens a connection for a download."""

    def get(self, source: Source, headers: Mapping[str, str]) -> Response:
        """Follow redirects and return the response, whatever its status; raises SourceError."""

    def close(self) -> None:
        """Close every connection."""


class RequestsClient:
    """The client over requests; its connections live for one GET, so forked processes share none.

    ``scope_of`` returns the scope of an IP address, see ``hub/addresses.py``.
    """

    def __init__(
        self,
        connect_timeout: float = 15.0,
        read_timeout: float = 30.0,
        credentials: Optional[Credentials] = None,
        scope_of: Callable[[str], int] = scope_of,
    ) -> None:
        self._timeout, self._scope_of = (connect_timeout, read_timeout), scope_of
        self._credentials: Credentials = credentials or {}
        self._connections: Optional[Connections] = None
        self._s3: Optional[S3Signer] = None

    def get(self, source: Source, headers: Mapping[str, str]) -> Response:
        """Send one GET.

        https is never redirected to http, a public host never to a private network, and credentials are never sent to
        another origin than the source's.
        """
        if source.url.startswith("s3:"):
            return self._get_s3_object(source.url, headers)
        response = self._follow(source.url, headers)
        if source.is_gdrive and response.headers.get("Content-Type", "").startswith("text/html"):
            page = read_start(response, 1 << 18, reads=64)
            confirmed = gdrive_confirmation(page.decode("utf-8", "replace"), source.url)
            if confirmed is None:
                raise SourceError("Google Drive answers with a page, often because of its quota", retryable=False)
            response = self._follow(confirmed, headers)
        return response

    def close(self) -> None:
        if self._connections is not None:
            self._connections.close()
            self._connections = None

    def _get_s3_object(self, url: str, headers: Mapping[str, str]) -> Response:
        self._s3 = self._s3 or S3Signer()
        try:
            response = self._follow(self._s3.sign(url), headers, signed=True)
            if response.status in (301, 400):
                region = bucket_region(response.headers, read_start(response, 4096))
                if region is not None:
                    self._s3.use_region(region)
                    response = self._follow(self._s3.sign(url), headers, signed=True)
        except S3Error as error:
            raise SourceError(str(error), retryable=False) from error
        return response

    def _follow(self, url: str, headers: Mapping[str, str], *, signed: bool = False) -> Response:
        """Follow redirects; a ``signed`` URL gets no credential, which would make it invalid."""
        from .connection import Connections

        self.close()
        connections = self._connections = Connections(self._timeout, self._scope_of)
        url, inline = split_credentials(url)
        first = origin(url)
        auth: Optional[Auth] = inline
        if not signed:
            auth = auth or self._header_auth(first) or netrc_credentials(url)
        for _ in range(MAX_REDIRECTS):
            response = connections.send(url, headers, auth if origin(url) == first else None)
            if response.status_code not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return _RequestsResponse(response, connections)
            response.close()
            try:
                target = urljoin(url, _decode_location(response.headers["Location"]))
                old, new = urlsplit(url).scheme, urlsplit(target).scheme
            except ValueError as error:
                raise SourceError("a redirect to an invalid URL", retryable=False) from error
            if new not in ("http", "https") or (old == "https" and new == "http"):
                raise SourceError(f"a redirect from {old} to {new} was refused ({redact(target)})", retryable=False)
            url, inline = split_credentials(target)
            if inline is not None and origin(url) == first:
                auth = inline
        raise SourceError(f"more than {MAX_REDIRECTS} redirects", retryable=False)

    def _header_auth(self, address: Origin) -> Optional[Auth]:
        """Return what adds the headers of an origin to a request."""
        headers = self._credentials.get(address)
        if headers is None:
            return None

        def add_headers(request: Any) -> Any:
            request.headers.update({header.name: header.value for header in headers})
            return request

        return add_headers


class _RequestsResponse:
    def __init__(self, response: Any, connections: Connections) -> None:
        from .connection import BROKEN, reason_of

        self._broken, self._reason_of = BROKEN, reason_of
        self._response, self._connections = response, connections
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        raw = response.raw
        # read1 returns what one receive gives, so a slow drip is seen and not hidden in a long read. urllib3 1.26,
        # which botocore and so MegEngine need on Python 3.8 and 3.9, has it only on the http.client response within.
        self._read1 = getattr(raw, "read1", None) or raw._fp.read1

    @property
    def secrets(self) -> Sequence[str]:
        request = self._response.request
        headers = [value for name, value in request.headers.items() if name.lower() not in PUBLIC_HEADERS]
        query = urlsplit(request.url).query
        parts = [part for value in headers for part in value.split()] + [value for _, value in parse_qsl(query)]
        passwords = [_password(value) for value in headers if value.startswith("Basic ")]
        # Short parts are words such as "Bearer" or "v1".
        secrets = {*headers, *passwords, query, *(part for part in parts if len(part) > 7)} - {""}
        return sorted(secrets, key=len, reverse=True)

    def read(self, limit: int) -> bytes:
        self._connections.start_call()
        try:
            return bytes(self._read1(limit))
        except self._broken as error:
            stalled = "timed out" in str(error)
            reason = "no bytes arrived in time" if stalled else f"the connection broke: {self._reason_of(error)}"
            raise SourceError(reason, retryable=True) from error

    def close(self) -> None:
        self._response.close()


def read_start(response: Response, limit: int, reads: int = 4) -> bytes:
    """Return the first bytes of a body, at most ``limit`` and what arrives in some reads; raises SourceError."""
    data = b""
    for _ in range(reads):
        piece = response.read(limit - len(data)) if len(data) < limit else b""
        if not piece:
            break
        data += piece
    return data


# Header fields ------------------------------------------------------------------------------------------------


class ContentRange(NamedTuple):
    """The offset of the first byte that a response holds and the size of the whole file, each None if not stated."""

    first: Optional[int]
    total: Optional[int]


def content_range(response: Response) -> ContentRange:
    """Return what the Content-Range header says."""
    value = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes\s+(?:(\d+)-\d+|\*)/(\d+|\*)", value.strip())
    if match is None:
        return ContentRange(None, None)
    first, total = match.groups()
    return ContentRange(None if first is None else int(first), None if total == "*" else int(total))


def content_length(response: Response) -> Optional[int]:
    """Return the size of the body, or None if the server does not state it."""
    value = response.headers.get("Content-Length", "")
    return int(value) if re.fullmatch(r"\d{1,15}", value) else None


def is_encoded(response: Response) -> bool:
    """Return whether the body is compressed, or transferred in another way than in chunks."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    transfer = response.headers.get("Transfer-Encoding", "").strip().lower()
    return encoding not in ("", "identity") or transfer not in ("", "identity", "chunked")


def range_validator(response: Response) -> Optional[str]:
    """Return what If-Range may hold: a strong ETag, else the date of the last change (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


# URLs and pages -----------------------------------------------------------------------------------------------


def split_credentials(url: str) -> Tuple[str, Optional[Tuple[str, str]]]:
    """Split a URL into one without credentials and the pair of user and password, if any; raises SourceError."""
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("no host")
        _ = parts.port
    except ValueError as error:
        raise SourceError(f"an invalid URL ({error})", retryable=False) from error
    if "@" not in parts.netloc:
        return url, None
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))
    return bare, (unquote(user), unquote(password))


def gdrive_confirmation(page: str, base: str) -> Optional[str]:
    """Return the URL behind the button of Google Drive's "cannot scan for viruses" page, or None without one."""
    form = _FirstForm()
    form.feed(page)
    if form.action is None or "id" not in form.fields:
        return None
    # Only the parameters come from the page: the host stays the one that was requested.
    return urlunsplit((*urlsplit(base)[:3], urlencode(form.fields), ""))


class _FirstForm(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.action: Optional[str] = None
        self.fields: Dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and self.action is None:
            self.action = values.get("action", "")
        elif tag == "input" and self.action is not None and values.get("name"):
            self.fields[values["name"]] = values.get("value", "")


def _password(basic: str) -> str:
    """Return the password of an Authorization header, or nothing."""
    try:
        return base64.b64decode(basic[len("Basic ") :]).partition(b":")[2].decode()
    except ValueError:
        return ""


def _decode_location(value: str) -> str:
    """Return a Location header, which requests decodes as Latin-1, as the UTF-8 that servers send."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value
