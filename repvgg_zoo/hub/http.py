"""HTTP over requests: one guarded GET with its redirects, and errors in words.

``requests`` is imported only when a file must be downloaded.
"""

from __future__ import annotations

import email.utils
import re
from html.parser import HTMLParser
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Tuple, Union
from urllib.parse import unquote, urlencode, urljoin, urlsplit, urlunsplit

from .._redact import redact
from .._urls import Origin, origin
from .clock import Clock
from .credentials import Credentials
from .sources import Source

MAX_REDIRECTS = 10
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PERMANENT_TLS_ERRORS = re.compile(
    "CERTIFICATE_VERIFY_FAILED|certificate verify|WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL"
)

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
    """The client over requests; its session lives for one download, so forked processes share no connection.

    Proxies, NO_PROXY and CA bundles come from the usual environment variables, as requests reads them.
    """

    def __init__(
        self, connect_timeout: float = 15.0, read_timeout: float = 30.0, credentials: Optional[Credentials] = None
    ) -> None:
        self._timeout = (connect_timeout, read_timeout)
        self._credentials: Credentials = credentials or {}
        self._session: Any = None

    def get(self, source: Source, headers: Mapping[str, str]) -> Response:
        """Send one GET. https is never redirected to http, and credentials are never sent to another origin."""
        response = self._follow(source.url, headers)
        if source.is_gdrive and response.headers.get("Content-Type", "").startswith("text/html"):
            page = response.read(1 << 18)
            response.close()
            confirmed = gdrive_confirmation(page.decode("utf-8", "replace"), source.url)
            if confirmed is None:
                raise SourceError("Google Drive answers with a page, often because of its quota", retryable=False)
            response = self._follow(confirmed, headers)
        return response

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _follow(self, url: str, headers: Mapping[str, str]) -> Response:
        url, inline = split_credentials(url)
        first = origin(url)
        auth = inline or self._header_auth(first)
        for _ in range(MAX_REDIRECTS):
            response = self._send(url, headers, auth if origin(url) == first else None)
            if response.status_code not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return _RequestsResponse(response)
            response.close()
            try:
                target = urljoin(url, response.headers["Location"])
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
        """Return what adds the headers of an origin to a request; as requests' auth it also keeps .netrc out."""
        headers = self._credentials.get(address)
        if headers is None:
            return None

        def add_headers(request: Any) -> Any:
            request.headers.update({header.name: header.value for header in headers})
            return request

        return add_headers

    def _send(self, url: str, headers: Mapping[str, str], auth: Optional[Auth]) -> Any:
        import requests

        if self._session is None:
            self._session = requests.Session()
        errors = requests.exceptions
        sent = {"Accept-Encoding": "identity", "User-Agent": "repvgg_zoo", **headers}
        try:
            return self._session.get(
                url, headers=sent, auth=auth, stream=True, allow_redirects=False, timeout=self._timeout
            )
        except errors.SSLError as error:
            permanent = _PERMANENT_TLS_ERRORS.search(str(error)) is not None
            raise SourceError(_tls_reason(error), retryable=not permanent) from error
        except errors.ProxyError as error:
            raise SourceError(f"the proxy failed: {_reason(error)}", retryable=" 407 " not in str(error)) from error
        except errors.Timeout as error:
            raise SourceError("no answer in time", retryable=True) from error
        except errors.ConnectionError as error:
            raise SourceError(f"no connection: {_reason(error)}", retryable=True) from error
        except (errors.RequestException, ValueError) as error:  # an invalid URL, header or proxy setting
            raise SourceError(f"the request cannot be sent: {_reason(error)}", retryable=False) from error


class _RequestsResponse:
    def __init__(self, response: Any) -> None:
        import http.client

        import urllib3.exceptions

        self._broken = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
        self._response = response
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        raw = response.raw
        # read1 returns what one receive gives, so a slow drip is seen and not hidden in a long read. urllib3 1.26,
        # which botocore and so MegEngine need on Python 3.8 and 3.9, has it only on the http.client response within.
        self._read1 = getattr(raw, "read1", None) or raw._fp.read1
        self._encoded = is_encoded(self)  # although identity was requested

    def read(self, limit: int) -> bytes:
        try:
            if self._encoded:
                return bytes(self._response.raw.read(limit, decode_content=True))
            return bytes(self._read1(limit))
        except self._broken as error:
            stalled = "timed out" in str(error)
            reason = "no bytes arrived in time" if stalled else f"the connection broke: {_reason(error)}"
            raise SourceError(reason, retryable=True) from error

    def close(self) -> None:
        self._response.close()


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
    if is_encoded(response):
        return None  # it counts the compressed bytes
    value = response.headers.get("Content-Length", "")
    return int(value) if re.fullmatch(r"\d{1,15}", value) else None


def is_encoded(response: Response) -> bool:
    """Return whether the body is compressed."""
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def range_validator(response: Response) -> Optional[str]:
    """Return what If-Range may hold: a strong ETag, else the date of the last change (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def status_error(response: Response, clock: Clock) -> SourceError:
    """Return the error for a status other than 200, 206 or 416."""
    return SourceError(
        f"the server answers {response.status}",
        retryable=response.status in RETRYABLE_STATUS,
        retry_after=parse_retry_after(response.headers.get("Retry-After"), clock),
    )


def parse_retry_after(value: Optional[str], clock: Clock) -> Optional[float]:
    """Return the seconds that a Retry-After header asks for, as a number or a date; None if it is not valid."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - clock.time())
    except (TypeError, ValueError, OverflowError):
        return None


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


def _reason(error: BaseException) -> str:
    """Return the innermost cause in a few words: requests and urllib3 wrap it in layers that repeat the URL."""
    cause = error
    for _ in range(10):
        inner = getattr(cause, "reason", None) or next((a for a in cause.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            break
        cause = inner
    text = re.sub(r"\b\w+://\S+", "(URL)", str(cause)) or type(cause).__name__
    return re.split(r">: |\): ", text)[-1][:200]


def _tls_reason(error: BaseException) -> str:
    return (
        f"TLS failed: {_reason(error)}; behind a company proxy set REQUESTS_CA_BUNDLE to its certificate, "
        "or set REPVGG_ZOO_MIRROR to a mirror that is reachable"
    )
