"""A web server on 127.0.0.1 that follows a script: what each path answers, request by request."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import trustme


@dataclass(frozen=True)
class Answer:
    """One answer.

    ``cut`` ends the body early: by closing, or, with ``reset`` or ``stall``, by a reset or silence. ``rate`` is how
    many bytes of the body are sent in a second; None is as fast as possible.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    etag: Optional[str] = None
    cut: Optional[int] = None
    reset: bool = False
    stall: bool = False
    chunked: bool = False
    length: bool = True
    rate: Optional[float] = None


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]


class Server:
    """``serve(path, a, b)`` answers the first request with a and all later ones with b; ``tls`` makes it https.

    ``sent`` counts the bytes of all bodies.
    """

    def __init__(self, tls: Optional[ssl.SSLContext] = None, address: str = "127.0.0.1") -> None:
        self.requests: List[Request] = []
        self.sent = 0
        self._scripts: Dict[str, List[Answer]] = {}
        self._lock = threading.Lock()
        self.gate: Callable[[], None] = lambda: None
        self._stop = threading.Event()
        self._tls, self._address = tls, address
        self._connections = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, request: Any, client_address: Any) -> None:
                owner._count_connections(1)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                super().shutdown_request(request)
                owner._count_connections(-1)

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up are part of the tests

        self._server = Quiet((address, 0), Handler)
        self.port = self._server.server_address[1]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def url(self, path: str = "/a.bin") -> str:
        scheme, host = ("http", self._address) if self._tls is None else ("https", "localhost")
        return f"{scheme}://{host}:{self.port}{path}"

    def serve(self, path: str, *answers: Answer) -> str:
        self._scripts[path] = list(answers)
        return self.url(path)

    def wait_until_idle(self, seconds: float = 20.0) -> None:
        """Wait until every client has closed its connection; AssertionError if that takes too long."""
        deadline = time.monotonic() + seconds
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < 0.05:  # a connection that was just opened is not counted yet
            if self._connections:
                idle_since = time.monotonic()
            assert time.monotonic() < deadline, f"{self._connections} connections are still open"
            time.sleep(0.01)

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _count_connections(self, change: int) -> None:
        with self._lock:
            self._connections += change

    def _next(self, path: str) -> Answer:
        with self._lock:
            script = self._scripts.get(path)
            if script is None:
                return Answer(b"nothing here", status=404)
            return script.pop(0) if len(script) > 1 else script[0]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.requests.append(Request(handler.path, dict(handler.headers.items())))
        self.gate()
        answer = self._next(handler.path.split("?")[0])
        status, headers, body = _with_range(answer, handler.headers)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if answer.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        elif "Content-Length" not in headers and answer.length:
            handler.send_header("Content-Length", str(len(body)))
        if not answer.length:
            handler.send_header("Connection", "close")
        handler.end_headers()
        whole = answer.cut is None
        piece = body if whole else body[: answer.cut]
        began = time.monotonic()
        for start in range(0, len(piece), 1 << 16):
            if answer.rate is not None:
                time.sleep(max(0.0, began + start / answer.rate - time.monotonic()))
            data = piece[start : start + (1 << 16)]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if answer.chunked else data)
            with self._lock:
                self.sent += len(data)
        if answer.stall:
            self._stop.wait(20)
        if answer.reset:
            # Lingering for zero seconds makes close() send RST in place of FIN.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
        elif answer.chunked and whole:
            handler.wfile.write(b"0\r\n\r\n")
        if not whole or not answer.length:
            handler.close_connection = True


class TlsServer(Server):
    """A server whose certificate, for these host names, is of a new authority; ``ca`` is the authority's own."""

    def __init__(self, home: Path, *names: str) -> None:
        authority = trustme.CA()
        self.ca = home / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(names or ("localhost",))).configure_cert(context)
        super().__init__(context)


def _with_range(answer: Answer, headers_sent: Mapping[str, str]) -> Tuple[int, Dict[str, str], bytes]:
    headers, body, status = dict(answer.headers), answer.body, answer.status
    if answer.etag:
        headers["ETag"] = answer.etag
    match = re.fullmatch(r"bytes=(\d+)-", headers_sent.get("Range") or "")
    if status != 200 or not answer.ranges or match is None:
        return status, headers, body
    if headers_sent.get("If-Range") not in (None, answer.etag):
        return status, headers, body
    start, total = int(match.group(1)), len(body)
    if start >= total:
        return 416, {**headers, "Content-Range": f"bytes */{total}"}, b""
    return 206, {**headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}, body[start:]


class RawServer:
    """Answers each connection, after the request's headers, with what ``write`` sends on the socket."""

    def __init__(self, write: Callable[[socket.socket], None]) -> None:
        self.requests = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._write = write
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/a.bin"
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.requests += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(1 << 16)
            self._write(connection)
