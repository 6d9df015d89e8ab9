"""Servers that cost more than the file is worth: compressed, endless and slow answers.

The kind: whatever a server sends, memory and disk are bounded by the file's size (or by a constant, if nobody states
it), time by a floor of the speed, and then the next source is tried.
"""

from __future__ import annotations

import gzip
import socket
import time
from typing import Callable, List, Mapping, Optional

import pytest

from repvgg_zoo.errors import DownloadError
from repvgg_zoo.hub.download import Limits
from repvgg_zoo.hub.http import RequestsClient, SourceError
from repvgg_zoo.hub.sources import Source

from .conftest import BODY, Zoo, spec
from .server import Answer, RawServer, Server

ENCODINGS = ("gzip", "GZIP", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "aws-chunked", "unheard-of")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_compressed_body_is_refused_and_the_next_source_is_used(zoo: Zoo, server: Server, encoding: str) -> None:
    """A few kilobytes may be gigabytes of compressed zeros."""
    bomb = server.serve("/bomb.bin", Answer(gzip.compress(BODY, 1), headers={"Content-Encoding": encoding}))
    assert zoo.fetch(spec(bomb, server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/bomb.bin", "/a.bin"]
    assert server.requests[0].headers["Accept-Encoding"] == "identity"
    with pytest.raises(DownloadError, match="it compresses the file although that was not requested"):
        Zoo(zoo.root.parent / "other").fetch(spec(bomb))


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_an_encoding_that_changes_nothing_is_accepted(zoo: Zoo, server: Server, encoding: str) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY, headers={"Content-Encoding": encoding})))
    assert zoo.fetch(file).read_bytes() == BODY


def test_a_compressed_range_is_refused_and_the_bytes_before_it_are_kept(zoo: Zoo, server: Server) -> None:
    first = server.serve("/a.bin", Answer(BODY, cut=1_000_000), Answer(BODY, headers={"Content-Encoding": "gzip"}))
    assert zoo.fetch(spec(first, server.serve("/b.bin", Answer(BODY)))).read_bytes() == BODY
    assert server.requests[-1].headers["Range"] == "bytes=1000000-"


def test_a_compressed_transfer_is_refused(zoo: Zoo) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    with running(lambda to: to.sendall(head + gzip.compress(BODY))) as server:
        with pytest.raises(DownloadError, match="it compresses the file"):
            zoo.fetch(spec(server.url, size=None, sha256=None), allow_unverified=True)


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_the_body_of_a_redirect_is_not_read(zoo: Zoo, server: Server, encoding: Optional[str]) -> None:
    headers = {"Location": server.serve("/a.bin", Answer(BODY)), **({"Content-Encoding": encoding} if encoding else {})}
    moved = server.serve("/moved", Answer(gzip.compress(BODY * 20, 1), status=302, headers=headers, chunked=True))
    assert zoo.fetch(spec(moved)).read_bytes() == BODY
    assert server.sent < 10 * len(BODY)


@pytest.mark.parametrize("integrity", ["sha256", "none"])
def test_an_endless_body_of_unknown_size_stops_at_a_bound(zoo: Zoo, server: Server, integrity: str) -> None:
    fields = {"size": None} if integrity == "sha256" else {"size": None, "sha256": None}
    endless = spec(server.serve("/endless.bin", Answer(BODY * 20, chunked=True)), **fields)
    limits = Limits(max_unknown_size=1_000_000)
    with pytest.raises(DownloadError, match=r"more than 1.0 MB, and the registry states no size"):
        zoo.fetch(endless, allow_unverified=True, services=zoo.services(limits=limits))
    assert len(server.requests) == 1
    assert server.sent < 10 * len(BODY)
    assert zoo.names() == []


def test_a_stated_length_above_the_bound_is_refused_before_the_body(zoo: Zoo, server: Server) -> None:
    huge = server.serve("/huge.bin", Answer(b"x", headers={"Content-Length": str(10**13)}))
    other = server.serve("/a.bin", Answer(BODY))
    assert zoo.fetch(spec(huge, other, size=None)).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/huge.bin", "/a.bin"]


def test_the_bound_does_not_apply_to_a_size_that_the_registry_states(zoo: Zoo, server: Server) -> None:
    limits = Limits(max_unknown_size=1000)
    file = spec(server.serve("/a.bin", Answer(BODY, chunked=True)))
    assert zoo.fetch(file, services=zoo.services(limits=limits)).read_bytes() == BODY


class ScriptedClient:
    """Answers with bodies whose pieces take time on the test's clock: pairs of seconds and bytes; None breaks off."""

    def __init__(self, zoo: Zoo, *bodies: List[Optional[tuple]], wait: float = 0.0) -> None:
        self._zoo, self._bodies, self._wait = zoo, list(bodies), wait
        self.urls: List[str] = []

    def get(self, source: Source, headers: Mapping[str, str]) -> ScriptedResponse:
        self.urls.append(source.url)
        self._zoo.clock.now += self._wait
        start = int(headers.get("Range", "bytes=0-")[6:-1])
        return ScriptedResponse(self._zoo, self._bodies.pop(0), start)

    def close(self) -> None:
        pass


class ScriptedResponse:
    def __init__(self, zoo: Zoo, pieces: List[Optional[tuple]], start: int) -> None:
        self._zoo, self._pieces, self._at = zoo, list(pieces), start
        self.status = 206 if start else 200
        self.headers = {"Content-Length": str(len(BODY) - start)}
        if start:
            self.headers["Content-Range"] = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"

    def read(self, limit: int) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else (0, limit)
        if piece is None:
            raise SourceError("the connection broke", retryable=True)
        seconds, size = piece
        self._zoo.clock.now += seconds
        data = BODY[self._at : self._at + min(size, limit)]
        self._at += len(data)
        return data

    def close(self) -> None:
        pass


ONE, TWO = "http://one.example/a.bin", "http://two.example/a.bin"
SLOW_SOURCES = {
    "a byte every second": ([(1, 1)] * 1000,),
    "a burst every 20 seconds": ([(20, 16_000)] * 1000,),
    "slow transfers that break before a window ends": (
        *([(12, 1), (12, 1), None],) * 3,
        [(12, 1), (12, 1), (12, 30_000), (0, 1)],
    ),
}


@pytest.mark.parametrize("bodies", SLOW_SOURCES.values(), ids=SLOW_SOURCES)
def test_a_source_that_is_slow_on_average_is_left_for_the_next_one(zoo: Zoo, bodies: tuple) -> None:
    client = ScriptedClient(zoo, *bodies, [])
    assert zoo.fetch(spec(ONE, TWO), services=zoo.services(client=client)).read_bytes() == BODY
    assert client.urls == [ONE] * len(bodies) + [TWO]


def test_a_fast_source_whose_connection_becomes_slow_is_tried_again(zoo: Zoo) -> None:
    client = ScriptedClient(zoo, [(1, 90_000)] * 20 + [(10, 1)] * 5, [])
    assert zoo.fetch(spec(ONE, TWO), services=zoo.services(client=client)).read_bytes() == BODY
    assert client.urls == [ONE, ONE]


def test_a_source_that_needs_long_for_the_first_byte_is_not_slow(zoo: Zoo) -> None:
    client = ScriptedClient(zoo, [(2, 1000), (1, 90_000)], wait=29)
    assert zoo.fetch(spec(ONE, TWO), services=zoo.services(client=client)).read_bytes() == BODY
    assert client.urls == [ONE]


def test_pauses_that_a_server_asks_for_do_not_count_as_slow(zoo: Zoo, server: Server) -> None:
    busy = Answer(b"busy", status=503, headers={"Retry-After": "59"})
    assert zoo.fetch(spec(server.serve("/a.bin", busy, busy, busy, Answer(BODY)))).read_bytes() == BODY


def drip(data: bytes, then: bytes = b"x") -> Callable[[socket.socket], None]:
    """Send some bytes at once, and then one piece after the other, without end and slowly."""

    def write(to: socket.socket) -> None:
        to.sendall(data)
        for _ in range(400):
            time.sleep(0.05)
            to.sendall(then)

    return write


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "a status line": drip(b"HTTP/1.1 200 "),
    "a header": drip(OK + b"X-Name: "),
    "headers": drip(OK, b"X-Name: value\r\n"),
    "interim answers": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a chunk's size": drip(CHUNKED + b"5;"),
    "trailers": drip(CHUNKED + b"1\r\nx\r\n0\r\n", b"X-Name: value\r\n"),
}


@pytest.mark.parametrize("write", DRIPS.values(), ids=DRIPS)
def test_bytes_that_are_not_of_the_body_do_not_keep_a_connection_alive(
    zoo: Zoo, server: Server, write: Callable[[socket.socket], None]
) -> None:
    with running(write) as slow:
        client = RequestsClient(5.0, 0.3)
        services = zoo.services(client=client, limits=Limits(max_attempts=2))
        began = time.monotonic()
        file = spec(slow.url, server.serve("/a.bin", Answer(BODY)), size=None)
        assert zoo.fetch(file, services=services).read_bytes() == BODY
        assert time.monotonic() - began < 15  # 40 without the bound
    assert slow.requests == 2


class running:
    """A raw server for the duration of a block."""

    def __init__(self, write: Callable[[socket.socket], None]) -> None:
        self._server = RawServer(write)

    def __enter__(self) -> RawServer:
        return self._server

    def __exit__(self, *error: object) -> None:
        self._server.close()
