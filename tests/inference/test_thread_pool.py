"""Teams of threads: each does its share once a run, an interrupted caller breaks nothing, none outlives its team."""

from __future__ import annotations

import gc
import linecache
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from repvgg_zoo.inference import thread_pool as team_module
from repvgg_zoo.inference.thread_pool import Team

ROOT = Path(__file__).parents[2]
SECONDS = 10  # until a test gives up; all of this takes milliseconds


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert soon(lambda: set(threading.enumerate()) <= before)


def soon(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def nothing():
    pass


def within_time(job):
    """Runs it in a thread, so that a test that hangs fails; gives whether it ended."""
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_thread_is_called_once_a_run_with_its_number(size):
    team = Team(size)
    for _ in range(20):
        calls = []
        team.run(lambda number, calls=calls: calls.append((number, threading.get_ident())), nothing)
        assert sorted(number for number, _ in calls) == list(range(size))
        assert len({thread for _, thread in calls}) == size
        assert threading.get_ident() not in {thread for _, thread in calls}
    team.close()


def test_the_threads_work_at_the_same_time():
    team = Team(4)
    meeting = threading.Barrier(4, timeout=SECONDS)
    team.run(lambda number: meeting.wait(), nothing)
    team.close()


def test_prepare_is_called_before_the_work_and_while_none_is_done():
    team = Team(3)
    order = []
    for _ in range(50):
        team.run(lambda number: order.append("work"), lambda: order.append("prepare"))
    team.close()
    assert order == ["prepare", "work", "work", "work"] * 50


def test_an_error_in_prepare_is_the_callers_and_leaves_the_team_as_it_was():
    team = Team(2)
    calls = []
    with pytest.raises(ZeroDivisionError):
        team.run(calls.append, lambda: 1 / 0)
    assert calls == []
    team.run(calls.append, nothing)
    team.close()
    assert sorted(calls) == [0, 1]


def test_thousands_of_runs_are_quick():
    team = Team(2)
    count = [0, 0]

    def work(number):
        count[number] += 1

    start = time.monotonic()
    for _ in range(2000):
        team.run(work, nothing)
    team.close()
    assert count == [2000, 2000]
    assert time.monotonic() - start < SECONDS


def test_threads_end_on_close():
    before = set(threading.enumerate())
    team = Team(3)
    assert len(set(threading.enumerate()) - before) == 3
    team.close()
    assert soon(lambda: set(threading.enumerate()) == before)
    team.close()  # to close twice does nothing


def test_close_waits_for_what_is_under_way():
    team, ended = Team(2), []
    board = team._board

    def work(number):
        time.sleep(0.05)
        ended.append(number)

    board.post(work)  # as an interrupted run leaves it
    team.close()
    assert sorted(ended) == [0, 1]


def test_threads_end_when_the_team_is_dropped():
    before = set(threading.enumerate())
    team = Team(3)
    team.run(lambda number: None, nothing)
    gone = weakref.ref(team)
    del team
    gc.collect()
    assert gone() is None
    assert soon(lambda: set(threading.enumerate()) == before)


def test_nothing_of_the_work_is_held_once_it_is_done():
    class Work:
        def __call__(self, number):
            pass

    team, work = Team(2), Work()
    team.run(work, nothing)
    gone = weakref.ref(work)
    del work
    assert soon(lambda: gone() is None)
    team.close()


def test_no_thread_is_left_if_one_cannot_be_started(monkeypatch):
    before = set(threading.enumerate())
    start = threading.Thread.start

    def start_two(thread):
        if len(set(threading.enumerate()) - before) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Team(3)
    gc.collect()
    assert soon(lambda: set(threading.enumerate()) == before)


class Interrupt:
    """Raises KeyboardInterrupt in this thread at the n-th line of the team's code that it runs."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)

    def __exit__(self, *error):
        sys.settrace(self.before)

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename != team_module.__file__:
            return None
        # CPython looks for signals neither just before a "with" has its lock nor before it gives it back.
        line = linecache.getline(team_module.__file__, frame.f_lineno).strip()
        if event == "line" and not line.startswith("with "):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def was_interrupted(team, at, work):
    """Runs until that line, if there is one."""
    try:
        with Interrupt(at):
            team.run(work, nothing)
    except KeyboardInterrupt:
        return True
    return False


def test_a_caller_interrupted_at_any_line_leaves_a_usable_team():
    at = 0
    more = True
    while more:
        at += 1
        team, calls = Team(2), []
        more = was_interrupted(team, at, lambda number: time.sleep(0.002))
        assert within_time(lambda team=team, calls=calls: team.run(calls.append, nothing)), f"hangs after line {at}"
        assert sorted(calls) == [0, 1]
        assert within_time(team.close)
    assert at > 5


PROGRAM = """
import signal, sys, threading, time
from repvgg_zoo.inference.thread_pool import Team

team = Team(3)
ended = []

def work(number):
    time.sleep(0.5)
    ended.append(number)

def say():
    print("working", flush=True)

try:
    team.run(work, say)
except KeyboardInterrupt:
    print("interrupted", len(ended), flush=True)
calls = []
team.run(calls.append, lambda: print("before the next", sorted(ended), flush=True))
print("next", sorted(calls), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_caller_may_be_interrupted_by_a_real_signal_and_call_again():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environ, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "working\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=SECONDS)
    assert output.splitlines() == ["interrupted 0", "before the next [0, 1, 2]", "next [0, 1, 2]"]
    assert child.returncode == 0
