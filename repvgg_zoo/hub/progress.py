"""Progress of a download: one line on a terminal, nothing elsewhere, or whatever the caller hands in."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Mapping, Optional, Protocol, TextIO, Union

from .._settings import is_first_local_rank
from .clock import SYSTEM_CLOCK, Clock

REFRESH_SECONDS = 0.1


class Progress(Protocol):
    """Where a download reports to."""

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        """``done`` of ``total`` bytes of the file are there; ``total`` is None if nobody knows it."""

    def note(self, text: str) -> None:
        """Something that a person who waits wants to know."""

    def close(self) -> None:
        """No more will come."""


class NullProgress:
    """No progress at all."""

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class TerminalLine:
    """One line that is rewritten in place: name, part done, rate, time left."""

    def __init__(self, stream: Optional[TextIO] = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began: Optional[float] = None
        self._first = self._width = 0
        self._next = 0.0

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        now = self._clock.monotonic()
        if self._began is None or done < self._first:
            self._began, self._first = now, done
        if now < self._next and done != total:
            return
        self._next = now + REFRESH_SECONDS
        seconds = now - self._began
        rate = (done - self._first) / seconds if seconds > 0.5 else None
        line = f"{name}  {format_size(done)}"
        if total:
            line += f" of {format_size(total)} ({100 * done // total}%)"
        if rate:
            line += f"  {format_size(rate)}/s"
            if total:
                line += f"  {format_duration((total - done) / rate)} left"
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def note(self, text: str) -> None:
        self._write("\r" + text.ljust(self._width) + "\n")
        self._width = 0

    def close(self) -> None:
        if self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that has gone is no reason to stop a download
            self._stream.write(text)
            self._stream.flush()


def choose_progress(
    wanted: Union[bool, Progress, None],
    setting: Optional[bool],
    environ: Optional[Mapping[str, str]] = None,
) -> Progress:
    """The caller's word, else the setting's, else a line if stderr is a terminal; no line on ranks after the first."""
    if wanted is not None and not isinstance(wanted, bool):
        return wanted
    if not is_first_local_rank(environ):
        return NullProgress()
    on = setting if wanted is None else wanted
    if on is None:
        on = sys.stderr is not None and sys.stderr.isatty()
    return TerminalLine() if on and sys.stderr is not None else NullProgress()


def format_size(size: float) -> str:
    """A number of bytes as people write it.

    >>> from repvgg_zoo.hub.progress import format_size
    >>> format_size(33_500_000)
    '33.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def format_duration(seconds: float) -> str:
    """A time as minutes and seconds.

    >>> from repvgg_zoo.hub.progress import format_duration
    >>> format_duration(75)
    '1:15'
    """
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
