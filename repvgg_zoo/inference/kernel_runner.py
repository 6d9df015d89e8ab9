"""KernelRunner: a network that is computed by the kernels."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from .compiled_model import Arrays, OutputSpec
from .explain import time_parts
from .explanation import Explanation
from .jit.engine import jit_compile, yield_thread_address
from .plan import ExecutionPlan
from .thread_pool import ThreadPool


class KernelRunner:
    """Runs an execution plan: each of ``threads`` threads does its share of every call."""

    def __init__(self, plan: ExecutionPlan, threads: int, explanation: Optional[Explanation] = None) -> None:
        names = tuple(plan.outputs)
        self._explanation = explanation or Explanation(())
        self.outputs = OutputSpec("array" if names == ("",) else "dict", names)
        self._plan: Optional[_BoundPlan] = _BoundPlan(plan, threads)
        self._pool = ThreadPool(threads) if threads > 1 else None

    def __call__(self, x: NDArray[Any]) -> Arrays:
        assert self._plan is not None
        plan = self._plan.plan
        self.run_calls(x, 0, len(plan.calls))
        outputs = plan.outputs.values()
        # copy, since ascontiguousarray would return the plan's own memory for a feature map of one pixel.
        return tuple((array if array.ndim == 2 else array.transpose(0, 3, 1, 2)).copy() for array in outputs)

    def run_calls(self, x: NDArray[Any], start: int, stop: int) -> None:
        """Run the plan's calls from ``start`` up to ``stop`` for a batch of images."""
        bound = self._plan
        assert bound is not None
        if self._pool is None:
            bound.bind_input(x)
            bound(0, start, stop)
        else:
            self._pool.run(lambda thread: bound(thread, start, stop), before=lambda: bound.bind_input(x))

    def explain(self, measure: bool) -> Explanation:
        """Return the explanation of the plan, with the time that each part takes if ``measure``."""
        assert self._plan is not None
        return time_parts(self._explanation, self._plan.plan, self.run_calls) if measure else self._explanation

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._plan = None


class _BoundPlan:
    """A plan as the machine code reads it. A thread that runs it references it, and so its memory and the images."""

    def __init__(self, plan: ExecutionPlan, threads: int) -> None:
        self.plan = plan
        self._code = jit_compile(plan.config)
        self._images: Optional[NDArray[Any]] = None
        self._calls = np.array([(self._code.addresses[call.kernel], call.arguments.ctypes.data) for call in plan.calls])
        self._barrier = np.zeros(16, np.int64)
        self._threads = threads
        self._yield_thread = yield_thread_address()

    def bind_input(self, x: NDArray[Any]) -> None:
        """Set the images, which must not be changed before the run is over."""
        assert x.shape == self.plan.input_shape
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        self._images = x
        self.plan.calls[0].arguments[0] = x.ctypes.data

    def __call__(self, thread: int, start: int, stop: int) -> None:
        calls = self._calls[start:stop]
        self._code.run(
            calls.ctypes.data, len(calls), thread, self._threads, self._barrier.ctypes.data, self._yield_thread
        )
