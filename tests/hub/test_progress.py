"""Progress: a line on a terminal, silence elsewhere, and whatever the caller hands in."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest

from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.progress import NullProgress, TerminalLine, choose_progress, format_duration, format_size

from .conftest import BODY, FakeClock, Zoo, spec
from .server import Answer, Server


class Recorder:
    def __init__(self) -> None:
        self.seen: List[Tuple[str, int, Optional[int]]] = []
        self.closed = 0

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        self.seen.append((name, done, total))

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def test_a_progress_of_ones_own_sees_every_byte_and_the_end(zoo: Zoo, server: Server) -> None:
    mine = Recorder()
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), progress=mine)
    assert mine.seen[0] == ("a.bin", 0, len(BODY))
    assert mine.seen[-1] == ("a.bin", len(BODY), len(BODY))
    assert [done for _, done, _ in mine.seen] == sorted(done for _, done, _ in mine.seen)
    assert mine.closed == 1


def test_a_resumed_download_begins_where_it_was(zoo: Zoo, server: Server) -> None:
    mine = Recorder()
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY, cut=1_000_000), Answer(BODY))), progress=mine)
    assert ("a.bin", 1_000_000, len(BODY)) in mine.seen


def test_a_hit_shows_nothing(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    zoo.fetch(file)
    mine = Recorder()
    zoo.fetch(file, progress=mine)
    assert mine.seen == []
    assert mine.closed == 0


def test_the_line_shows_size_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), FakeClock()
    line = TerminalLine(stream, clock)
    line.update("a.bin", 0, 10_000_000)
    clock.now += 2
    line.update("a.bin", 5_000_000, 10_000_000)
    line.close()
    assert stream.getvalue().split("\r")[-1].strip() == "a.bin  5.0 MB of 10.0 MB (50%)  2.5 MB/s  0:02 left"
    assert stream.getvalue().endswith("\n")


def test_the_line_is_not_redrawn_more_than_ten_times_a_second() -> None:
    stream, clock = io.StringIO(), FakeClock()
    line = TerminalLine(stream, clock)
    for done in range(1000):
        clock.now += 0.001
        line.update("a.bin", done, 10_000)
    assert stream.getvalue().count("\r") <= 11


def test_a_terminal_that_has_gone_does_not_stop_a_download(zoo: Zoo, server: Server) -> None:
    stream = io.StringIO()
    stream.close()
    file = spec(server.serve("/a.bin", Answer(BODY)))
    assert zoo.fetch(file, progress=TerminalLine(stream)).read_bytes() == BODY


def test_a_restart_from_zero_and_an_unknown_size_are_shown() -> None:
    stream, clock = io.StringIO(), FakeClock()
    line = TerminalLine(stream, clock)
    for done in (100, 50, 0):
        clock.now += 1
        line.update("a.bin", done, None)
    line.note("something to say")
    line.close()
    assert "a.bin  0 B" in stream.getvalue()
    assert "something to say\n" in stream.getvalue()
    assert "-" not in stream.getvalue()


@pytest.mark.parametrize(
    ("wanted", "setting", "environ", "kind"),
    [
        (None, None, {}, NullProgress),  # under pytest stderr is no terminal
        (True, None, {}, TerminalLine),
        (None, True, {}, TerminalLine),
        (False, True, {}, NullProgress),
        (True, False, {}, TerminalLine),
        (True, None, {"LOCAL_RANK": "0"}, TerminalLine),
        (True, None, {"LOCAL_RANK": "3"}, NullProgress),
        (None, True, {"SLURM_LOCALID": "1"}, NullProgress),
    ],
)
def test_who_sees_a_line(wanted: Any, setting: Any, environ: Any, kind: type) -> None:
    """T23: of many ranks on a machine only the first."""
    assert isinstance(choose_progress(wanted, setting, environ), kind)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_real_process_shows_a_line_only_on_a_real_terminal(zoo: Zoo, server: Server, terminal: bool) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    code = (
        "from pathlib import Path; from repvgg_zoo.hub import *; from repvgg_zoo.registry.specs import FileSpec; "
        f"fetch_file({file!r}, settings=Settings(cache_dir=Path({str(zoo.root)!r})))"
    )
    main, end = pty.openpty()
    stderr: Any = end if terminal else subprocess.PIPE
    done = subprocess.run([sys.executable, "-c", code], stderr=stderr, stdout=subprocess.PIPE, check=True)
    os.close(end)
    if terminal:
        assert b"3.0 MB of 3.0 MB (100%)" in os.read(main, 10_000)
    else:
        assert done.stderr == b""
    os.close(main)
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5e8, "500.0 MB"), (2e13, "20000.0 GB")]
)
def test_sizes_read_well(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.9, "1:15"), (3661, "1:01:01")])
def test_times_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_setting_is_honoured_by_a_fetch(zoo: Zoo, server: Server, capsys: pytest.CaptureFixture) -> None:
    settings = Settings(cache_dir=zoo.root, progress=True)
    path: Path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings)
    assert path.exists()
    assert "a.bin  3.0 MB of 3.0 MB" in capsys.readouterr().err
