"""The progress of a download: a bar on a terminal or in a notebook, lines in a log, or what the caller passes in."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, Mapping, Optional, Protocol, TextIO, Union

from .._log import get_logger
from .._settings import is_first_local_rank
from .clock import SYSTEM_CLOCK, Clock
from .filenames import sanitize_filename

LOG_INTERVAL_S = 30.0
_NUMBERS_WIDTH = 56  # what tqdm's percentage, a short bar, sizes, times and rate take of a line

logger = get_logger("repvgg_zoo.hub")


class Progress(Protocol):
    """Where a download reports to."""

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        """Report that ``done`` of ``total`` bytes of the file have arrived; ``total`` is None if it is not known."""

    def message(self, text: str) -> None:
        """Show a line of text to whoever waits."""

    def close(self) -> None:
        """End the report."""


class NullProgress:
    """No report at all."""

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class BarProgress:
    """A bar of tqdm, on stderr unless ``stream`` is another one."""

    def __init__(self, stream: Optional[TextIO] = None, unit: str = "B") -> None:
        self._stream = sys.stderr if stream is None else stream
        self._unit = unit
        self._bar: Any = None

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        with suppress(OSError, ValueError):  # a closed terminal does not stop a download
            if self._bar is not None and done < self._bar.n:  # the download starts again
                self._close()
            if self._bar is None:
                self._bar = self._open(name, done, total)
            self._bar.total = total  # of images in tar files it is estimated
            self._bar.update(done - self._bar.n)

    def message(self, text: str) -> None:
        from tqdm.auto import tqdm

        with suppress(OSError, ValueError):
            tqdm.write(text, file=self._stream)

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._close()

    def _open(self, name: str, done: int, total: Optional[int]) -> Any:
        from tqdm.auto import tqdm

        return tqdm(
            desc=shorten(sanitize_filename(name), terminal_width(self._stream) - _NUMBERS_WIDTH),
            initial=done,
            total=total,
            unit=self._unit,
            unit_scale=self._unit == "B",
            file=self._stream,
            dynamic_ncols=True,
        )

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


class LogProgress:
    """A line in the log now and then."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, interval: float = LOG_INTERVAL_S) -> None:
        self._clock, self._interval = clock, interval
        self._last: Optional[float] = None

    def update(self, name: str, done: int, total: Optional[int]) -> None:
        now = self._clock.monotonic()
        if self._last is None:
            self._last = now
        if now - self._last >= self._interval:
            self._last = now
            of_total = f" of {format_size(total)} ({100 * done // total}%)" if total else ""
            logger.info("downloading %s: %s%s", name, format_size(done), of_total)

    def message(self, text: str) -> None:
        pass  # messages are logged by whoever sends them

    def close(self) -> None:
        pass


def choose_progress(
    requested: Union[bool, Progress, None],
    setting: Optional[bool],
    environ: Optional[Mapping[str, str]] = None,
    clock: Clock = SYSTEM_CLOCK,
    *,
    unit: str = "B",
    log: Optional[Progress] = None,
) -> Progress:
    """Return the caller's choice, else the setting's, else a bar on a terminal or in a notebook and a log elsewhere.

    ``unit`` and ``log`` are for what is not a download. Of the processes of a distributed job on one machine, only the
    first reports.
    """
    if requested is not None and not isinstance(requested, bool):
        return requested
    enabled = setting if requested is None else requested
    if enabled is False or not is_first_local_rank(environ):
        return NullProgress()
    if sys.stderr is not None and (enabled or sys.stderr.isatty() or _is_notebook()):
        return BarProgress(unit=unit)
    return log or LogProgress(clock)


def _is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, whose stderr is not a terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})


def terminal_width(stream: TextIO) -> int:
    """Return how many columns a terminal has; 80 if the stream is not a terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


def shorten(name: str, width: int) -> str:
    """Return a name that takes at most ``width`` columns, but at least ten.

    >>> from repvgg_zoo.hub.progress import shorten
    >>> shorten("RepVGGplus-L2pse-train256-acc84.06.pth", 24)
    'RepVGGplus-L2pse-trai...'
    """
    width = max(width, 10)
    return name if len(name) <= width else f"{name[: width - 3]}..."


def format_size(size: float) -> str:
    """Return a number of bytes for people to read.

    >>> from repvgg_zoo.hub.progress import format_size
    >>> format_size(33_500_000)
    '33.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
