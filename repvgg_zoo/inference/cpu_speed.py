"""host_cpu_speed: the two figures of the cost model, measured once for a processor and kept in the derived cache.

They are measured on the real igemm, which takes less than a tenth of a second: the least processor time of several
passes, which other programs hardly change. Where the cache cannot be written to, every process measures for itself.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Dict, Optional

import numpy as np

from .._cpu import cpu_name
from .._derived_cache import DerivedCache, DerivedKey
from .._log import get_logger
from .bounds import check_bounds
from .cost_model import DEFAULT_CPU_SPEED, CpuSpeed
from .jit.engine import host_processor, jit_compile
from .jit.kernels import NR, MicrokernelConfig
from .kernel_runner import KernelRunner
from .packing import aligned_zeros
from .plan import ExecutionPlan

STEP = "speed"
VERSION = 2
ROUNDS = 8
# How often in a round, rows, K, and panels of NR columns.
CACHED = (10, 96, 576, 4)  # everything fits into the second-level cache
# 72 MiB of weights, as much as a network's, and as few rows as small activations have tiles. A part of that, read again
# and again, would be nearer to the core than weights are that all other layers were read after.
STREAMED = (1, 16, 576, 2048)

_clock = time.perf_counter if sys.platform == "win32" else time.thread_time  # which counts in 16 ms on Windows
_LOCK = threading.Lock()
_speeds: Dict[MicrokernelConfig, CpuSpeed] = {}

logger = get_logger(__name__)


def host_cpu_speed(config: MicrokernelConfig, cache: Optional[DerivedCache] = None) -> CpuSpeed:
    """Return this processor's speed: what this process used before, what the cache has, or else what is measured."""
    with _LOCK:
        if config not in _speeds:
            key = speed_key(jit_compile(config, cache).digest, f"{cpu_name()} {host_processor()}")
            _speeds[config] = load_or_measure(functools.partial(measure_cpu_speed, config), cache, key)
        return _speeds[config]


def speed_key(code: str, processor: str) -> DerivedKey:
    """Return the key of a processor's speed with this machine code, of which ``code`` is the digest."""
    return DerivedKey(code, STEP, VERSION, {"processor": processor})


def load_or_measure(measure: Callable[[], CpuSpeed], cache: Optional[DerivedCache], key: DerivedKey) -> CpuSpeed:
    """Return what the cache has, else what ``measure`` returns, which is kept if the cache can be written to."""
    stored = None if cache is None else cache.read(key)
    if stored is not None:
        with suppress(ValueError, TypeError):
            speed = CpuSpeed(*json.loads(bytes(stored)))
            if all(0 < value < math.inf for value in speed):
                return speed
    speed = measure()
    if cache is not None:
        cache.write(key, lambda stream: stream.write(json.dumps(speed).encode()))
    return speed


def measure_cpu_speed(config: MicrokernelConfig) -> CpuSpeed:
    """Time the igemm on one thread, with weights that are in the second-level cache and with others."""
    start = time.perf_counter()
    cached, streamed = _Igemm(config, *CACHED), _Igemm(config, *STREAMED)
    # The first of two runs reads again what the streamed weights have evicted from the cache.
    seconds = [(min(cached.run(), cached.run()), streamed.run()) for _ in range(ROUNDS)]
    cached_seconds, streamed_seconds = map(min, zip(*seconds))
    speed = speed_of(cached.fmas, cached_seconds, streamed.fmas, streamed_seconds, streamed.weight_bytes)
    logger.info("measured the processor's speed in %.0f ms: %s", 1e3 * (time.perf_counter() - start), speed)
    return speed


def speed_of(
    cached_fmas: int, cached_seconds: float, streamed_fmas: int, streamed_seconds: float, streamed_bytes: int
) -> CpuSpeed:
    """Return the speed that explains two times, or the default if a clock that is too coarse counted nothing.

    As in the cost model, the square of a time is the sum of those of the arithmetic and of the bytes. The latter is at
    least a tenth of the former.
    """
    if min(cached_seconds, streamed_seconds) <= 0:
        return DEFAULT_CPU_SPEED
    fma_per_second = cached_fmas / cached_seconds
    arithmetic = streamed_fmas / fma_per_second
    streaming = math.sqrt(max(streamed_seconds**2 - arithmetic**2, (arithmetic / 10) ** 2))
    return CpuSpeed(fma_per_second, streamed_bytes / streaming)


class _Igemm:
    """An igemm on one thread, ``count`` times."""

    def __init__(self, config: MicrokernelConfig, count: int, rows: int, kc: int, panels: int) -> None:
        tiles, columns = -(-rows // config.mr), panels * NR
        self.fmas, self.weight_bytes = count * rows * columns * kc, count * columns * kc * 4
        self._a, w = (aligned_zeros(shape) for shape in ((1, 1, rows, kc), (panels, kc, NR)))
        w[...] = 1  # pages that were never written to are all the same one
        plan = ExecutionPlan(config, (1, 1, rows, kc))
        plan.emit_call(
            "igemm",
            a=self._a,
            w=w,
            bias=aligned_zeros((NR,)),
            bias_stride=0,
            c=aligned_zeros((rows, columns)),
            kc=kc,
            panels=panels,
            groups=1,
            m_blocks=1,
            relu=0,
            ks=_int64([1]),
            tap_offsets=_int64([0]),
            a_group_offsets=_int64([0]),
            w_group_offsets=_int64([0]),
            c_group_offsets=_int64([0]),
            a_offsets=_int64(np.arange(rows) * kc),
            c_offsets=_int64(np.arange(rows) * columns),
            m_tiles=_int64(np.arange(tiles + 1) * rows // tiles),
            block_tiles=_int64([0, tiles]),
        )
        check_bounds(plan)
        plan.calls *= count
        self._runner, self._count = KernelRunner(plan, threads=1), count

    def run(self) -> float:
        """Return the seconds that it took this thread."""
        start = _clock()
        self._runner.run_calls(self._a, 0, self._count)
        return _clock() - start


def _int64(values: Any) -> Any:
    return np.array(values, np.int64)
