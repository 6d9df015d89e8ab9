"""Redirects, credentials, proxies and TLS."""

from __future__ import annotations

import base64
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from repvgg_zoo._redact import redact
from repvgg_zoo.errors import ArgumentError, DownloadError
from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.sources import sources_of

from .conftest import BODY, Zoo, spec
from .proxy import Proxy
from .server import Answer, Server, TlsServer


def test_a_redirect_on_the_same_host_is_followed(zoo: Zoo, server: Server) -> None:
    server.serve("/a.bin", Answer(BODY))
    moved = server.serve("/moved", Answer(status=302, headers={"Location": "/a.bin"}))
    assert zoo.fetch(spec(moved)).read_bytes() == BODY


def test_a_broken_body_behind_a_redirect_is_resumed(zoo: Zoo, server: Server) -> None:
    server.serve("/a.bin", Answer(BODY, cut=1_000_000), Answer(BODY))
    moved = server.serve("/moved", Answer(status=307, headers={"Location": "/a.bin"}))
    assert zoo.fetch(spec(moved)).read_bytes() == BODY
    assert server.requests[-1].headers["Range"] == "bytes=1000000-"


def test_no_credential_goes_to_another_origin_or_into_a_message(
    zoo: Zoo, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    other = Server()
    try:
        other.serve("/a.bin", Answer(b"busy", status=500))
        moved = server.serve("/moved", Answer(status=302, headers={"Location": other.url()}))
        secret = moved.replace("http://", "http://me:s%40cret@")
        with caplog.at_level(logging.DEBUG), pytest.raises(DownloadError) as caught:
            zoo.fetch(spec(secret))
    finally:
        other.close()
    credentials = base64.b64encode(b"me:s@cret").decode()
    assert server.requests[0].headers["Authorization"] == f"Basic {credentials}"
    assert other.requests
    assert all("Authorization" not in request.headers for request in other.requests)
    output = str(caught.value) + repr(caught.value.__dict__) + caplog.text
    assert "s%40cret" not in output
    assert "s@cret" not in output


def test_a_redirect_loop_ends(zoo: Zoo, server: Server) -> None:
    loop = server.serve("/loop", Answer(status=302, headers={"Location": "/loop"}))
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        zoo.fetch(spec(loop))
    assert len(server.requests) == 10


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher:x", "data:,x", "http://["])
def test_a_redirect_to_another_scheme_than_http_is_refused(zoo: Zoo, server: Server, target: str) -> None:
    moved = server.serve("/moved", Answer(status=302, headers={"Location": target}))
    with pytest.raises(DownloadError, match=r"a redirect from http to|a redirect to an invalid URL"):
        zoo.fetch(spec(moved))
    assert zoo.names() == []
    assert len(server.requests) == 1


def test_https_is_never_redirected_to_http(
    zoo: Zoo, server: Server, tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_server.ca))
    plain = server.serve("/a.bin", Answer(BODY))
    moved = tls_server.serve("/moved", Answer(status=302, headers={"Location": plain}))
    with pytest.raises(DownloadError, match="a redirect from https to http was refused"):
        zoo.fetch(spec(moved))
    assert len(tls_server.requests) == 1
    assert server.requests == []


def test_an_unknown_certificate_authority_is_an_error_with_a_hint(zoo: Zoo, tls_server: TlsServer) -> None:
    with pytest.raises(DownloadError, match="REPVGG_ZOO_MIRROR") as caught:
        zoo.fetch(spec(tls_server.serve("/a.bin", Answer(BODY))))
    assert "REQUESTS_CA_BUNDLE" in str(caught.value)
    assert len(caught.value.attempts) == 1


def test_a_partial_file_is_resumed_over_tls(zoo: Zoo, tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_server.ca))
    file = spec(tls_server.serve("/a.bin", Answer(BODY, cut=1_000_000), Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert tls_server.requests[1].headers["Range"] == "bytes=1000000-"
    assert tls_server.sent == len(BODY)


def test_a_file_is_downloaded_through_a_connect_proxy_over_tls(
    zoo: Zoo, tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = spec(tls_server.serve("/a.bin", Answer(BODY)))
    proxy = Proxy()
    try:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_server.ca))
        monkeypatch.setenv("https_proxy", proxy.url)
        assert zoo.fetch(file).read_bytes() == BODY
        assert proxy.requests == [f"CONNECT localhost:{tls_server.port}"]
    finally:
        proxy.close()


def test_a_file_is_downloaded_through_a_plain_proxy(zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.serve("/a.bin", Answer(BODY))
    proxy = Proxy()
    try:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert zoo.fetch(spec(url)).read_bytes() == BODY
        assert proxy.requests == [f"GET {url}"]
    finally:
        proxy.close()


def test_no_proxy_is_respected(zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY


def test_a_dead_proxy_is_named_without_its_password(zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    with pytest.raises(DownloadError, match="the proxy failed") as caught:
        zoo.fetch(spec(server.url()))
    assert "secret" not in str(caught.value)


def test_an_unsupported_proxy_is_an_error_without_its_password(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "gopher://me:secret@127.0.0.1:1")
    with pytest.raises(DownloadError) as caught:
        zoo.fetch(spec(server.url()))
    assert "secret" not in str(caught.value)


def test_mirrors_come_first_and_rewrite_rules_apply_to_all_sources(tmp_path: Path) -> None:
    file = spec("https://hub.example/x/a.bin", "gdrive:some id", str(tmp_path / "a.bin"), "file:///data/a%20b.bin")
    settings = Settings(
        cache_dir=tmp_path,
        mirrors=("https://mirror.example/zoo/", str(tmp_path)),
        url_rewrites=(("https://hub.example/", "https://near.example/"),),
    )
    stored = f"{file.sha256[:16]}-a.bin"  # type: ignore[index]
    assert [source.label for source in sources_of(file, settings)] == [
        f"https://mirror.example/zoo/{stored}",
        str(tmp_path / stored),
        "https://near.example/x/a.bin",
        "https://drive.usercontent.google.com/download?…",
        str(tmp_path / "a.bin"),
        "/data/a b.bin",
    ]


@pytest.mark.parametrize("source", ["relative/a.bin", "ftp://host/a", "", "file://host/share/a"])
def test_a_source_of_another_kind_is_an_argument_error(zoo: Zoo, source: str) -> None:
    with pytest.raises(ArgumentError):
        zoo.fetch(spec(source))


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port/", "https://", "http://a b/", "http://\x00/"])
def test_an_invalid_url_is_a_failed_source(zoo: Zoo, server: Server, url: str) -> None:
    assert zoo.fetch(spec(url, server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert isinstance(redact(url), str)


def test_a_host_that_does_not_resolve_is_a_failed_source(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    url = server.serve("/a.bin", Answer(BODY))
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: fail() if host == "no.example" else real(host, *a, **k)
    )
    assert zoo.fetch(spec("http://no.example/a.bin", url)).read_bytes() == BODY


PAGE = """<html><body><form id="download-form" action="https://elsewhere.example/download" method="get">
<input type="submit" value="Download anyway"><input type="hidden" name="id" value="abc">
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="1-2"></form></body></html>"""


class Drive:
    """A stand-in for Google Drive: a page first, and the file only for the page's parameters."""

    @staticmethod
    def settings(zoo: Zoo, server: Server) -> Settings:
        return Settings(cache_dir=zoo.root, url_rewrites=(("https://drive.usercontent.google.com/", server.url("/")),))


def test_a_google_drive_id_is_fetched(zoo: Zoo, server: Server) -> None:
    server.serve("/download", Answer(BODY))
    assert zoo.fetch(spec("gdrive:abc"), settings=Drive.settings(zoo, server)).read_bytes() == BODY
    assert server.requests[0].path == "/download?export=download&confirm=t&id=abc"


def test_google_drives_confirmation_page_is_answered_on_the_same_host(zoo: Zoo, server: Server) -> None:
    page = Answer(PAGE.encode(), headers={"Content-Type": "text/html; charset=utf-8"})
    server.serve("/download", page, Answer(BODY))
    assert zoo.fetch(spec("gdrive:abc"), settings=Drive.settings(zoo, server)).read_bytes() == BODY
    assert server.requests[1].path == "/download?id=abc&export=download&confirm=t&uuid=1-2"


def test_google_drives_other_pages_end_in_a_clear_error(zoo: Zoo, server: Server) -> None:
    page = Answer(b"<html>Quota exceeded</html>", headers={"Content-Type": "text/html"})
    server.serve("/download", page)
    with pytest.raises(DownloadError, match="Google Drive answers with a page"):
        zoo.fetch(spec("gdrive:abc"), settings=Drive.settings(zoo, server))


def test_a_client_that_sends_nothing_imports_no_requests() -> None:
    code = "import sys; from repvgg_zoo.hub.http import *; RequestsClient().close(); print('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
