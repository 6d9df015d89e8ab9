"""The connections of one GET and its redirects, over requests: where they lead, how long they take, errors in words.

Only ``hub/http.py`` imports this module, when something must be downloaded, because it imports ``requests``.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import time
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Type
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .._settings import ca_bundle_setting, proxy_variable
from .addresses import PUBLIC, SCOPE_NAMES
from .http import Auth, SourceError

_PERMANENT_TLS_ERRORS = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|certificate verify|WRONG_VERSION_NUMBER|UNSUPPORTED_PROTOCOL"
    r"|\[X509|unknown error|\[Errno (2|13)\]"  # a bundle that is not one, or cannot be read
)
# The port is optional, as in curl. A "/", "?", "#" or "\" in a password would end the host, so it is refused.
_PROXY = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/?#\\\[\]]*@)?)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#\\@:\[\]]+)(?::\d{1,5})?/?"
)

BROKEN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class Connections:
    """One GET and its redirects.

    ``timeout`` is for connecting and for silence, in seconds; ``scope_of`` returns the scope of an IP address, see
    ``hub/addresses.py``. Proxies, NO_PROXY and CA bundles come from the usual environment variables, as requests reads
    them.
    """

    def __init__(self, timeout: Tuple[float, float], scope_of: Callable[[str], int]) -> None:
        self._timeout, self._scope_of = timeout, scope_of
        self._source_scope: Optional[int] = None
        self._deadline = 0.0
        self._session = Session()
        adapter = _Adapter(self)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def send(self, url: str, headers: Mapping[str, str], auth: Optional[Auth]) -> requests.Response:
        """Send one request, to a URL without credentials; raises SourceError."""
        proxy = _proxy_of(url)
        if proxy is not None and self._source_scope is None:
            self._source_scope = PUBLIC
        if proxy is not None and callable(auth) and url.startswith("http:"):
            reason = f"the {proxy} could read the credentials of this host; add the host to no_proxy"
            raise SourceError(reason, retryable=False)
        sent = {"Accept-Encoding": "identity", "User-Agent": "repvgg_zoo", **headers}
        errors = requests.exceptions
        via = f" ({proxy})" if proxy else ""
        try:
            # Without any auth requests would look in .netrc for this host, and fall back on its default entry.
            return self._session.get(
                url,
                headers=sent,
                auth=auth or (lambda request: request),
                stream=True,
                allow_redirects=False,
                timeout=self._timeout,
            )
        except errors.SSLError as error:
            permanent = _PERMANENT_TLS_ERRORS.search(str(error)) is not None
            raise SourceError(f"{_tls_reason(error)}{via}", retryable=not permanent) from error
        except errors.ProxyError as error:
            if " 407 " in str(error):
                reason = f"the proxy asks for a user and a password; put them into {proxy}"
                raise SourceError(reason, retryable=False) from error
            raise SourceError(f"the proxy failed{via}: {reason_of(error)}", retryable=True) from error
        except errors.Timeout as error:
            raise SourceError(f"no answer in time{via}", retryable=True) from error
        except errors.ConnectionError as error:
            raise SourceError(f"no connection{via}: {reason_of(error)}", retryable=True) from error
        except (errors.RequestException, ValueError) as error:  # an invalid URL or header
            raise SourceError(f"the request cannot be sent{via}: {reason_of(error)}", retryable=False) from error
        except OSError as error:  # requests looks for the certificates before it connects
            reason = _tls_reason(error) if "TLS" in str(error) else f"no connection{via}: {reason_of(error)}"
            raise SourceError(reason, retryable=False) from error

    def start_call(self) -> None:
        """Begin to measure how long one call takes; a call in which bytes arrive, but nothing else, is ended."""
        self._deadline = time.monotonic() + 2 * self._timeout[1]

    def check_time(self) -> None:
        """Raise the error of a timeout if the current call takes too long."""
        if time.monotonic() > self._deadline:
            raise socket.timeout("timed out")

    def check_address(self, connection: Any) -> None:
        """Raise SourceError if a redirect has led into a narrower network; nothing has been sent there yet."""
        try:
            address = connection.sock.getpeername()[0]
            scope = self._scope_of(address)
        except (OSError, ValueError):  # the connection is broken already
            return
        if self._source_scope is None:
            self._source_scope = scope
        elif scope > self._source_scope:
            raise SourceError(f"a redirect to {address}, {SCOPE_NAMES[scope]}, was refused", retryable=False)

    def close(self) -> None:
        """Close every connection."""
        self._session.close()


class Session(requests.Session):
    """A session of requests that leaves redirects to its caller."""

    def get_redirect_target(self, resp: requests.Response) -> Optional[str]:
        return None  # else requests reads the whole body of a redirect, decoded, although it does not follow it


class _Adapter(HTTPAdapter):
    """Checks the addresses of direct connections, and the time of all but those of SOCKS proxies."""

    def __init__(self, owner: Connections) -> None:
        self._direct = _pool_classes(owner, owner.check_address)
        self._proxied = _pool_classes(owner, lambda connection: None)  # the proxy resolves names
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._direct

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = self._proxied
        return manager


def _pool_classes(owner: Connections, on_connect: Callable[[Any], None]) -> Dict[str, Type[HTTPConnectionPool]]:
    class TimedResponse(http.client.HTTPResponse):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            owner.start_call()
            self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), owner.check_time))

    class Plain(HTTPConnection):
        response_class = TimedResponse

        def connect(self) -> None:
            super().connect()
            on_connect(self)

    class Tls(HTTPSConnection):
        response_class = TimedResponse

        def connect(self) -> None:
            super().connect()
            on_connect(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


class _TimedReader(io.RawIOBase):
    """A socket's stream; ``check_time`` is called before each read.

    Headers, chunk sizes and trailers are read in loops of http.client, which a byte now and then keeps alive.
    """

    def __init__(self, raw: io.RawIOBase, check_time: Callable[[], None]) -> None:
        self._raw, self._check_time = raw, check_time

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        self._check_time()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


# Errors in words ----------------------------------------------------------------------------------------------


def reason_of(error: BaseException) -> str:
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
    variable, path = ca_bundle_setting()
    if variable:
        return f"TLS failed: {reason_of(error)}; check {variable}, which names the trusted certificates: {path}"
    return (
        f"TLS failed: {reason_of(error)}; behind a company proxy set REQUESTS_CA_BUNDLE to its certificate, "
        "or set REPVGG_ZOO_MIRROR to a mirror that is reachable"
    )


def _proxy_of(url: str) -> Optional[str]:
    """Return what to call the proxy of a URL, or None without one; raises SourceError if the setting is not valid."""
    try:
        proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    except ValueError:  # an invalid URL, which requests refuses
        return None
    if not proxy:
        return None
    variable = proxy_variable(urlsplit(url).scheme)
    name = f"proxy of {variable}" if variable else "proxy of the system's settings"
    if _PROXY.fullmatch(proxy) is None:
        # Its value may be a password for the most part, so it is not shown.
        raise SourceError(
            f"the {name} is not a valid URL; write http://host:port or http://user:password@host:port, and "
            "characters such as / ? # \\ in the user or password as %2F %3F %23 %5C",
            retryable=False,
        )
    return name
