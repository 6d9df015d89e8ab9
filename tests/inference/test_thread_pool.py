"""ThreadPool: every thread runs the task once a run, errors and interrupts leave it usable, no thread outlives it."""

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
from contextlib import suppress
from pathlib import Path

import pytest

from repvgg_zoo.inference import thread_pool
from repvgg_zoo.inference.thread_pool import ThreadPool

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
    """Run it in a thread, so that a test that hangs fails; return whether it ended."""
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_thread_is_called_once_a_run_with_its_number(size):
    pool = ThreadPool(size)
    for _ in range(20):
        calls = []
        pool.run(lambda number, calls=calls: calls.append((number, threading.get_ident())), nothing)
        assert sorted(number for number, _ in calls) == list(range(size))
        assert len({thread for _, thread in calls}) == size
        assert threading.get_ident() not in {thread for _, thread in calls}
    pool.close()


def test_the_threads_work_at_the_same_time():
    pool = ThreadPool(4)
    meeting = threading.Barrier(4, timeout=SECONDS)
    pool.run(lambda number: meeting.wait(), nothing)  # a barrier that times out raises here
    pool.close()


def test_before_is_called_while_no_task_is_running():
    pool = ThreadPool(3)
    order = []
    for _ in range(50):
        pool.run(lambda number: order.append("task"), lambda: order.append("before"))
    pool.close()
    assert order == ["before", "task", "task", "task"] * 50


def test_an_error_in_before_is_raised_and_leaves_the_pool_as_it_was():
    pool = ThreadPool(2)
    calls = []
    with pytest.raises(ZeroDivisionError):
        pool.run(calls.append, lambda: 1 / 0)
    assert calls == []
    pool.run(calls.append, nothing)
    pool.close()
    assert sorted(calls) == [0, 1]


def raise_in(*numbers):
    def task(number):
        if number in numbers:
            raise ValueError(f"thread {number}")

    return task


@pytest.mark.parametrize("numbers", [(0,), (2,), (0, 1, 2)], ids=str)
def test_an_error_in_a_task_is_raised_in_run_and_leaves_a_usable_pool(numbers):
    pool = ThreadPool(3)
    errors = []

    def call():
        try:
            pool.run(raise_in(*numbers), nothing)
        except ValueError as error:
            errors.append(str(error))

    assert within_time(call), "run waits for ever"
    assert errors in [[f"thread {number}"] for number in numbers]
    calls = []
    assert within_time(lambda: pool.run(calls.append, nothing)), "the next run waits for ever"
    assert sorted(calls) == [0, 1, 2]
    assert within_time(pool.close), "close waits for ever"


def test_an_error_is_raised_once_all_threads_are_done():
    pool, ended = ThreadPool(2), []

    def task(number):
        if number == 0:
            raise ValueError
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(ValueError):  # noqa: PT011
        pool.run(task, nothing)
    assert ended == [1]
    pool.close()


def test_a_system_exit_in_a_task_is_raised_in_run_as_well():
    pool = ThreadPool(2)
    with pytest.raises(SystemExit):
        pool.run(lambda number: sys.exit(3), nothing)
    pool.close()


def test_thousands_of_runs_all_reach_every_thread():
    pool = ThreadPool(2)
    count = [0, 0]

    def task(number):
        count[number] += 1

    for _ in range(2000):
        pool.run(task, nothing)
    pool.close()
    assert count == [2000, 2000]


def test_threads_end_on_close():
    before = set(threading.enumerate())
    pool = ThreadPool(3)
    assert len(set(threading.enumerate()) - before) == 3
    pool.close()
    assert soon(lambda: set(threading.enumerate()) == before)
    pool.close()  # closing twice does nothing


def test_close_waits_for_the_running_task():
    pool, started, ended = ThreadPool(2), threading.Event(), []

    def task(number):
        started.set()
        time.sleep(0.05)
        ended.append(number)

    caller = threading.Thread(target=pool.run, args=(task, nothing))
    caller.start()
    assert started.wait(SECONDS)
    pool.close()
    assert sorted(ended) == [0, 1]
    caller.join(SECONDS)
    assert not caller.is_alive()


def test_a_task_that_waits_for_all_threads_survives_the_end_of_its_pool():
    pool, meeting, ended = ThreadPool(2), threading.Barrier(2, timeout=SECONDS), []

    def task(number):
        meeting.wait()
        ended.append(number)

    # No thread has seen the task yet when the pool is stopped, as it is when an interrupted caller drops it.
    with pool._state.changed:
        pool._state.submit(task)
        pool._stop()
    assert soon(lambda: sorted(ended) == [0, 1])


def test_threads_end_when_the_pool_is_dropped():
    before = set(threading.enumerate())
    pool = ThreadPool(3)
    pool.run(lambda number: None, nothing)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert soon(lambda: set(threading.enumerate()) == before)


class Task:
    def __init__(self, error):
        self.error = error

    def __call__(self, number):
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, ValueError], ids=str)
def test_a_task_is_not_referenced_once_it_is_done(error):
    pool, task = ThreadPool(2), Task(error)
    with suppress(ValueError):
        pool.run(task, nothing)
    gone = weakref.ref(task)
    del task
    assert soon(lambda: gone() is None)
    pool.close()


def test_no_thread_is_left_if_one_cannot_be_started(monkeypatch):
    before = set(threading.enumerate())
    start = threading.Thread.start

    def start_two(thread):
        if len(set(threading.enumerate()) - before) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ThreadPool(3)
    gc.collect()
    assert soon(lambda: set(threading.enumerate()) == before)


class Interrupt:
    """Raise KeyboardInterrupt in this thread at the n-th line of the pool's code that it runs."""

    def __init__(self, at):
        self.remaining = at

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)

    def __exit__(self, *error):
        sys.settrace(self.before)

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename != thread_pool.__file__:
            return None
        # CPython looks for signals neither just before a "with" has its lock nor before it gives it back.
        line = linecache.getline(thread_pool.__file__, frame.f_lineno).strip()
        if event == "line" and not line.startswith("with "):
            self.remaining -= 1
            if self.remaining == 0:
                raise KeyboardInterrupt
        return self


def was_interrupted(pool, at, task):
    """Run until that line, if the run gets there."""
    try:
        with Interrupt(at):
            pool.run(task, nothing)
    except KeyboardInterrupt:
        return True
    return False


def test_a_caller_interrupted_at_any_line_leaves_a_usable_pool():
    at = 0
    more = True
    while more:
        at += 1
        pool, calls = ThreadPool(2), []
        more = was_interrupted(pool, at, lambda number: time.sleep(0.002))
        assert within_time(lambda pool=pool, calls=calls: pool.run(calls.append, nothing)), f"hangs after line {at}"
        assert sorted(calls) == [0, 1]
        assert within_time(pool.close)
    assert at > 5


PROGRAM = """
import signal, sys, threading, time
from repvgg_zoo.inference.thread_pool import ThreadPool

pool = ThreadPool(3)
ended = []

def task(number):
    time.sleep(0.5)
    ended.append(number)

def report():
    print("running", flush=True)

try:
    pool.run(task, report)
except KeyboardInterrupt:
    print("interrupted", len(ended), flush=True)
calls = []
pool.run(calls.append, lambda: print("before the next", sorted(ended), flush=True))
print("next", sorted(calls), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_caller_may_be_interrupted_by_a_real_signal_and_call_again():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environ, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "running\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=SECONDS)
    assert output.splitlines() == ["interrupted 0", "before the next [0, 1, 2]", "next [0, 1, 2]"]
    assert child.returncode == 0
