"""HTTP over requests: one guarded GET, its redirects, and errors in words.

``requests`` is imported only when a file must be fetched.
"""

from __future__ import annotations

import email.utils
import re
from html.parser import HTMLParser
from typing import Any, Dict, List, Mapping, Optional, Protocol, Tuple
from urllib.parse import unquote, urlencode, urljoin, urlsplit, urlunsplit

from .clock import Clock
from .sources import Source, redact

MAX_REDIRECTS = 10
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PERMANENT_TLS_ERRORS = re.compile(
    "CERTIFICATE_VERIFY_FAILED|certificate verify|WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL"
)


class SourceError(Exception):
    """One try at one source failed; ``heals`` says whether trying again can help, ``wait`` how long it asks for.

    ``wrong`` holds the expected and the actual digest or size where the source gave another file.
    """

    def __init__(
        self, reason: str, *, heals: bool, wait: Optional[float] = None, wrong: Optional[Tuple[Any, Any]] = None
    ) -> None:
        super().__init__(reason)
        self.heals = heals
        self.wait = wait
        self.wrong = wrong


class Response(Protocol):
    """An answer whose body is read piece by piece."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields."""

    def read(self, limit: int) -> bytes:
        """What has arrived, at most ``limit`` bytes, or nothing at the end; raises SourceError."""

    def close(self) -> None:
        """Let go of the connection."""


class HttpClient(Protocol):
    """Something that sends a GET; the only door to the network."""

    def get(self, source: Source, headers: Mapping[str, str]) -> Response:
        """Follow redirects and give the answer, whatever its status; raises SourceError."""

    def close(self) -> None:
        """End every connection."""


class RequestsClient:
    """The real network; a session lives for one fetch, so no connection is shared between forked processes.

    Proxies, NO_PROXY and CA bundles come from the usual environment variables, as requests reads them.
    """

    def __init__(self, connect_timeout: float = 15.0, read_timeout: float = 30.0) -> None:
        self._timeout = (connect_timeout, read_timeout)
        self._session: Any = None

    def get(self, source: Source, headers: Mapping[str, str]) -> Response:
        """One GET; https never falls back to http, and credentials never go to another origin."""
        reply = self._follow(source.url, headers)
        if source.is_gdrive and reply.headers.get("Content-Type", "").startswith("text/html"):
            page = reply.read(1 << 18)
            reply.close()
            confirmed = gdrive_confirmation(page.decode("utf-8", "replace"), source.url)
            if confirmed is None:
                raise SourceError("Google Drive answers with a page, often because of its quota", heals=False)
            reply = self._follow(confirmed, headers)
        return reply

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _follow(self, url: str, headers: Mapping[str, str]) -> Response:
        url, auth = split_credentials(url)
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS):
            response = self._send(url, headers, auth if _origin(url) == origin else None)
            if response.status_code not in (301, 302, 303, 307, 308) or "Location" not in response.headers:
                return _RequestsResponse(response)
            response.close()
            try:
                target = urljoin(url, response.headers["Location"])
                old, new = urlsplit(url).scheme, urlsplit(target).scheme
            except ValueError as error:
                raise SourceError("a redirect to an invalid URL", heals=False) from error
            if new not in ("http", "https") or (old == "https" and new == "http"):
                raise SourceError(f"a redirect from {old} to {new} was refused ({redact(target)})", heals=False)
            url, inline = split_credentials(target)
            if inline is not None and _origin(url) == origin:
                auth = inline
        raise SourceError(f"more than {MAX_REDIRECTS} redirects", heals=False)

    def _send(self, url: str, headers: Mapping[str, str], auth: Optional[Tuple[str, str]]) -> Any:
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
            raise SourceError(_tls_reason(error), heals=_PERMANENT_TLS_ERRORS.search(str(error)) is None) from error
        except errors.ProxyError as error:
            raise SourceError(f"the proxy failed: {_reason(error)}", heals=" 407 " not in str(error)) from error
        except errors.Timeout as error:
            raise SourceError("no answer in time", heals=True) from error
        except errors.ConnectionError as error:
            raise SourceError(f"no connection: {_reason(error)}", heals=True) from error
        except (errors.RequestException, ValueError) as error:  # an invalid URL, header or proxy setting
            raise SourceError(f"not a request that can be sent: {_reason(error)}", heals=False) from error


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
        # which botocore and so MegEngine need on Python 3.8 and 3.9, has it only on the http.client answer within.
        self._read1 = getattr(raw, "read1", None) or raw._fp.read1
        # Identity was asked for; a server that compresses all the same is decoded here, and its lengths not trusted.
        self._encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"

    def read(self, limit: int) -> bytes:
        try:
            if self._encoded:
                return bytes(self._response.raw.read(limit, decode_content=True))
            return bytes(self._read1(limit))
        except self._broken as error:
            stalled = "timed out" in str(error)
            reason = "no bytes arrived in time" if stalled else f"the connection broke: {_reason(error)}"
            raise SourceError(reason, heals=True) from error

    def close(self) -> None:
        self._response.close()


def split_credentials(url: str) -> Tuple[str, Optional[Tuple[str, str]]]:
    """A URL without user and password, and these as a pair if there were any; raises SourceError if it is no URL."""
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("no host")
        _ = parts.port
    except ValueError as error:
        raise SourceError(f"an invalid URL ({error})", heals=False) from error
    if "@" not in parts.netloc:
        return url, None
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))
    return bare, (unquote(user), unquote(password))


def status_error(reply: Response, clock: Clock) -> SourceError:
    """What a status other than 200, 206 or 416 means: some heal, some do not."""
    wait = retry_after(reply.headers.get("Retry-After"), clock)
    return SourceError(f"the server answers {reply.status}", heals=reply.status in RETRYABLE_STATUS, wait=wait)


def retry_after(value: Optional[str], clock: Clock) -> Optional[float]:
    """The seconds that a Retry-After header asks for, given as a number or as a date; None if it cannot be read."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - clock.time())
    except (TypeError, ValueError, OverflowError):
        return None


def gdrive_confirmation(page: str, base: str) -> Optional[str]:
    """The URL behind the button of Google Drive's "cannot scan for viruses" page, or None if it has no such button."""
    form = _FirstForm()
    form.feed(page)
    if form.action is None or "id" not in form.fields:
        return None
    # The page is trusted with the parameters only: the host stays the one we asked.
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


def _origin(url: str) -> Tuple[str, Optional[str], Optional[int]]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: requests and urllib3 wrap it in layers that repeat the URL."""
    seen = error
    for _ in range(10):
        inner = getattr(seen, "reason", None) or next((a for a in seen.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = re.sub(r"\b\w+://\S+", "(URL)", str(seen)) or type(seen).__name__
    return re.split(r">: |\): ", text)[-1][:200]


def _tls_reason(error: BaseException) -> str:
    return (
        f"TLS failed: {_reason(error)}; behind a company proxy set REQUESTS_CA_BUNDLE to its certificate, "
        "or set REPVGG_ZOO_MIRROR to a mirror that is reachable"
    )
