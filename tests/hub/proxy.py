"""A small web proxy on 127.0.0.1: CONNECT tunnels, and plain GET requests."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import List, Mapping, Optional
from urllib.parse import urlsplit


class Proxy:
    """``requests`` lists method and target of each request; ``routes`` maps a tunnel's ``host:port`` to another one."""

    def __init__(self, routes: Optional[Mapping[str, str]] = None) -> None:
        self.requests: List[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                requests.append(f"CONNECT {self.path}")
                host, _, port = (routes or {}).get(self.path, self.path).rpartition(":")
                with socket.create_connection((host, int(port)), 5) as far:
                    self.send_response(200)
                    self.end_headers()
                    back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
                    back.start()
                    _pump(self.connection, far)
                    back.join(5)

            def do_GET(self) -> None:
                requests.append(f"GET {self.path}")
                parts = urlsplit(self.path)
                with socket.create_connection((parts.hostname, parts.port), 5) as far:
                    far.sendall(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
                    _pump(far, self.connection)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        for data in iter(lambda: source.recv(1 << 16), b""):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
