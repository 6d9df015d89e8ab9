"""A real nginx on 127.0.0.1 that serves one folder over HTTP and, with a certificate of a new authority, HTTPS."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Optional

import trustme

from repvgg_zoo.registry.specs import FileSpec

CONFIG = """
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/tmp; proxy_temp_path {home}/tmp; fastcgi_temp_path {home}/tmp;
    uwsgi_temp_path {home}/tmp; scgi_temp_path {home}/tmp;
    sendfile on;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        server_name localhost;
        ssl_certificate {home}/server.pem;
        ssl_certificate_key {home}/server.pem;
        root {folder};
        location ~ ^/zoo/files/resolve/[a-z]+/big.bin$ {{
            root {folder}; rewrite ^ /big.bin break;
            add_header X-Repo-Commit 0123456789012345678901234567890123456789;
        }}
    }}
}}
"""


def find_nginx() -> Optional[str]:
    """Return the path of the nginx program, or None if it is not installed."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


class Nginx:
    """Started by the constructor, stopped by ``close``; ``ca`` is the authority's certificate.

    Serves ``big.bin``, a file of ``size`` random bytes, and the other files in the folder ``files`` of ``home``.
    """

    def __init__(self, home: Path, size: int = 8_000_000) -> None:
        binary = find_nginx()
        if binary is None:
            raise RuntimeError("nginx is not installed: apt-get install nginx-light")
        home.mkdir(parents=True, exist_ok=True)
        (home / "tmp").mkdir(exist_ok=True)
        self.home, self.ca, self.folder = home, home / "ca.pem", home / "files"
        self.folder.mkdir(exist_ok=True)
        self.body = os.urandom(size)
        (self.folder / "big.bin").write_bytes(self.body)
        self.port, self.tls_port = _free_port(), _free_port()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(home / "server.pem")
        )
        config = home / "nginx.conf"
        user = "user root;\n" if os.name == "posix" and os.getuid() == 0 else ""
        config.write_text(
            user + CONFIG.format(home=home, folder=self.folder, port=self.port, tls_port=self.tls_port),
            encoding="utf-8",
        )
        self._process = subprocess.Popen(
            [binary, "-p", str(home), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait_until_it_answers()

    def url(self, path: str, *, tls: bool = False) -> str:
        return f"https://localhost:{self.tls_port}{path}" if tls else f"http://127.0.0.1:{self.port}{path}"

    def file(self, *, tls: bool = False, path: str = "/big.bin") -> FileSpec:
        """The description of ``big.bin``."""
        return FileSpec("big.bin", (self.url(path, tls=tls),), len(self.body), hashlib.sha256(self.body).hexdigest())

    def log(self) -> str:
        return (self.home / "access.log").read_text(encoding="utf-8")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _wait_until_it_answers(self) -> None:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.02)
        self._process.kill()
        raise RuntimeError(f"nginx did not start: {(self.home / 'error.log').read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
