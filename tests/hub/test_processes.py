"""Many threads and processes, broken locks, signals and forks."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List

import pytest

from repvgg_zoo.hub import Settings, cache_filename
from repvgg_zoo.hub.http import RequestsClient
from repvgg_zoo.hub.locks import STALL_TIMEOUT_S, FileLock, download_lock

from . import worker
from .conftest import BODY, FakeClock, Zoo, spec
from .server import Answer, Server
from .soak import MOST, soak

DIGEST = hashlib.sha256(BODY).hexdigest()


def digests(processes: List[Any]) -> List[str]:
    """What each process printed; fails with its error if it failed."""
    results = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        results.append(out.strip())
    return results


def test_many_threads_share_one_download(zoo: Zoo, server: Server) -> None:
    from repvgg_zoo.hub import Services, fetch_file

    file = spec(server.serve("/a.bin", Answer(BODY)))

    def fetch(_: int) -> Path:
        return fetch_file(file, settings=Settings(cache_dir=zoo.root), services=Services(client=RequestsClient()))

    with ThreadPoolExecutor(16) as pool:
        paths = set(pool.map(fetch, range(16)))
    assert [path.read_bytes() == BODY for path in paths] == [True]
    assert server.sent == len(BODY)
    assert zoo.parts() == []


def test_32_processes_with_an_empty_cache_share_one_download(zoo: Zoo, server: Server) -> None:
    """Counted in bytes by the server."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert digests([worker.start(file, zoo.root) for _ in range(32)]) == [DIGEST] * 32
    assert server.sent == len(BODY)
    assert zoo.names() == [name.replace("a.bin", "big.bin") for name in _good_names(file)]


@pytest.mark.parametrize("locks", ["lying", "missing"])
def test_without_working_locks_every_process_gets_the_file(zoo: Zoo, server: Server, locks: str) -> None:
    """Flock that succeeds for everyone, and flock that does not exist."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert digests([worker.start(file, zoo.root, locks) for _ in range(6)]) == [DIGEST] * 6
    assert zoo.parts() == []


def test_a_lock_that_cannot_be_created_is_a_warning(zoo: Zoo, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """No lock file can be created where a folder has its name."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    (zoo.root / f"{DIGEST[:16]}.lock").mkdir(parents=True)
    assert zoo.fetch(file).read_bytes() == BODY
    assert "no file lock" in caplog.text


@pytest.mark.parametrize("error", [OSError(37, "ENOLCK"), NotImplementedError("no flock"), PermissionError(13, "no")])
def test_a_broken_lock_costs_only_bandwidth(zoo: Zoo, server: Server, error: Exception) -> None:

    class Broken:
        def __init__(self, path: Path) -> None:
            pass

        def try_acquire(self) -> bool:
            raise error

        def release(self) -> None:
            raise AssertionError("never taken")

    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file, services=zoo.services(make_lock=Broken)).read_bytes() == BODY


def test_processes_that_wait_continue_the_download_of_a_killed_one(zoo: Zoo, server: Server) -> None:
    half = len(BODY) // 2
    file = spec(server.serve("/a.bin", Answer(BODY, cut=half, stall=True), Answer(BODY)))
    holder = worker.start(file, zoo.root)
    _wait_for_bytes(zoo, half)
    waiters = [worker.start(file, zoo.root) for _ in range(3)]
    time.sleep(1.0)  # real processes need real time to begin to wait
    holder.kill()
    killed = time.monotonic()
    holder.communicate()
    assert digests(waiters) == [DIGEST] * 3
    assert time.monotonic() - killed < 10
    assert server.requests[1].headers["Range"] == f"bytes={half}-"
    assert len(server.requests) == 2


class HeldLock:
    """A lock that another process always holds."""

    def __init__(self, path: object = None) -> None:
        pass

    def try_acquire(self) -> bool:
        return False

    def release(self) -> None:
        raise AssertionError("never taken")


def test_a_process_that_hangs_is_not_waited_for_forever(zoo: Zoo, server: Server) -> None:
    """Within the bound, on the tests' clock."""
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file, services=zoo.services(make_lock=HeldLock)).read_bytes() == BODY
    assert STALL_TIMEOUT_S < sum(zoo.clock.slept) < STALL_TIMEOUT_S + 1


def test_a_process_that_makes_progress_is_waited_for() -> None:
    clock = FakeClock()
    markers = iter(range(10**6))

    def progress_marker() -> int:
        return min(next(markers), 20_000)

    with download_lock(HeldLock, progress_marker, clock, on_wait=lambda: None):
        pass
    assert sum(clock.slept) > 20 * STALL_TIMEOUT_S


def test_a_process_that_waits_says_once_for_what(zoo: Zoo, server: Server) -> None:
    """The message names the process, the file and how much of it there is."""

    class Messages:
        def __init__(self) -> None:
            self.messages: List[str] = []

        def update(self, name: str, done: int, total: Any) -> None:
            pass

        def message(self, text: str) -> None:
            self.messages.append(text)

        def close(self) -> None:
            pass

    file = spec(server.serve("/a.bin", Answer(BODY)))
    zoo.root.mkdir()
    other = zoo.root / f"{DIGEST[:16]}.{'0' * 12}-4242.{'0' * 12}.part"
    other.write_bytes(BODY[:1_000_000])
    progress = Messages()
    zoo.fetch(file, progress=progress, services=zoo.services(make_lock=HeldLock))
    assert progress.messages == ["waiting for process 4242, which downloads a.bin (1.0 MB of 3.0 MB so far)"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_bytes_for_the_next_download_and_no_final_file(
    zoo: Zoo, server: Server, number: int
) -> None:
    half = len(BODY) // 2
    file = spec(server.serve("/a.bin", Answer(BODY, cut=half, stall=True), Answer(BODY)))
    process = worker.start(file, zoo.root)
    _wait_for_bytes(zoo, half)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not (zoo.root / cache_filename(file)).exists()
    assert FileLock(zoo.root / f"{DIGEST[:16]}.lock").try_acquire()
    assert digests([worker.start(file, zoo.root)]) == [DIGEST]
    assert server.requests[1].headers["Range"] == f"bytes={half}-"


def _fetch_in_child(file: Any, root: Path) -> None:
    from repvgg_zoo.hub import fetch_file

    path = fetch_file(file, settings=Settings(cache_dir=root))
    os._exit(0 if hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256 else 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_a_process_that_downloads_are_independent(tmp_path: Path, server: Server, method: str) -> None:
    """A session lives for one fetch, so a fork shares no connection."""
    half = len(BODY) // 2
    slow = Zoo(tmp_path / "slow")
    first = spec(server.serve("/slow.bin", Answer(BODY, cut=half, stall=True), Answer(BODY)))
    second = spec(server.serve("/a.bin", Answer(BODY)))
    running = threading.Thread(
        target=lambda: slow.fetch(first, services=slow.services(client=RequestsClient(5.0, 3.0)))
    )
    running.start()
    _wait_for_bytes(slow, half)
    context = multiprocessing.get_context(method)
    children = [context.Process(target=_fetch_in_child, args=(second, tmp_path / str(n))) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    running.join(30)
    assert (slow.root / cache_filename(first)).read_bytes() == BODY


def test_a_download_is_resumed_whose_process_was_killed_while_bytes_arrived(zoo: Zoo, server: Server) -> None:
    """At 4 MB a second, so that bytes are on their way when it is killed."""
    file = spec(server.serve("/a.bin", Answer(BODY, rate=4e6)))
    process = worker.start(file, zoo.root)
    _wait_for_bytes(zoo, 1_000_000)
    process.kill()
    process.communicate()
    had = zoo.parts()[0].stat().st_size
    assert had < len(BODY)
    server.serve("/a.bin", Answer(BODY))
    assert zoo.fetch(file).read_bytes() == BODY
    assert server.requests[1].headers["Range"] == f"bytes={had}-"


def test_downloads_killed_at_random_moments_never_publish_a_wrong_byte(tmp_path: Path, server: Server) -> None:
    """The short form of ``tests/hub/soak.py``."""
    shares = soak(server, BODY * 3, tmp_path / "cache", downloads=3, seed=int(time.time()))
    assert statistics.median(shares) <= MOST


def _wait_for_bytes(zoo: Zoo, size: int) -> None:
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in zoo.parts()) < size:
        assert time.monotonic() < deadline, "the download did not get going"
        time.sleep(0.02)


def _good_names(file: Any) -> List[str]:
    return [cache_filename(file), cache_filename(file) + ".stamp"]
