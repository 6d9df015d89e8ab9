"""A real nginx on 127.0.0.1 that serves one folder, with Range support, and TLS from an authority made here."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

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
        ssl_certificate_key {home}/server.key;
        root {folder};
        location ~ ^/to-plain/(?<to>[0-9]+)(?<rest>/.*)$ {{ return 302 http://127.0.0.1:$to$rest; }}
        location ~ ^/zoo/files/resolve/[a-z]+/big.bin$ {{
            root {folder}; rewrite ^ /big.bin break;
            add_header X-Repo-Commit 0123456789012345678901234567890123456789;
        }}
        location /slow/ {{ alias {folder}/; limit_rate 4m; }}
        location /steady/ {{ alias {folder}/; limit_rate 40m; }}
    }}
}}
"""


class Nginx:
    """Started by the constructor, ended by ``close``; ``ca`` is the authority's certificate.

    It serves ``big.bin``, a file of ``size`` random bytes, and whatever else lies in ``home``'s folder ``files``.
    """

    def __init__(self, home: Path, size: int = 8_000_000) -> None:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if binary is None:
            raise RuntimeError("nginx is missing: apt-get install nginx-light, or set REPVGG_ZOO_TEST_NO_NGINX=1")
        home.mkdir(parents=True, exist_ok=True)
        (home / "tmp").mkdir(exist_ok=True)
        self.home, self.ca, self.folder = home, home / "ca.pem", home / "files"
        self.folder.mkdir(exist_ok=True)
        self.body = os.urandom(size)
        (self.folder / "big.bin").write_bytes(self.body)
        self.port, self.tls_port = _free_port(), _free_port()
        _make_certificates(home)
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

    def bytes_sent(self) -> int:
        """The body bytes sent so far, once every connection has ended and is in the log."""
        last, same_since = "", time.monotonic()
        while time.monotonic() - same_since < 0.1:
            text = self.log()
            if text != last:
                last, same_since = text, time.monotonic()
            time.sleep(0.02)
        return sum(int(line.split('" ')[1].split()[1]) for line in last.splitlines())

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


def _make_certificates(home: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=str(home), check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *curve, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    (home / "names.txt").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="ascii")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", "names.txt", "-out", "server.pem"),
    )
