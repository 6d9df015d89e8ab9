"""The progress through many images: a bar on a terminal or in a notebook, and a line now and then elsewhere."""

from __future__ import annotations

from typing import Callable, Optional, Union

from .._arguments import check_flag
from .._log import get_logger
from .._settings import read_settings
from ..hub.clock import SYSTEM_CLOCK, Clock
from ..hub.progress import LOG_INTERVAL_S, Progress, choose_progress

logger = get_logger("repvgg_zoo.data")


class ImageLog:
    """A line now and then: how many images of how many, how fast, and how long it will take."""

    def __init__(
        self,
        write: Optional[Callable[[str], None]] = None,
        clock: Clock = SYSTEM_CLOCK,
        interval: float = LOG_INTERVAL_S,
    ) -> None:
        self._write = write or (lambda text: logger.info("%s", text))
        self._clock, self._interval = clock, interval
        self._start: Optional[float] = None
        self._first = 0
        self._last = 0.0

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        """Write a line if the last one was written some time ago."""
        now = self._clock.monotonic()
        if self._start is None:
            self._start = self._last = now
            self._first = done
        if now - self._last < self._interval or done == self._first:
            return
        self._last = now
        rate = (done - self._first) / (now - self._start)
        of_total = f" of {total:,} images ({100 * done // total}%)" if total else " images"
        left = f", {format_duration((total - done) / rate)} left" if total else ""
        self._write(f"{name}: {done:,}{of_total}, {rate:.1f} images/s{left}")

    def message(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def close(self) -> None:
        """Do nothing: each line is complete."""


def image_progress(
    requested: Union[bool, Progress, None], *, write: Optional[Callable[[str], None]] = None
) -> Progress:
    """Return the caller's choice, else a bar or a log; ``write`` takes the lines of the latter.

    Raises ArgumentError for anything else.
    """
    if requested is not None and not hasattr(requested, "update"):
        requested = check_flag("progress", requested)
    return choose_progress(requested, read_settings().progress, unit=" images", log=ImageLog(write))


def format_duration(seconds: float) -> str:
    """Return hours, minutes and seconds.

    >>> from repvgg_zoo.data.progress import format_duration
    >>> format_duration(75), format_duration(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
