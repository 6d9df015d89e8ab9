"""A lock that saves bandwidth and nothing else: one process downloads a file, the others wait for it.

Nothing relies on it. Where it cannot be made, lies, or is held by a process that hangs, the loader goes on without it,
and parts and verification keep everything right.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Hashable, Iterator, Optional, Protocol

from .clock import Clock

NOTIFY_AFTER_S = 3.0  # waiters say what they wait for after this long
STALL_TIMEOUT_S = 90.0  # longer than any pause between two tries of a download that is alive

logger = logging.getLogger("repvgg_zoo.hub")


class Lock(Protocol):
    """A lock that one process holds at a time."""

    def try_acquire(self) -> bool:
        """Take it if it is free; raises OSError or NotImplementedError if it cannot work at all."""

    def release(self) -> None:
        """Give it back."""


class FileLock:
    """A lock on a file, from filelock; the system frees it when its holder dies."""

    def __init__(self, path: Path) -> None:
        import filelock

        self._busy = filelock.Timeout
        self._lock = filelock.FileLock(str(path))

    def try_acquire(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except self._busy:
            return False
        return True

    def release(self) -> None:
        self._lock.release()


@contextmanager
def turn(
    make_lock: Callable[[], Lock],
    activity: Callable[[], Hashable],
    clock: Clock,
    tell: Callable[[], None],
    patience: float = STALL_TIMEOUT_S,
) -> Iterator[None]:
    """Wait until no other process is at work on the same file, then run the body, with the lock if it can be had.

    ``activity`` gives something that changes while another process gets on; when it has not changed for ``patience``
    seconds, the holder hangs and is not waited for. ``tell`` is called once, when the wait gets noticeable.
    """
    lock: Optional[Lock] = None
    try:
        lock = make_lock()
        if not _wait(lock, activity, clock, tell, patience):
            lock = None
    except (OSError, NotImplementedError) as error:
        logger.warning("no file lock (%s); several processes may download the same file at once", error)
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            try:
                lock.release()
            except OSError as error:
                logger.warning("a file lock could not be released: %s", error)


def _wait(
    lock: Lock, activity: Callable[[], Hashable], clock: Clock, tell: Callable[[], None], patience: float
) -> bool:
    started = moved = clock.monotonic()
    seen = activity()
    told = False
    while not lock.try_acquire():
        now, current = clock.monotonic(), activity()
        if current != seen:
            seen, moved = current, now
        if now - moved > patience:
            logger.warning("the process that holds the lock does nothing; going on without it")
            return False
        if now - started > NOTIFY_AFTER_S and not told:
            told = True
            tell()
        clock.sleep(0.05 + 0.1 * clock.jitter())
    return True
