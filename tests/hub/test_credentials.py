"""Credentials of private mirrors: a header for one scheme, host and port, and for nothing else.

They come from a variable or from a file that only its owner can read; whatever happens, nobody else sees them: not
another host, not a log, not an error, not a representation, not somebody who listens to the network.
"""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path
from typing import Any, Iterator

import pytest

from repvgg_zoo._settings import read_secrets
from repvgg_zoo._urls import origin
from repvgg_zoo.cli.doctor.settings import check_environment
from repvgg_zoo.errors import ArgumentError, DownloadError
from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.credentials import read_credentials

from .conftest import BODY, FILE, NAME, Zoo, fill, spec
from .server import Answer, Server, TlsServer

SECRET = "s3cret-token"
BEARER = f"Authorization: Bearer {SECRET}"


def write_private(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def fetch(zoo: Zoo, url: str, **changed: Any) -> Path:
    """Fetch with the client that a user gets, and its credentials."""
    return zoo.fetch(spec(url), services=zoo.services(client=None, **changed))


@pytest.fixture
def other() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(params=["variable", "file"])
def set_entries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def set_them(text: str) -> None:
        if request.param == "variable":
            monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", text)
        else:
            monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS_FILE", write_private(tmp_path / "credentials", text))

    return set_them


def test_a_header_is_sent_to_the_mirror_of_its_entry(zoo: Zoo, server: Server, set_entries: Any) -> None:
    set_entries(f"# our mirror\n\n  {server.url('')}   {BEARER}  \n{server.url('/')} X-Client-Id: 7 of 9\n")
    server.serve(f"/zoo/{NAME}", Answer(BODY, cut=1_000_000), Answer(BODY))
    settings = Settings(cache_dir=zoo.root, mirrors=(server.url("/zoo"),))
    assert zoo.fetch(FILE, settings=settings, services=zoo.services(client=None)).read_bytes() == BODY
    assert len(server.requests) == 2
    for request in server.requests:
        assert request.headers["Authorization"] == f"Bearer {SECRET}"
        assert request.headers["X-Client-Id"] == "7 of 9"


def test_a_header_is_sent_over_https(
    zoo: Zoo, tls_server: TlsServer, set_entries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls_server.ca))
    set_entries(f"https://LOCALHOST:{tls_server.port} {BEARER}")
    fetch(zoo, tls_server.serve("/a.bin", Answer(BODY)))
    assert tls_server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("address", ["http://localhost:{port}", "https://127.0.0.1:{port}", "http://127.0.0.1:{next}"])
def test_a_header_of_another_host_scheme_or_port_is_not_sent(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    entry = address.format(port=server.port, next=server.port + 1)
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{entry} {BEARER}")
    fetch(zoo, server.serve("/a.bin", Answer(BODY)))
    assert SECRET not in repr(server.requests)


def test_a_header_does_not_follow_a_redirect_to_another_origin(
    zoo: Zoo, server: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{server.url('')} {BEARER}")
    other.serve("/a.bin", Answer(BODY))
    server.serve("/here", Answer(status=302, headers={"Location": other.url()}))
    fetch(zoo, server.serve("/moved", Answer(status=302, headers={"Location": "/here"})))
    assert [SECRET in repr(request) for request in server.requests] == [True, True]
    assert [SECRET in repr(request) for request in other.requests] == [False]


def test_a_redirect_from_elsewhere_gets_no_header(
    zoo: Zoo, server: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{other.url('')} {BEARER}")
    other.serve("/a.bin", Answer(BODY))
    fetch(zoo, server.serve("/moved", Answer(status=302, headers={"Location": other.url()})))
    assert SECRET not in repr(server.requests) + repr(other.requests)


def test_an_entry_comes_before_netrc_and_a_password_in_the_url_before_both(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = write_private(tmp_path / "netrc", "machine 127.0.0.1 login me password netrc\n")
    monkeypatch.setenv("NETRC", netrc)
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{server.url('')} {BEARER}")
    url = server.serve("/a.bin", Answer(status=404))
    for address in (url, url.replace("http://", "http://me:url@")):
        with pytest.raises(DownloadError):
            fetch(zoo, address)
    basic = base64.b64encode(b"me:url").decode()
    sent = [request.headers["Authorization"] for request in server.requests]
    assert sent == [f"Bearer {SECRET}", f"Basic {basic}"]


def test_a_secret_is_in_no_log_error_or_representation(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{server.url('')} {BEARER}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    server.serve("/a.bin", Answer(b"no", status=403))
    with caplog.at_level(logging.DEBUG), pytest.raises(DownloadError) as caught:
        fetch(zoo, server.url())
    assert SECRET in repr(server.requests)
    output = str(caught.value) + repr(caught.value.__dict__) + caplog.text
    assert SECRET not in output + repr(read_credentials()) + repr(read_secrets())


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_secret_that_the_server_repeats_is_not_printed(
    zoo: Zoo, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{server.url('')} X-Key: {SECRET}\n{server.url('')} {BEARER}")
    server.serve("/a.bin", Answer(f"not valid: {SECRET}, Bearer {SECRET}".encode(), status=status))
    with caplog.at_level(logging.DEBUG), pytest.raises(DownloadError, match="not valid: …") as caught:
        fetch(zoo, server.url())
    assert SECRET not in str(caught.value) + repr(caught.value.__dict__) + caplog.text


def test_a_header_over_http_does_not_go_through_a_proxy(
    zoo: Zoo, server: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", f"{server.url('')} {BEARER}")
    monkeypatch.setenv("http_proxy", other.url(""))
    with pytest.raises(DownloadError, match=r"proxy of http_proxy .*no_proxy"):
        fetch(zoo, server.serve("/a.bin", Answer(BODY)))
    assert other.requests == []
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(zoo, server.url())
    assert SECRET in repr(server.requests)


@pytest.mark.parametrize(
    "entry",
    [
        SECRET,
        f"Authorization: Bearer {SECRET}",
        f"https://host.example {SECRET}",
        f"https://host.example {SECRET}:",
        f"https://host.example :{SECRET}",
        f"https://host.example X {SECRET}: 1",
        f"https://host.example Authorization: Bearer\t{SECRET}",
        f"https://host.example Authorization: Bearer é{SECRET}",
        f"host.example Authorization: Bearer {SECRET}",
        f"https:// Authorization: Bearer {SECRET}",
        f"https://[::1 Authorization: Bearer {SECRET}",
        f"https://me:{SECRET}@host.example X-A: 1",
        f"https://host.example/zoo Authorization: Bearer {SECRET}",
        f"https://host.example?{SECRET} X-A: 1",
        f"http://host.example Authorization: Bearer {SECRET}",
        f"http://10.0.0.1 Authorization: Bearer {SECRET}",
        f"http://127.0.0.1.host.example Authorization: Bearer {SECRET}",
        f"ftp://host.example Authorization: Bearer {SECRET}",
        f"https://host.example Host: {SECRET}",
        f"https://host.example range: {SECRET}",
    ],
)
def test_an_invalid_entry_is_named_by_its_line_and_not_printed(
    set_entries: Any, entry: str, request: pytest.FixtureRequest
) -> None:
    set_entries(f"# ours\n{entry}\n")
    with pytest.raises(ArgumentError, match="line 2 of REPVGG_ZOO_CREDENTIALS") as caught:
        read_credentials()
    assert "https://files.example Authorization: Bearer TOKEN" in str(caught.value.hint)
    assert SECRET not in str(caught.value) + repr(caught.value.__dict__)


@pytest.mark.parametrize("garbled", [f"https://host.example {BEARER}\r", f"'https://host.example {BEARER}'"])
def test_a_garbled_variable_is_refused_and_not_printed(garbled: str) -> None:
    for variable in ("REPVGG_ZOO_CREDENTIALS", "HF_TOKEN"):
        with pytest.raises(ArgumentError, match=f"{variable} contains") as caught:
            read_credentials({variable: garbled})
        assert SECRET not in str(caught.value) + repr(caught.value.__dict__)


def test_a_file_with_the_line_ends_of_windows_is_read(tmp_path: Path) -> None:
    path = write_private(tmp_path / "credentials", "")
    (tmp_path / "credentials").write_bytes(f"\ufeff# ours\r\nhttps://host.example {BEARER}\r\n".encode())
    ((header,),) = read_credentials({"REPVGG_ZOO_CREDENTIALS_FILE": path}).values()
    assert header.value == f"Bearer {SECRET}"


def test_one_header_twice_is_an_error(set_entries: Any) -> None:
    set_entries(f"https://host.example X-A: {SECRET}\nhttps://host.example:443 x-a: {SECRET}\n")
    with pytest.raises(ArgumentError, match=r"host\.example twice") as caught:
        read_credentials()
    assert SECRET not in str(caught.value) + repr(caught.value.__dict__)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o610])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_private(tmp_path / "credentials", f"https://host.example {BEARER}", mode)
    with pytest.raises(ArgumentError, match="other users can read or change") as caught:
        read_credentials({"REPVGG_ZOO_CREDENTIALS_FILE": path})
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write_private(tmp_path / "credentials", f"https://host.example {BEARER}")
    os.chown(path, 12345, -1)
    with pytest.raises(ArgumentError, match="belongs to another user"):
        read_credentials({"REPVGG_ZOO_CREDENTIALS_FILE": path})


def test_a_path_that_is_not_a_text_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "binary").write_bytes(b"\xff" + SECRET.encode())
    (tmp_path / "binary").chmod(0o600)
    (tmp_path / "big").write_bytes(b"#" * ((1 << 20) + 1))
    (tmp_path / "big").chmod(0o600)
    reasons = {"none": "No such file", "": "folder", "fifo": "not a regular", "binary": "UTF-8", "big": "1 MiB"}
    for name, reason in reasons.items():
        with pytest.raises(ArgumentError, match=reason) as caught:
            read_credentials({"REPVGG_ZOO_CREDENTIALS_FILE": str(tmp_path / name)})
        assert "REPVGG_ZOO_CREDENTIALS_FILE" in caught.value.message
        assert SECRET not in repr(caught.value.__dict__) + repr(caught.value.__context__)


def test_entries_in_place_of_a_path_are_refused_and_not_printed() -> None:
    with pytest.raises(ArgumentError, match="REPVGG_ZOO_CREDENTIALS_FILE is not an absolute path") as caught:
        read_credentials({"REPVGG_ZOO_CREDENTIALS_FILE": f"https://host.example {BEARER}"})
    assert SECRET not in str(caught.value) + repr(caught.value.__dict__)


def test_a_cached_file_needs_no_credentials(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", "not valid")
    fill(zoo.root)
    assert zoo.fetch(FILE).read_bytes() == BODY
    with pytest.raises(ArgumentError):
        zoo.fetch(spec("http://127.0.0.1:1/b.bin", body=b"b"), services=zoo.services(client=None))
    assert zoo.parts() == []


def test_doctor_reports_entries_that_are_not_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPVGG_ZOO_CREDENTIALS", SECRET)
    (finding,) = [finding for finding in check_environment() if finding.status == "fail"]
    assert "line 1 of REPVGG_ZOO_CREDENTIALS" in finding.text
    assert SECRET not in repr(check_environment())


# Hugging Face ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "receiver"),
    [
        ("", "https://huggingface.co"),
        ("https://hub.example/", "https://hub.example:443"),
        ("http://127.0.0.1:8080/hf", "http://127.0.0.1:8080"),
        ("http://hub.example", ""),
        ("hub.example", ""),
    ],
)
def test_the_token_of_hugging_face_belongs_to_its_endpoint(endpoint: str, receiver: str) -> None:
    credentials = read_credentials({"HF_TOKEN": f" {SECRET}\n", "HF_ENDPOINT": endpoint})
    assert list(credentials) == ([origin(receiver)] if receiver else [])
    assert all(headers[0].value == f"Bearer {SECRET}" for headers in credentials.values())


def test_an_entry_for_hugging_face_comes_before_its_token() -> None:
    environ = {"HF_TOKEN": "of-the-machine", "REPVGG_ZOO_CREDENTIALS": f"https://huggingface.co {BEARER}"}
    ((header,),) = read_credentials(environ).values()
    assert header.value == f"Bearer {SECRET}"


def test_a_token_with_a_line_break_is_refused_and_not_printed() -> None:
    with pytest.raises(ArgumentError, match="HF_TOKEN") as caught:
        read_credentials({"HF_TOKEN": f"{SECRET}\nX: y"})
    assert SECRET not in str(caught.value) + repr(caught.value.__dict__)
