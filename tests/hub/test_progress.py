"""Progress: a bar on a terminal and in notebooks, lines in the log elsewhere, or what the caller passes in."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import types
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest

from repvgg_zoo.hub import Settings
from repvgg_zoo.hub.progress import BarProgress, LogProgress, NullProgress, choose_progress, format_size, shorten
from repvgg_zoo.registry.specs import FileSpec

from .conftest import BODY, FakeClock, Zoo, spec
from .server import Answer, Server


class Recorder:
    def __init__(self) -> None:
        self.updates: List[Tuple[str, int, Optional[int]]] = []
        self.closed = 0

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        self.updates.append((name, done, total))

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def test_a_progress_of_the_caller_sees_every_byte_and_the_end(zoo: Zoo, server: Server) -> None:
    recorder = Recorder()
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), progress=recorder)
    assert recorder.updates[0] == ("a.bin", 0, len(BODY))
    assert recorder.updates[-1] == ("a.bin", len(BODY), len(BODY))
    assert [done for _, done, _ in recorder.updates] == sorted(done for _, done, _ in recorder.updates)
    assert recorder.closed == 1


def test_a_resumed_download_starts_where_it_broke_off(zoo: Zoo, server: Server) -> None:
    recorder = Recorder()
    zoo.fetch(spec(server.serve("/a.bin", Answer(BODY, cut=1_000_000), Answer(BODY))), progress=recorder)
    assert ("a.bin", 1_000_000, len(BODY)) in recorder.updates


def test_a_cached_file_shows_no_progress(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    zoo.fetch(file)
    recorder = Recorder()
    zoo.fetch(file, progress=recorder)
    assert recorder.updates == []
    assert recorder.closed == 0


def test_the_bar_shows_name_and_sizes_and_ends_its_line() -> None:
    stream = io.StringIO()
    bar = BarProgress(stream)
    bar.update("a.bin", 0, 10_000_000)
    bar.update("a.bin", 10_000_000, 10_000_000)
    bar.close()
    assert re.search(r"a\.bin: 100%\|.*\| 10\.0M/10\.0M ", stream.getvalue())
    assert stream.getvalue().endswith("\n")


def test_a_restart_from_zero_and_an_unknown_size_are_shown() -> None:
    stream = io.StringIO()
    bar = BarProgress(stream)
    for done in (100, 50, 0):
        bar.update("a.bin", done, None)
    bar.message("something to say")
    bar.close()
    assert stream.getvalue().rstrip().splitlines()[-1].split("\r")[-1].startswith("a.bin: 0.00B ")
    assert "something to say\n" in stream.getvalue()


def test_a_terminal_that_has_gone_does_not_stop_a_download(zoo: Zoo, server: Server) -> None:
    stream = io.StringIO()
    stream.close()
    file = spec(server.serve("/a.bin", Answer(BODY)))
    bar = BarProgress(stream)
    bar.message("something to say")
    assert zoo.fetch(file, progress=bar).read_bytes() == BODY


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    stream = io.StringIO()
    bar = BarProgress(stream)
    bar.update("a\033[2J.bin", 0, 10)
    bar.close()
    assert "\033[2J" not in stream.getvalue()


def test_the_log_has_a_line_every_thirty_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    log = LogProgress(clock)
    with caplog.at_level(logging.INFO, "repvgg_zoo"):
        for second in range(100):
            log.update("a.bin", 50_000 * second, 5_000_000)
            clock.now += 1
        log.update("b.bin", 1000, None)
    assert caplog.messages == [
        "downloading a.bin: 1.5 MB of 5.0 MB (30%)",
        "downloading a.bin: 3.0 MB of 5.0 MB (60%)",
        "downloading a.bin: 4.5 MB of 5.0 MB (90%)",
    ]


def test_a_download_is_logged_with_source_size_digest_and_path(
    zoo: Zoo, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    file = spec(server.url("/gone"), server.serve("/a.bin", Answer(BODY)))
    with caplog.at_level(logging.INFO, "repvgg_zoo"):
        path = zoo.fetch(file)
        zoo.fetch(file)
    lines = [line for line in caplog.messages if line.startswith("fetched ")]
    assert lines == [f"fetched 3.0 MB from {server.url()}, SHA-256 {file.sha256}, to {path}"]


@pytest.mark.parametrize(
    ("requested", "setting", "environ", "kind"),
    [
        (None, None, {}, LogProgress),  # under pytest stderr is not a terminal
        (True, None, {}, BarProgress),
        (None, True, {}, BarProgress),
        (False, True, {}, NullProgress),
        (False, None, {}, NullProgress),
        (None, False, {}, NullProgress),
        (True, False, {}, BarProgress),
        (True, None, {"LOCAL_RANK": "0"}, BarProgress),
        (True, None, {"LOCAL_RANK": "3"}, NullProgress),
        (None, None, {"LOCAL_RANK": "3"}, NullProgress),
        (None, True, {"SLURM_LOCALID": "1"}, NullProgress),
    ],
)
def test_the_kind_of_progress_depends_on_argument_setting_and_rank(
    requested: Any, setting: Any, environ: Any, kind: type
) -> None:
    assert isinstance(choose_progress(requested, setting, environ), kind)


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert isinstance(choose_progress(None, None, {}), BarProgress)
    shell.config = {}  # IPython in a terminal
    assert isinstance(choose_progress(None, None, {}), LogProgress)


def fetch_command(file: FileSpec, root: Path) -> List[str]:
    code = (
        "from pathlib import Path; from repvgg_zoo.hub import *; from repvgg_zoo.registry.specs import FileSpec; "
        f"fetch_file({file!r}, settings=Settings(cache_dir=Path({str(root)!r})))"
    )
    return [sys.executable, "-c", code]


def test_a_process_with_a_terminal_shows_a_bar_in_one_row_of_it(zoo: Zoo, server: Server) -> None:
    columns = 72
    file = spec(server.serve("/a.bin", Answer(BODY, rate=6e6)), name="RepVGGplus-L2pse-train256-acc84.06.pth")
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(fetch_command(file, zoo.root), stderr=end, stdout=subprocess.PIPE)
    os.close(end)
    screen = b""
    try:
        while True:
            screen += os.read(main, 10_000)
    except OSError:  # Linux's way to say that nobody has the other end open
        pass
    os.close(main)
    assert process.communicate()[0] == b""
    assert process.returncode == 0
    text = re.sub(r"\033\[\w", "", screen.decode())
    drawn = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert len(drawn) > 2
    assert max(map(len, drawn)) <= columns
    assert text.count("\n") == 1
    assert re.match(r"RepVGGplus-L2.*\.\.\.: 100%\|.*\| 3\.00M/3\.00M ", drawn[-1])


def test_a_process_without_a_terminal_shows_nothing(zoo: Zoo, server: Server) -> None:
    file = spec(server.serve("/a.bin", Answer(BODY)))
    result = subprocess.run(fetch_command(file, zoo.root), capture_output=True, check=True)
    assert (result.stdout, result.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (5e8, "500.0 MB"), (2e13, "20000.0 GB")]
)
def test_sizes_are_formatted(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("width", "text"), [(40, "RepVGG-A0.pth"), (13, "RepVGG-A0.pth"), (12, "RepVGG-A0..."), (1, "RepVGG-...")]
)
def test_names_are_shortened(width: int, text: str) -> None:
    assert shorten("RepVGG-A0.pth", width) == text


def test_the_setting_is_respected_by_a_download(zoo: Zoo, server: Server, capsys: pytest.CaptureFixture) -> None:
    settings = Settings(cache_dir=zoo.root, progress=True)
    path: Path = zoo.fetch(spec(server.serve("/a.bin", Answer(BODY))), settings=settings)
    assert path.exists()
    assert "3.00M/3.00M" in capsys.readouterr().err
