"""The processor: what it is, how much of it may be used, and what else of this process runs on it."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterable, List, TypeVar

from ._log import get_logger
from ._settings import KEEP_THREAD_PRIORITY_ENV, read_switch

T = TypeVar("T")
R = TypeVar("R")

SYNC_THREAD = "CompNodeSync"
MIN_PARALLEL_BYTES = 1 << 22

logger = get_logger(__name__)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_on_all_cores(function: Callable[[T], R], items: Iterable[T], nbytes: int) -> List[R]:
    """Return the results of a function that gives up the lock of Python most of its time, for all items in order.

    ``nbytes`` is about what all calls read: where that is little, they are sooner done than threads are started.
    """
    if nbytes < MIN_PARALLEL_BYTES:
        return list(map(function, items))
    from concurrent.futures import ThreadPoolExecutor  # here, as `import repvgg_zoo` does not need it

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(function, items))


def cpu_info() -> Dict[str, str]:
    """Return Linux's description of the first processor ("model name", "flags", ...), or {} on other systems."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
        return {name.strip(): value.strip() for name, colon, value in lines if colon}
    return {}


def cpu_name() -> str:
    """Return the processor's name as its vendor writes it."""
    return cpu_info().get("model name") or platform.processor() or "unknown"


def lower_sync_thread_priority() -> None:
    """Give MegEngine's polling thread the scheduling policy SCHED_IDLE, if MegEngine has computed in this process.

    From its first computation until the process ends, MegEngine's thread CompNodeSync looks every 10 microseconds for
    memory that it may release, which takes 10 to 30 % of a core. It preempts whatever else computes in the process;
    with SCHED_IDLE it runs only when a core is free. Do nothing on systems other than Linux, and where the environment
    variable REPVGG_ZOO_KEEP_THREAD_PRIORITY is set.
    """
    if "megengine" not in sys.modules or sys.platform != "linux" or read_switch(KEEP_THREAD_PRIORITY_ENV):
        return
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with suppress(OSError):  # the thread has ended meanwhile, or a sandbox forbids it
            thread = int(task.name)
            if (task / "comm").read_text().strip() == SYNC_THREAD and os.sched_getscheduler(thread) != os.SCHED_IDLE:
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
                logger.debug("MegEngine's thread %s got idle priority", SYNC_THREAD)
