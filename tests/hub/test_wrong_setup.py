"""A wrong certificate bundle or proxy: a setting of the user's machine, not a failure of the network.

The kind: the error names the environment variable that is wrong, never shows a password in it, and sources that do not
need the setting are still tried.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from repvgg_zoo._settings import read_settings
from repvgg_zoo.errors import ArgumentError, DownloadError
from repvgg_zoo.hub import Settings, fetch_file

from .conftest import BODY, Zoo, spec
from .server import Answer, Server, TlsServer


def write_bundle(folder: Path, kind: str) -> Path:
    path = folder / "ca.pem"
    if kind == "a folder without certificates":
        path.mkdir()
    elif kind != "nothing":
        path.write_text({"an empty file": "", "another text": "hello", "half a certificate": "-----BEGIN CERT"}[kind])
    return path


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    "kind", ["nothing", "an empty file", "another text", "half a certificate", "a folder without certificates"]
)
def test_a_wrong_certificate_bundle_is_named_and_the_next_source_is_tried(
    zoo: Zoo,
    tls_server: TlsServer,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    kind: str,
) -> None:
    path = write_bundle(tmp_path, kind)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(path))
    secure = tls_server.serve("/a.bin", Answer(BODY))
    with pytest.raises(DownloadError) as caught:
        zoo.fetch(spec(secure))
    assert variable in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(caught.value.attempts) == 1
    assert zoo.fetch(spec(secure, server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY


PROXIES = (
    "http://user:S3cr#t@127.0.0.1:9",
    "http://user:S3cr/et@127.0.0.1:9",
    "http://user:12/S3cret@127.0.0.1:9",
    "http://user:12#S3cret@127.0.0.1:9",
    "http://user:S3cr@et@127.0.0.1:9",
    "http://user:S3cr[et@127.0.0.1:9",
    "http://user:S3cr%et@127.0.0.1:9",
    "user:S3cret@127.0.0.1:9",
    "http://user:S3cret@127.0.0.1:port",
    "http://user:S3cret@127.0.0.1:99999",
    "http://user:S3cr?t@127.0.0.1:9",
    "http://DOM\\user:S3cret@127.0.0.1:9",
    "http://user:S3cr et@127.0.0.1:9",
    "http://user:S3cr\u00e9t@127.0.0.1:9",
    "gopher://user:S3cret@127.0.0.1:9",
    "socks5://user:S3cret@127.0.0.1:9",
    "http://user:S3cret@",
    "http://",
    "//x",
    "[",
    ":",
)


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", PROXIES)
def test_a_wrong_proxy_is_named_without_its_password_and_the_next_source_is_tried(
    zoo: Zoo,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    proxy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DownloadError) as caught:
        zoo.fetch(spec("https://files.example/a.bin"))
    assert variable in str(caught.value)
    assert "S3c" not in str(caught.value) + repr(vars(caught.value)) + caplog.text
    file = spec("https://files.example/a.bin", server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY


def test_a_proxy_that_asks_for_a_password_is_named(zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server stands in for the proxy: to a CONNECT, which it does not know, it answers 501."""
    monkeypatch.setenv("https_proxy", server.url("/"))
    with pytest.raises(DownloadError, match="https_proxy"):
        zoo.fetch(spec("https://files.example/a.bin"))


NUMBERS = {
    "REPVGG_ZOO_TIMEOUT": ("timeout", 2.5, "2.5"),
    "REPVGG_ZOO_STALL_TIMEOUT": ("stall_timeout", 90.0, " 90 "),
    "REPVGG_ZOO_RETRIES": ("retries", 0, "0"),
}


@pytest.mark.parametrize(("variable", "expected"), NUMBERS.items())
def test_times_and_retries_are_settings(variable: str, expected: tuple) -> None:
    field, value, text = expected
    assert getattr(read_settings({"REPVGG_ZOO_HOME": "/c", variable: text}), field) == value
    assert read_settings({"REPVGG_ZOO_HOME": "/c", variable: ""}) == read_settings({"REPVGG_ZOO_HOME": "/c"})


@pytest.mark.parametrize("variable", NUMBERS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e3", "ten", "1_0", "\u0661", "9999999", "5s", "0x10", "1.5.2"])
def test_a_time_or_number_that_makes_no_sense_is_an_argument_error(variable: str, value: str) -> None:
    with pytest.raises(ArgumentError, match=variable) as caught:
        read_settings({"REPVGG_ZOO_HOME": "/c", variable: value})
    assert caught.value.actual == value
    assert caught.value.hint is not None


@pytest.mark.parametrize("value", ["0", "0.0"])
def test_a_timeout_of_nothing_is_an_argument_error(value: str) -> None:
    for variable in ("REPVGG_ZOO_TIMEOUT", "REPVGG_ZOO_STALL_TIMEOUT"):
        with pytest.raises(ArgumentError, match=variable):
            read_settings({"REPVGG_ZOO_HOME": "/c", variable: value})


def test_the_settings_are_those_of_the_download(tmp_path: Path, server: Server) -> None:
    """Without a retry, a server that stalls is given up after the stall time."""
    file = spec(server.serve("/a.bin", Answer(BODY, cut=1_000_000, stall=True)))
    settings = Settings(cache_dir=tmp_path, stall_timeout=0.3, retries=0)
    with pytest.raises(DownloadError, match="no bytes arrived in time"):
        fetch_file(file, settings=settings, progress=False)
    assert len(server.requests) == 1
