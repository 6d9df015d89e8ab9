"""Redirects into private networks, and credentials that must not follow a redirect.

The kind: a public host must not make this machine send requests, or passwords, to hosts that the user did not name:
to the machine itself, to the network behind a firewall, to a cloud's metadata service. Where the names are resolved by
a proxy, that is the proxy's to decide. Hosts that the user did name, such as a mirror in a company, stay possible.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Iterator, Optional

import pytest

from repvgg_zoo.errors import DownloadError
from repvgg_zoo.hub.addresses import LINK_LOCAL, LOOPBACK, PRIVATE, PUBLIC, scope_of
from repvgg_zoo.hub.http import RequestsClient

from .conftest import BODY, Zoo, spec
from .proxy import Proxy
from .server import Answer, Server

SCOPES = {
    "8.8.8.8": PUBLIC,
    "172.32.0.1": PUBLIC,
    "100.128.0.1": PUBLIC,
    "198.18.0.7": PUBLIC,  # what some local proxies answer for every name
    "2606:4700::1111": PUBLIC,
    "10.0.0.1": PRIVATE,
    "172.16.0.1": PRIVATE,
    "172.31.255.255": PRIVATE,
    "192.168.1.1": PRIVATE,
    "100.100.100.200": PRIVATE,  # a cloud's metadata service
    "fd00::1": PRIVATE,
    "fec0::1": PRIVATE,
    "::ffff:10.0.0.1": PRIVATE,
    "2002:0a00:0001::": PRIVATE,  # 6to4 of 10.0.0.1
    "169.254.169.254": LINK_LOCAL,
    "fe80::1": LINK_LOCAL,
    "fe80::1%eth0": LINK_LOCAL,
    "127.0.0.1": LOOPBACK,
    "127.1.2.3": LOOPBACK,
    "0.0.0.0": LOOPBACK,
    "::1": LOOPBACK,
    "::": LOOPBACK,
    "::ffff:127.0.0.1": LOOPBACK,
}


@pytest.mark.parametrize(("address", "scope"), SCOPES.items())
def test_the_scope_of_an_address(address: str, scope: int) -> None:
    assert scope_of(address) == scope


@pytest.fixture
def other() -> Iterator[Server]:
    """A server at another address of this machine."""
    running = Server(address="127.0.0.2")
    yield running
    running.close()


def client(source: int, target: int) -> RequestsClient:
    """A client for which 127.0.0.1 is in one scope and 127.0.0.2 in another."""
    scopes = {"127.0.0.1": source, "127.0.0.2": target}
    return RequestsClient(20.0, 20.0, scope_of=lambda address: scopes[address])


@pytest.mark.parametrize(
    ("source", "target"),
    [(PUBLIC, PRIVATE), (PUBLIC, LINK_LOCAL), (PUBLIC, LOOPBACK), (PRIVATE, LINK_LOCAL), (PRIVATE, LOOPBACK)],
)
@pytest.mark.parametrize("hops", [1, 2])
def test_no_redirect_leads_into_a_narrower_network(
    zoo: Zoo, server: Server, other: Server, source: int, target: int, hops: int
) -> None:
    secret = other.serve("/a.bin", Answer(BODY))
    near = server.serve("/near", Answer(status=302, headers={"Location": secret}))
    far = server.serve("/far", Answer(status=302, headers={"Location": near}))
    with pytest.raises(DownloadError, match=r"a redirect to 127\.0\.0\.2, .*, was refused"):
        zoo.fetch(spec(near if hops == 1 else far), services=zoo.services(client=client(source, target)))
    assert other.requests == []


@pytest.mark.parametrize(
    ("source", "target"), [(PUBLIC, PUBLIC), (PRIVATE, PRIVATE), (PRIVATE, PUBLIC), (LOOPBACK, LOOPBACK)]
)
def test_a_redirect_within_a_network_or_out_of_it_is_followed(
    zoo: Zoo, server: Server, other: Server, source: int, target: int
) -> None:
    moved = server.serve("/moved", Answer(status=302, headers={"Location": other.serve("/a.bin", Answer(BODY))}))
    assert zoo.fetch(spec(moved), services=zoo.services(client=client(source, target))).read_bytes() == BODY


def test_a_source_may_itself_be_private(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file, services=zoo.services(client=client(PRIVATE, PUBLIC))).read_bytes() == BODY


def test_a_private_first_source_allows_the_next_one_nothing(zoo: Zoo, server: Server, other: Server) -> None:
    """A mirror at 127.0.0.2, and then a public source that redirects to it."""
    mirror = other.serve("/a.bin", Answer(b"no", status=404))
    moved = server.serve("/moved", Answer(status=302, headers={"Location": mirror}))
    with pytest.raises(DownloadError, match="was refused"):
        zoo.fetch(spec(mirror, moved), services=zoo.services(client=client(PUBLIC, PRIVATE)))
    assert len(other.requests) == 1


def test_a_name_is_judged_by_the_address_it_leads_to(zoo: Zoo, server: Server, other: Server) -> None:
    """Whatever the resolver said at first, what counts is where the connection ends."""
    moved = server.serve("/moved", Answer(status=302, headers={"Location": f"http://localhost:{server.port}/a.bin"}))
    server.serve("/a.bin", Answer(BODY))
    scopes = iter([PUBLIC, LOOPBACK])
    judged = RequestsClient(20.0, 20.0, scope_of=lambda address: next(scopes))
    with pytest.raises(DownloadError, match="an address of this machine, was refused"):
        zoo.fetch(spec(moved), services=zoo.services(client=judged))
    assert len(server.requests) == 1


@pytest.fixture
def _proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A proxy for all of the test's connections."""
    proxy = Proxy()
    monkeypatch.setenv("http_proxy", proxy.url)
    yield
    proxy.close()


@pytest.mark.usefixtures("_proxy")
def test_a_proxy_resolves_names_itself(zoo: Zoo, server: Server, other: Server) -> None:
    moved = server.serve("/moved", Answer(status=302, headers={"Location": other.serve("/a.bin", Answer(BODY))}))
    assert zoo.fetch(spec(moved), services=zoo.services(client=client(PUBLIC, LOOPBACK))).read_bytes() == BODY


@pytest.mark.usefixtures("_proxy")
def test_a_redirect_past_the_proxy_into_a_private_network_is_refused(
    zoo: Zoo, server: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = server.serve("/moved", Answer(status=302, headers={"Location": other.serve("/a.bin", Answer(BODY))}))
    monkeypatch.setenv("no_proxy", "127.0.0.2")
    with pytest.raises(DownloadError, match="was refused"):
        zoo.fetch(spec(moved), services=zoo.services(client=client(PUBLIC, PRIVATE)))
    assert other.requests == []


def write_netrc(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "netrc"
    path.write_text(text)
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


def sent(server: Server) -> Optional[str]:
    """The user and password that the last request had."""
    value = server.requests[-1].headers.get("Authorization")
    return None if value is None else base64.b64decode(value[len("Basic ") :]).decode()


ENTRY, DEFAULT = "machine 127.0.0.1 login me password S3cret\n", "default login anyone password S3cret\n"


def test_netrc_goes_to_the_sources_own_host(
    zoo: Zoo, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_netrc(monkeypatch, tmp_path, ENTRY)
    server.serve("/a.bin", Answer(BODY))
    moved = server.serve("/moved", Answer(status=302, headers={"Location": "/a.bin"}))
    assert zoo.fetch(spec(moved)).read_bytes() == BODY
    assert sent(server) == "me:S3cret"


@pytest.mark.parametrize("netrc", [ENTRY, DEFAULT, ENTRY + "machine 127.0.0.2 login you password S3cret\n" + DEFAULT])
def test_netrc_does_not_follow_a_redirect_to_another_origin(
    zoo: Zoo, server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, netrc: str
) -> None:
    write_netrc(monkeypatch, tmp_path, netrc)
    another_port = Server()
    try:
        for target in (other, another_port):
            target.serve("/a.bin", Answer(b"no", status=404))
            moved = server.serve("/moved", Answer(status=302, headers={"Location": target.url()}))
            with pytest.raises(DownloadError):
                zoo.fetch(spec(moved))
            assert sent(target) is None
    finally:
        another_port.close()


def test_the_default_entry_of_netrc_is_sent_nowhere(
    zoo: Zoo, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_netrc(monkeypatch, tmp_path, DEFAULT)
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert sent(server) is None


def test_a_netrc_that_cannot_be_read_is_logged_without_its_content(
    zoo: Zoo, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_netrc(monkeypatch, tmp_path, "machine 127.0.0.1 S3cret S3cret S3cret")
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert str(tmp_path / "netrc") in caplog.text
    assert "S3c" not in caplog.text
