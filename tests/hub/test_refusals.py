"""Servers that refuse: too busy now, not without credentials, never.

The kind: the user learns what the server says and what to do, in one short line without escape sequences and without
secrets, also while the download waits because a server asked for it.
"""

from __future__ import annotations

import base64
import email.utils
import logging
from typing import Any, List, Optional

import pytest

from repvgg_zoo.errors import DownloadError
from repvgg_zoo.hub.http import RequestsClient
from repvgg_zoo.hub.progress import LogProgress

from .conftest import BODY, Zoo, spec
from .server import Answer, Server

XML = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'
PAGE = b"<!DOCTYPE html><html><head><title>Sign in &#8212; Acme</title><style>a{}</style></head></html>"
EVIL = "Stop \x1b[2J\x1b]0;title\x07 now \u202e\x9b\ud800 and\n\tread".encode("utf-8", "surrogatepass")

REASONS = {
    "a plain text": ({}, b"You must be authenticated", '403 ("You must be authenticated")'),
    "a header of the Hugging Face hub": (
        {"X-Error-Message": "Access is restricted"},
        b"no",
        '("Access is restricted")',
    ),
    "an XML document": ({"Content-Type": "application/xml"}, XML, '("AccessDenied Request has expired")'),
    "a JSON document": ({"Content-Type": "application/json"}, b'{"error": "gated"}', '("{"error": "gated"}")'),
    "a page's title": ({"Content-Type": "text/html; charset=utf-8"}, PAGE, '("Sign in &#8212; Acme")'),
    "a challenge": ({"WWW-Authenticate": 'Basic realm="zoo"'}, b"", '("Basic realm="zoo"")'),
    "escape sequences": ({}, EVIL, '403 ("Stop \\x1b[2J\\x1b]0;title\\x07 now'),
    "a long text": ({}, b"no " * 1000, 'no no n…")'),
    "binary data": ({"Content-Type": "application/octet-stream"}, b"\x00\x01", "403; if it asks"),
    "compressed data": ({"Content-Encoding": "gzip"}, b"\x1f\x8b\x00", "403; if it asks"),
    "nothing": ({}, b"", "403; if it asks"),
}


@pytest.mark.parametrize(("headers", "body", "words"), REASONS.values(), ids=REASONS)
def test_the_servers_reason_is_one_short_printable_line(
    zoo: Zoo, server: Server, headers: dict, body: bytes, words: str
) -> None:
    file = spec(server.serve("/a.bin", Answer(body, status=403, headers=headers)))
    with pytest.raises(DownloadError) as caught:
        zoo.fetch(file)
    (attempt,) = caught.value.attempts
    assert f"the server answers {words}" in attempt or words in attempt
    assert "REPVGG_ZOO_CREDENTIALS" in attempt
    assert ".netrc" in attempt
    assert attempt.isprintable()
    assert len(attempt) < 400


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_secret_that_the_server_repeats_is_not_shown(
    zoo: Zoo, server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    basic = base64.b64encode(b"me:S3cret").decode()
    body = f"wrong: S3cret, Basic {basic}, {basic}, sig=abcS3cret&x=1, abcS3cret".encode()
    url = server.serve("/a.bin", Answer(body, status=status)).replace("//", "//me:S3cret@")
    with caplog.at_level(logging.DEBUG), pytest.raises(DownloadError, match="wrong: …") as caught:
        zoo.fetch(spec(f"{url}?sig=abcS3cret&x=1"))
    records = (record.getMessage() for record in caplog.records if record.name.startswith("repvgg_zoo"))
    output = str(caught.value) + repr(vars(caught.value)) + "".join(records)
    assert "S3c" not in output
    assert basic not in output


class Messages:
    """A progress that keeps the messages."""

    def __init__(self) -> None:
        self.texts: List[str] = []

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        pass

    def message(self, text: str) -> None:
        self.texts.append(text)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("seconds", [17, 300])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_wait_that_the_server_asks_for_is_kept_and_announced(
    zoo: Zoo, server: Server, status: int, seconds: int, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    value = str(seconds) if form == "seconds" else email.utils.formatdate(zoo.clock.now + seconds, usegmt=True)
    busy = Answer(b"slow down", status=status, headers={"Retry-After": value})
    messages = Messages()
    with caplog.at_level(logging.INFO, "repvgg_zoo.hub"):
        assert zoo.fetch(spec(server.serve("/a.bin", busy, Answer(BODY))), progress=messages).read_bytes() == BODY
    assert sum(zoo.clock.slept) == seconds
    (text,) = messages.texts
    assert text.startswith("http://127.0.0.1")
    assert f"the server answers {status}" in text
    assert f"asks to wait {seconds} s" in text
    assert text in caplog.text


@pytest.mark.parametrize(
    ("value", "seconds"), [('"resolvers";r=0;t=41', 42), ('"resolvers";r=9;t=41', 0.5), ("t=41", 0.5), ("", 0.5)]
)
def test_a_quota_that_is_renewed_is_waited_for(zoo: Zoo, server: Server, value: str, seconds: float) -> None:
    """The Hugging Face hub sends no Retry-After."""
    busy = Answer(b"too many requests", status=429, headers={"RateLimit": value})
    zoo.fetch(spec(server.serve("/a.bin", busy, Answer(BODY))))
    assert sum(zoo.clock.slept) == seconds


@pytest.mark.parametrize(("progress", "level"), [(LogProgress(), logging.WARNING), (False, logging.INFO)])
def test_a_wait_is_seen_without_a_bar_unless_silence_was_asked_for(
    zoo: Zoo, server: Server, progress: Any, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Answer(b"busy", status=429, headers={"Retry-After": "17"})
    with caplog.at_level(logging.INFO, "repvgg_zoo.hub"):
        zoo.fetch(spec(server.serve("/a.bin", busy, Answer(BODY))), progress=progress)
    (record,) = (record for record in caplog.records if "asks to wait 17 s" in record.getMessage())
    assert record.levelno == level


def test_a_long_wait_shows_other_processes_that_this_one_is_alive(zoo: Zoo, server: Server) -> None:
    """They watch the partial file."""
    busy = Answer(b"busy", status=429, headers={"Retry-After": "300"})
    zoo.fetch(spec(server.serve("/a.bin", busy, Answer(BODY))))
    assert max(zoo.clock.slept) <= 30


def test_other_sources_come_before_a_long_wait(zoo: Zoo, server: Server) -> None:
    busy = server.serve("/busy.bin", Answer(b"busy", status=429, headers={"Retry-After": "300"}), Answer(BODY))
    messages = Messages()
    assert zoo.fetch(spec(busy, server.serve("/a.bin", Answer(BODY))), progress=messages).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/busy.bin", "/a.bin"]
    assert zoo.clock.slept == []
    assert "other sources are tried first" in messages.texts[0]


def test_a_busy_source_is_tried_again_after_all_others_failed(zoo: Zoo, server: Server) -> None:
    busy = server.serve("/busy.bin", Answer(b"busy", status=429, headers={"Retry-After": "300"}), Answer(BODY))
    gone = server.serve("/gone.bin", Answer(b"no", status=404))
    assert zoo.fetch(spec(busy, gone)).read_bytes() == BODY
    assert [request.path for request in server.requests] == ["/busy.bin", "/gone.bin", "/busy.bin"]
    assert sum(zoo.clock.slept) == 300


def test_a_server_that_asks_to_wait_again_and_again_is_given_up(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(b"busy", status=429, headers={"Retry-After": "300"})))
    with pytest.raises(DownloadError, match="asks to wait 300 s"):
        zoo.fetch(file)
    assert len(server.requests) == 4
    assert sum(zoo.clock.slept) == 900


def test_a_wait_of_hours_is_named_in_the_error(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(b"quota used up", status=429, headers={"Retry-After": "7200"})))
    with pytest.raises(DownloadError, match=r'429 \("quota used up"\) and asks to wait 7200 s'):
        zoo.fetch(file)
    assert zoo.clock.slept == []


def test_a_reason_that_never_ends_does_not_hold_up_the_next_source(zoo: Zoo, server: Server) -> None:
    stalls = server.serve("/stalls.bin", Answer(b"no" * 100, status=403, cut=10, stall=True))
    services = zoo.services(client=RequestsClient(5.0, 0.3))
    assert zoo.fetch(spec(stalls, server.serve("/a.bin", Answer(BODY))), services=services).read_bytes() == BODY


LOCATIONS = ("/模型/b c.bin", "/%E6%A8%A1%E5%9E%8B/b%20c.bin", "  /模型/b%20c.bin", "/模型/../模型/b c.bin")


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_redirect_may_be_written_in_utf_8(zoo: Zoo, server: Server, location: str) -> None:
    server.serve("/%E6%A8%A1%E5%9E%8B/b%20c.bin", Answer(BODY))
    headers = {"Location": location.encode().decode("latin-1")}  # as bytes, http.server writes Latin-1
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(status=302, headers=headers)))).read_bytes() == BODY


def test_a_redirect_in_latin_1_is_followed_as_well(zoo: Zoo, server: Server) -> None:
    server.serve("/caf%C3%A9.bin", Answer(BODY))
    moved = server.serve("/a.bin", Answer(status=302, headers={"Location": "/caf\xe9.bin"}))
    assert zoo.fetch(spec(moved)).read_bytes() == BODY
