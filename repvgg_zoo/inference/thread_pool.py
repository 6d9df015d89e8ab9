"""Threads that do a piece of work together, again and again."""

from __future__ import annotations

import threading
import weakref
from typing import Callable, Optional

Work = Callable[[int], None]  # called in each thread at once, with the thread's number


class Team:
    """``size`` threads that wait for work; for one caller at a time.

    They all start or none does, and what has started ends by itself: a caller who is interrupted (Ctrl-C) leaves
    nothing behind but work under way, which the next ``run`` waits for. The threads end with ``close``, or when the
    team is no longer used.
    """

    def __init__(self, size: int) -> None:
        self._board = _Board(size)
        self._end = weakref.finalize(self, self._board.post, None)  # also if not all of them can be started
        for number in range(size):
            # A daemon, since it waits for ever; it holds the board and not the team.
            threading.Thread(target=_serve, args=(self._board, number), daemon=True).start()

    def run(self, work: Work, prepare: Callable[[], None]) -> None:
        """Has every thread do ``work``, and waits for all of them; ``prepare`` is called while none is at work."""
        self._board.wait()
        prepare()
        self._board.post(work)
        self._board.wait()

    def close(self) -> None:
        """Ends the threads, once they have done what they are doing; to close twice does nothing."""
        if self._end.alive:
            self._board.wait()
            self._end()


class _Board:
    """What is to be done: ``turn`` counts the posts, ``busy`` the threads that are not yet done with the last."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        self.size = size
        self.turn = 0
        self.busy = 0
        self.work: Optional[Work] = None

    def post(self, work: Optional[Work]) -> None:
        with self.changed:
            self.work, self.busy, self.turn = work, self.size, self.turn + 1
            self.changed.notify_all()

    def wait(self) -> None:
        with self.changed:
            self.changed.notify_all()  # post may have been interrupted before it did
            self.changed.wait_for(lambda: self.busy == 0)

    def done(self) -> None:
        with self.changed:
            self.busy -= 1
            if self.busy == 0:
                self.work = None
                self.changed.notify_all()


def _serve(board: _Board, number: int) -> None:
    turn = 0
    while True:
        with board.changed:
            board.changed.wait_for(lambda: board.turn != turn)  # noqa: B023  # called at once
            turn, work = board.turn, board.work
        if work is None:
            return
        work(number)
        del work
        board.done()
