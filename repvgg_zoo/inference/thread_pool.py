"""A thread pool that runs one task in all of its threads at once, again and again."""

from __future__ import annotations

import threading
import weakref
from typing import Callable, Optional

Task = Callable[[int], None]  # called once in each thread, with the thread's number


class ThreadPool:
    """``size`` threads that wait for a task; for one caller at a time.

    Either all threads start or none stays. A caller that is interrupted (Ctrl-C) leaves a usable pool: the task goes on
    in the threads, and the next ``run`` waits for it. The threads end with ``close``, or when the pool is no longer
    referenced.
    """

    def __init__(self, size: int) -> None:
        self._state = _SharedState(size)
        self._stop = weakref.finalize(self, self._state.stop)  # also if not all threads can be started
        for number in range(size):
            # Daemon: it blocks indefinitely. It references only the shared state, so the pool can be collected.
            threading.Thread(target=_worker_loop, args=(self._state, number), daemon=True).start()

    def run(self, task: Task, before: Callable[[], None]) -> None:
        """Run ``task`` in every thread and wait for all of them; call ``before`` first, while no task is running.

        Raises what ``before`` raises, or the first exception of ``task``, once all threads are done with it.
        """
        self._state.wait()  # a task that an interrupted call left running, whose exception has no caller
        before()
        self._state.submit(task)
        error = self._state.wait()
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback references this frame

    def close(self) -> None:
        """End the threads after the current task; closing twice does nothing."""
        self._state.wait()
        self._stop()


class _SharedState:
    """The current task: ``generation`` counts the tasks, ``pending`` the threads that are not done with the last."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        self.size = size
        self.generation = 0
        self.pending = 0
        self.task: Optional[Task] = None
        self.error: Optional[BaseException] = None
        self.stopped = False

    def submit(self, task: Task) -> None:
        with self.changed:
            self.task, self.pending, self.generation = task, self.size, self.generation + 1
            self.changed.notify_all()

    def wait(self) -> Optional[BaseException]:
        """Wait until no thread is at work; return the first exception of the task, if any, and forget it."""
        with self.changed:
            self.changed.notify_all()  # submit may have been interrupted before it did
            self.changed.wait_for(lambda: self.pending == 0)
            error, self.error = self.error, None
            return error

    def done(self, error: Optional[BaseException]) -> None:
        with self.changed:
            self.error = error if self.error is None else self.error
            self.pending -= 1
            if self.pending == 0:
                self.task = None
                self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def _worker_loop(state: _SharedState, number: int) -> None:
    generation = 0
    while True:
        with state.changed:
            state.changed.wait_for(lambda: state.stopped or state.generation != generation)  # noqa: B023  # called at once
            # A submitted task comes before the end: the other threads may be waiting in it for this one.
            if state.generation == generation:
                return
            generation, task = state.generation, state.task
        assert task is not None
        error: Optional[BaseException] = None
        try:
            task(number)
        except BaseException as caught:
            error = caught
        del task
        state.done(error)
        del error  # it references the task through its traceback
