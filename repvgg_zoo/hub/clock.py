"""Time and randomness behind one interface, so that tests can replace them."""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    """What downloads need to know about time."""

    def time(self) -> float:
        """Return the seconds since 1970."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait for this many seconds."""

    def jitter(self) -> float:
        """Return a random number in 0..1, so that many machines do not retry at the same time."""


class SystemClock:
    """The clock of this machine."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def jitter(self) -> float:
        return random.random()


SYSTEM_CLOCK: Clock = SystemClock()
