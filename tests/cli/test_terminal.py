"""Terminals, pipes, readers that close them, and Ctrl-C."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time

import pytest

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.hub import cache_filename
from repvgg_zoo.hub.partial import MIN_RESUMABLE_BYTES
from tests.hub.server import Answer

from .conftest import piped, spawn
from .terminal import Terminal

FILE = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits").file
BODY = hub_folder().joinpath(cache_filename(FILE)).read_bytes()


def on_terminal(*argv, **env):
    terminal = Terminal(*argv, env=env)
    return terminal.finish(), terminal.screen


def test_a_terminal_gets_styles_and_a_pipe_the_same_text_without(run):
    code, screen = on_terminal("list", "A*")
    assert code == 0 and screen.startswith("\033[1mname ")
    plain = piped("list", "A*")
    assert plain.code == 0 and plain.err == "" and "\033" not in plain.out
    for escape in ("\033[1m", "\033[2m", "\033[0m"):
        screen = screen.replace(escape, "")
    assert screen == plain.out == run("list", "A*").out


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_styles_can_be_switched_off(env):
    code, screen = on_terminal("list", "A0", **env)
    assert code == 0 and "RepVGG_A0" in screen and "\033" not in screen


def test_an_error_on_a_terminal_is_red_and_has_no_traceback():
    code, screen = on_terminal("info", "RepVGG_A4")
    assert code == 3 and screen.startswith("\033[31merror\033[0m: unknown model 'RepVGG_A4'\n")
    assert "Traceback" not in screen


def wait_until(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def slow_mirror(server, monkeypatch, *answers):
    url = server.serve(f"/{cache_filename(FILE)}", *answers)
    monkeypatch.setenv("REPVGG_ZOO_MIRROR", url.rpartition("/")[0])


def test_a_terminal_gets_progress_and_the_path_on_its_own_line(server, monkeypatch, folder):
    slow_mirror(server, monkeypatch, Answer(BODY))
    server.gate = lambda: time.sleep(0.2)
    code, screen = on_terminal("fetch", "RepVGG_N0")
    assert code == 0 and "RepVGG_N0-digits.safe...: 100%" in screen and "| 1.01M/1.01M " in screen
    assert screen.splitlines()[-1] == str(folder.parent / "cache" / cache_filename(FILE))


def test_a_pipe_gets_the_path_and_no_progress(server, monkeypatch, folder):
    slow_mirror(server, monkeypatch, Answer(BODY))
    result = piped("fetch", "RepVGG_N0")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{folder.parent / 'cache' / cache_filename(FILE)}\n"


def test_ctrl_c_stops_a_fetch_that_the_next_one_resumes(server, monkeypatch, folder):
    half = Answer(BODY, etag='"1"', cut=len(BODY) // 2, stall=True)
    slow_mirror(server, monkeypatch, half, Answer(BODY, etag='"1"'))
    terminal = Terminal("fetch", "RepVGG_N0")
    terminal.wait_for("/1.01M ")
    cache = folder.parent / "cache"
    wait_until(lambda: any(part.stat().st_size >= MIN_RESUMABLE_BYTES for part in cache.glob("*.part")))
    terminal.press("\x03")
    assert terminal.finish() == 130
    assert "Traceback" not in terminal.screen and "run the same command again to resume" in terminal.screen
    assert piped("fetch", "RepVGG_N0").code == 0
    assert server.requests[-1].headers["Range"].startswith("bytes=")


def test_an_interrupted_command_in_a_pipe_exits_with_130(server, monkeypatch):
    slow_mirror(server, monkeypatch, Answer(BODY, cut=1000, stall=True))
    process = spawn("fetch", "RepVGG_N0", "--json")
    wait_until(lambda: server.sent)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "" and "Traceback" not in err and "interrupted" in err


@pytest.mark.parametrize("argv", [["info", "RepVGG_A0", "--json"], ["list", "--help"], ["--help"]])
def test_a_reader_that_closes_the_pipe_is_not_an_error(argv):
    process = spawn(*argv)
    process.stdout.close()  # as head does, before anything was written
    err = process.stderr.read()
    assert (process.wait(timeout=30), err) == (141, "")
    process.stderr.close()


@pytest.mark.parametrize("line", ["list A0", "info RepVGG_A4", "cache where --json"])
def test_closed_streams_are_not_an_error(line):
    command = f"{shlex.quote(sys.executable)} -m repvgg_zoo {line} >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=60).returncode == (3 if "A4" in line else 0)
