"""Downloads over HTTP: whole, short, long, wrong, broken and slow bodies; statuses; redirects."""

from __future__ import annotations

import email.utils
import hashlib
import os
import stat

import pytest

from repvgg_zoo.errors import DownloadError, IntegrityError
from repvgg_zoo.hub.download import Limits
from repvgg_zoo.hub.http import RequestsClient

from .conftest import BODY, OTHER, FakeClock, Zoo, spec
from .server import Answer, Server

DIGEST = hashlib.sha256(BODY).hexdigest()


def stored(zoo: Zoo) -> list:
    """The cache after a successful download: the file, its stamp, nothing else."""
    name = f"{DIGEST[:16]}-a.bin"
    return [name, f"{name}.stamp"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_a_complete_body_is_published_with_the_users_umask(zoo: Zoo, server: Server, umask: int) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    before = os.umask(umask)
    try:
        path = zoo.fetch(file)
    finally:
        os.umask(before)
    assert path.read_bytes() == BODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert zoo.names() == stored(zoo)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "short",
    [
        Answer(BODY, cut=1_000_000),  # Content-Length says more
        Answer(BODY, cut=1_000_000, chunked=True),  # no Content-Length, and the last chunk is missing
        Answer(BODY[:1_000_000], chunked=True),  # a proper end, but too early
        Answer(BODY[:1_000_000], length=False),  # neither length nor chunks
        Answer(BODY, cut=1_000_000, reset=True),  # connection reset
        Answer(BODY, cut=1_000_000, stall=True),  # silence
        Answer(BODY, cut=0, stall=True),  # silence before the first byte
    ],
    ids=["length", "chunked", "early-end", "no-length", "reset", "stall", "stall-at-once"],
)
def test_a_body_that_breaks_off_is_resumed_and_never_published_short(zoo: Zoo, server: Server, short: Answer) -> None:
    file = spec(server.serve("/a.bin", short, Answer(BODY)))
    client = RequestsClient(read_timeout=1.0 if short.stall else 20.0)
    assert zoo.fetch(file, services=zoo.services(client=client)).read_bytes() == BODY
    assert zoo.names() == stored(zoo)
    assert len(server.requests) == 2
    if short.cut != 0 and not short.reset:  # a reset also drops what was sent and not yet read
        assert server.requests[1].headers["Range"] == "bytes=1000000-"
        assert server.sent == len(BODY)


def test_a_source_that_always_breaks_off_is_given_up_and_its_bytes_are_kept(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY, cut=300_000, ranges=False)))
    with pytest.raises(DownloadError) as caught:
        zoo.fetch(file)
    assert len(set(caught.value.attempts)) == 1
    assert len(caught.value.attempts) == 4
    assert "300000" in caught.value.attempts[0]
    assert [path.name.split(".")[1] for path in zoo.parts()] == ["released"]


def test_a_connection_that_keeps_breaking_is_retried_while_bytes_arrive(zoo: Zoo, server: Server) -> None:
    """Failures are counted in a row, not in all."""
    file = spec(server.serve("/a.bin", Answer(BODY, cut=200_000)))
    limits = Limits(reset_after_bytes=100_000)
    assert zoo.fetch(file, services=zoo.services(limits=limits)).read_bytes() == BODY
    assert len(server.requests) == 15


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_longer_than_the_registry_says_is_refused_and_removed(zoo: Zoo, server: Server, chunked: bool) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY + b"more", chunked=chunked)))
    with pytest.raises(IntegrityError) as caught:
        zoo.fetch(file)
    assert caught.value.expected == len(BODY)
    assert zoo.names() == []


def test_reading_stops_at_the_size_that_the_registry_says(zoo: Zoo, server: Server) -> None:
    """An endless body cannot fill the disk."""
    file = spec(server.serve("/a.bin", Answer(BODY * 10, chunked=True)), body=BODY)
    with pytest.raises(IntegrityError):
        zoo.fetch(file)
    assert server.sent < 2 * len(BODY) * 5


def test_wrong_bytes_are_requested_once_more_then_the_next_source_is_tried(zoo: Zoo, server: Server) -> None:
    bad = server.serve("/bad.bin", Answer(OTHER))
    good = server.serve("/a.bin", Answer(BODY))
    assert zoo.fetch(spec(bad, good)).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/bad.bin", "/bad.bin", "/a.bin"]
    assert "Range" not in server.requests[2].headers
    assert server.requests[1].headers["Cache-Control"] == "no-cache"


def test_wrong_bytes_from_all_sources_end_in_an_error_with_both_digests(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(OTHER)), server.serve("/b.bin", Answer(OTHER)))
    with pytest.raises(IntegrityError) as caught:
        zoo.fetch(file)
    assert caught.value.expected == DIGEST
    assert caught.value.actual == hashlib.sha256(OTHER).hexdigest()
    assert DIGEST in str(caught.value)
    assert caught.value.actual in str(caught.value)
    assert zoo.names() == []
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><title>Sign in</title>", "an HTML page"),
        (b"\n<html><body>quota</body></html>", "an HTML page"),
        (b'{"error": "no such file"}', "a JSON document"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("integrity", ["sha256", "prefix", "none"])
def test_a_message_sent_in_place_of_the_file_is_named(
    zoo: Zoo, server: Server, body: bytes, words: str, chunked: bool, integrity: str
) -> None:
    less = {"sha256": {}, "prefix": {"size": None, "sha256": None, "sha256_prefix": DIGEST[:8]}}
    fields = less.get(integrity, {"size": None, "sha256": None})
    file = spec(server.serve("/a.bin", Answer(body, chunked=chunked)), **fields)
    with pytest.raises(DownloadError, match=words):
        zoo.fetch(file, allow_unverified=True)
    assert zoo.names() == []
    assert len(server.requests) == 1


def test_an_unverified_file_without_length_or_chunks_is_refused(zoo: Zoo, server: Server) -> None:
    """Neither digest nor size nor length nor chunks."""
    file = spec(server.serve("/a.bin", Answer(BODY, length=False)), size=None, sha256=None)
    with pytest.raises(DownloadError, match="a truncated body would pass for complete"):
        zoo.fetch(file, allow_unverified=True)


def test_a_slow_drip_that_never_stalls_is_ended(zoo: Zoo, server: Server) -> None:
    """Slower than the minimum speed, on a clock that the reader itself moves."""
    from repvgg_zoo.hub.sources import Source

    class Drip:
        status, headers = 200, {"Content-Length": str(len(BODY))}

        def read(self, limit: int) -> bytes:
            zoo.clock.now += 5.0
            return b"x"

        def close(self) -> None:
            pass

    class HttpClient:
        def get(self, source: Source, headers: object) -> Drip:
            return Drip()

        def close(self) -> None:
            pass

    with pytest.raises(DownloadError, match="only 6 bytes came in 30 seconds"):
        zoo.fetch(spec("http://127.0.0.1:1/a.bin"), services=zoo.services(client=HttpClient()))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_a_permanent_status_is_not_retried_and_the_next_source_is_tried(zoo: Zoo, server: Server, status: int) -> None:
    gone = server.serve("/gone.bin", Answer(b"no", status=status))
    assert zoo.fetch(spec(gone, server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/gone.bin", "/a.bin"]
    assert zoo.clock.slept == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_retryable_status_is_retried_after_growing_pauses(zoo: Zoo, server: Server, status: int) -> None:
    busy = Answer(b"busy", status=status)
    assert zoo.fetch(spec(server.serve("/a.bin", busy, busy, busy, Answer(BODY)))).read_bytes() == BODY
    assert zoo.clock.slept == [0.5, 1.0, 2.0]


def test_pauses_are_jittered_so_that_machines_do_not_retry_in_step(zoo: Zoo, server: Server) -> None:

    class Lowest(FakeClock):
        def jitter(self) -> float:
            return 0.0

    clock = Lowest()
    busy = Answer(b"busy", status=503)
    zoo.fetch(spec(server.serve("/a.bin", busy, busy, Answer(BODY))), services=zoo.services(clock=clock))
    assert clock.slept == [0.25, 0.5]


def test_attempts_are_limited(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(b"busy", status=500)))
    with pytest.raises(DownloadError, match="the server answers 500"):
        zoo.fetch(file)
    assert len(server.requests) == 4


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_respected(zoo: Zoo, server: Server, form: str) -> None:
    value = "17" if form == "seconds" else email.utils.formatdate(zoo.clock.now + 17, usegmt=True)
    busy = Answer(b"busy", status=429, headers={"Retry-After": value})
    zoo.fetch(spec(server.serve("/a.bin", busy, Answer(BODY))))
    assert zoo.clock.slept == [17.0]


@pytest.mark.parametrize("value", ["86400", "99999999999999", "soon", "", "-1", "Mon, 99 Foo 2020"])
def test_a_retry_after_of_hours_or_nonsense_causes_no_long_wait(zoo: Zoo, server: Server, value: str) -> None:
    busy = server.serve("/busy.bin", Answer(b"busy", status=503, headers={"Retry-After": value}))
    assert zoo.fetch(spec(busy, server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert sum(zoo.clock.slept) < 10


def test_a_refused_connection_goes_on_to_the_next_source(zoo: Zoo, server: Server) -> None:
    dead = Server()
    dead.close()
    assert zoo.fetch(spec(dead.url(), server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY


def test_identical_failures_are_listed_once_with_their_number(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(b"busy", status=500)), str(zoo.root / "nowhere"))
    with pytest.raises(DownloadError) as caught:
        zoo.fetch(file)
    assert str(caught.value).count("the server answers 500") == 1
    assert "the server answers 500 (4 times)" in str(caught.value)
    assert len(caught.value.attempts) == 5
