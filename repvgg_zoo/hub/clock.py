"""Time and chance, as one small thing that tests can replace."""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    """What the loader asks of time."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def jitter(self) -> float:
        """A random number in 0..1, so that many machines do not retry in step."""


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def jitter(self) -> float:
        return random.random()


SYSTEM_CLOCK: Clock = SystemClock()
