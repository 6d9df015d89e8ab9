"""Resume, in one run and across killed runs, and partial files that other processes left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from repvgg_zoo.errors import DownloadError, IntegrityError
from repvgg_zoo.hub import partial
from repvgg_zoo.hub.filenames import cache_key
from repvgg_zoo.hub.partial import PartialFile, machine_id, parse_partial_name

from .conftest import BODY, OTHER, FakeClock, Zoo, spec
from .server import Answer, Server

KEY = cache_key(spec())
HALF = len(BODY) // 2


def leave_part(zoo: Zoo, body: bytes, owner: str = "released", age: float = 0.0) -> Path:
    """A partial file as another process would have left it."""
    zoo.root.mkdir(parents=True, exist_ok=True)
    path = zoo.root / f"{KEY}.{owner}.{os.urandom(6).hex()}.part"
    path.write_bytes(body)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def dead_pid() -> int:
    """The id of a process that has ended and been waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_partial_file_is_resumed_and_the_digest_covers_all_bytes(zoo: Zoo, server: Server) -> None:
    leave_part(zoo, BODY[:HALF])
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert server.requests[0].headers["Range"] == f"bytes={HALF}-"
    assert server.sent == len(BODY) - HALF
    assert zoo.parts() == []


def test_a_server_that_ignores_ranges_makes_the_download_start_again(zoo: Zoo, server: Server) -> None:
    leave_part(zoo, BODY[:HALF])
    file = spec(server.serve("/a.bin", Answer(BODY, ranges=False)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert len(server.requests) == 1


WRONG_RANGES: Dict[str, Answer] = {
    "start": Answer(BODY[10:], 206, {"Content-Range": f"bytes 10-{len(BODY) - 1}/{len(BODY)}"}),
    "total": Answer(BODY[HALF:], 206, {"Content-Range": f"bytes {HALF}-{len(BODY)}/{len(BODY) + 1}"}),
    "no-header": Answer(BODY[HALF:], 206),
    "nonsense": Answer(BODY[HALF:], 206, {"Content-Range": "bytes of some sort"}),
    "too-short": Answer(BODY[HALF:-9], 206, {"Content-Range": f"bytes {HALF}-{len(BODY) - 10}/{len(BODY)}"}),
}


@pytest.mark.parametrize("answer", list(WRONG_RANGES.values()), ids=list(WRONG_RANGES))
def test_a_wrong_range_is_never_appended(zoo: Zoo, server: Server, answer: Answer) -> None:
    leave_part(zoo, BODY[:HALF])
    file = spec(server.serve("/a.bin", answer, Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_complete_partial_file_is_published_without_a_request(zoo: Zoo, server: Server) -> None:
    leave_part(zoo, BODY)
    assert zoo.fetch(spec(server.serve("/a.bin", Answer(BODY)))).read_bytes() == BODY
    assert server.requests == []


def test_a_complete_partial_file_of_unknown_size_is_published_after_416(zoo: Zoo, server: Server) -> None:
    """The answer is 416 with the size of the part."""
    leave_part(zoo, BODY)
    file = spec(server.serve("/a.bin", Answer(BODY)), size=None)
    assert zoo.fetch(file).read_bytes() == BODY
    assert server.sent == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("size_known", [True, False])
def test_a_partial_file_longer_than_the_file_is_discarded(zoo: Zoo, server: Server, size_known: bool) -> None:
    leave_part(zoo, BODY + b"more")
    file = spec(server.serve("/a.bin", Answer(BODY)), **({} if size_known else {"size": None}))
    assert zoo.fetch(file).read_bytes() == BODY
    assert zoo.parts() == []


def test_a_416_without_a_size_restarts_once_from_zero(zoo: Zoo, server: Server) -> None:
    leave_part(zoo, BODY[:HALF])
    file = spec(server.serve("/a.bin", Answer(status=416), Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert "Range" not in server.requests[1].headers


@pytest.mark.parametrize("integrity", ["sha256", "none"])
@pytest.mark.parametrize("validator", ["etag", "date"])
def test_a_file_that_changes_between_attempts_is_read_from_the_start(
    zoo: Zoo, server: Server, integrity: str, validator: str
) -> None:
    """If-Range makes the server send all of the new file."""

    def version(body: bytes, name: str, **more: Any) -> Answer:
        if validator == "etag":
            return Answer(body, etag=f'"{name}"', **more)
        return Answer(body, headers={"Last-Modified": name}, **more)

    fields = {} if integrity == "sha256" else {"size": None, "sha256": None}
    url = server.serve("/a.bin", version(OTHER, "old", cut=HALF), version(BODY, "new"))
    assert zoo.fetch(spec(url, **fields), allow_unverified=True).read_bytes() == BODY
    assert server.requests[1].headers["If-Range"] == ('"old"' if validator == "etag" else "old")


def test_an_unverified_file_is_not_resumed_without_a_validator(zoo: Zoo, server: Server) -> None:
    """A weak ETag does not count."""
    url = server.serve("/a.bin", Answer(OTHER, etag='W/"x"', cut=HALF), Answer(BODY))
    assert zoo.fetch(spec(url, size=None, sha256=None), allow_unverified=True).read_bytes() == BODY
    assert "Range" not in server.requests[1].headers


OWNERS = {
    "released": lambda: ("released", 0.0),
    "dead-process": lambda: (f"{machine_id()}-{dead_pid()}", 0.0),
    "other-machine-long-ago": lambda: (f"{'0' * 12}-1", partial.STALE_SECONDS + 60),
    "living-pid-long-ago": lambda: (f"{machine_id()}-1", partial.STALE_SECONDS + 60),
}


@pytest.mark.parametrize("owner", list(OWNERS.values()), ids=list(OWNERS))
def test_a_stale_partial_file_is_claimed_by_exactly_one_process(zoo: Zoo, owner: Any) -> None:
    name, age = owner()
    leave_part(zoo, BODY[:HALF], name, age)
    partials = [PartialFile(zoo.root, KEY) for _ in range(8)]
    start = threading.Barrier(len(partials))

    def claim(part: PartialFile) -> None:
        start.wait()
        part.resume_from_stale(FakeClock(), len(BODY), 1 << 40)

    threads = [threading.Thread(target=claim, args=(part,)) for part in partials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(part.size for part in partials) == [0] * 7 + [HALF]
    for part in partials:
        part.discard()
    assert zoo.parts() == []


LIVING = {
    "a-living-process-of-this-machine": lambda: f"{machine_id()}-1",
    "this-very-process": lambda: f"{machine_id()}-{os.getpid()}",
    "another-machine": lambda: f"{'0' * 12}-{dead_pid()}",
}


@pytest.mark.parametrize("owner", list(LIVING.values()), ids=list(LIVING))
def test_a_partial_file_that_may_be_in_use_is_left_alone(zoo: Zoo, server: Server, owner: Any) -> None:
    left = leave_part(zoo, BODY[:HALF], owner())
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    assert left.read_bytes() == BODY[:HALF]
    assert server.sent == len(BODY)


def test_a_download_of_a_killed_process_is_resumed(zoo: Zoo, server: Server) -> None:
    """A real process, killed in the middle of the body."""
    url = server.serve("/a.bin", Answer(BODY, cut=HALF, stall=True), Answer(BODY))
    file = spec(url)
    code = (
        "import sys; from pathlib import Path; from repvgg_zoo.hub import *; "
        "from repvgg_zoo.registry.specs import FileSpec; "
        f"fetch_file({file!r}, settings=Settings(cache_dir=Path({str(zoo.root)!r})))"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 20
        while sum(path.stat().st_size for path in zoo.parts()) < HALF and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    assert zoo.fetch(file).read_bytes() == BODY
    assert server.requests[1].headers["Range"] == f"bytes={HALF}-"
    assert zoo.parts() == []


def test_a_process_whose_partial_file_was_claimed_starts_again(zoo: Zoo, server: Server) -> None:
    """If a process was taken for dead by mistake, it loses time and nothing else."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    stolen = []

    def steal() -> None:
        if not stolen:
            stolen.extend(path.rename(zoo.root / "stolen") for path in zoo.parts())

    server.gate = steal
    assert zoo.fetch(file).read_bytes() == BODY
    assert len(stolen) == 1
    assert len(server.requests) == 2


def test_a_claimed_partial_file_is_copied_before_it_is_published(zoo: Zoo, server: Server) -> None:
    left = leave_part(zoo, BODY[:HALF])
    with left.open("r+b") as old_writer:
        path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
        old_writer.write(b"garbage")
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("size", [len(BODY), HALF], ids=["whole", "half"])
def test_a_partial_file_with_wrong_bytes_costs_one_restart(zoo: Zoo, server: Server, size: int) -> None:
    leave_part(zoo, b"\xff" * size)
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert "Range" not in server.requests[-1].headers
    assert len(server.requests) == (1 if size == len(BODY) else 2)


def test_a_resumed_partial_file_serves_the_next_source(zoo: Zoo, server: Server) -> None:
    leave_part(zoo, BODY[:HALF])
    file = spec(server.url("/gone"), server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file).read_bytes() == BODY
    assert server.requests[1].headers["Range"] == f"bytes={HALF}-"


def test_bytes_of_a_broken_source_are_kept_although_another_was_wrong(zoo: Zoo, server: Server) -> None:
    wrong = server.serve("/wrong.bin", Answer(OTHER))
    file = spec(wrong, server.serve("/a.bin", Answer(BODY, cut=HALF, ranges=False)))
    with pytest.raises(IntegrityError):
        zoo.fetch(file)
    assert [path.read_bytes() == BODY[:HALF] for path in zoo.parts()] == [True]


def test_the_biggest_partial_file_is_resumed(zoo: Zoo, server: Server) -> None:
    for size in (100_000, HALF, 200_000):
        leave_part(zoo, BODY[:size])
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))))
    assert server.sent == len(BODY) - HALF


def test_a_partial_unverified_file_is_not_kept(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY, cut=HALF, ranges=False)), size=None, sha256=None)
    with pytest.raises(DownloadError):
        zoo.fetch(file, allow_unverified=True)
    assert zoo.names() == []


def test_names_of_partial_files_are_parsed(zoo: Zoo) -> None:
    zoo.root.mkdir()
    part = PartialFile(zoo.root, KEY)
    assert parse_partial_name(part.path.name) == (KEY, machine_id(), os.getpid())
    part.write(BODY)
    part.keep_for_resume()
    assert [parse_partial_name(path.name) for path in zoo.parts()] == [(KEY, None, None)]
    assert parse_partial_name("something else.part") is None
