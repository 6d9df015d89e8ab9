"""What runs a batch: our kernels, MegEngine Lite, or the eager network where there is neither."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, List, Optional, Protocol, Tuple, Union

import megengine.module as M
import numpy as np
from megengine import Tensor
from numpy.typing import NDArray

from ..errors import ArgumentError
from .graph import Arrays, Structure, flat_outputs
from .lite import LiteNetwork
from .plan import ExecutionPlan
from .thread_pool import ThreadPool


class Runner(Protocol):
    """Runs float32 arrays of one shape; not for several threads at once."""

    def __call__(self, x: NDArray[Any]) -> Arrays:
        """The network's outputs for a batch, in order, as arrays of the caller's own."""

    def close(self) -> None:
        """Give memory and threads back."""


class KernelRunner:
    """Runs an execution plan: each of ``threads`` threads does its share of every step."""

    def __init__(self, plan: ExecutionPlan, threads: int) -> None:
        self._work: Optional[_Work] = _Work(plan, threads)
        self._pool = ThreadPool(threads) if threads > 1 else None

    def __call__(self, x: NDArray[Any]) -> Arrays:
        work = self._work
        assert work is not None
        if self._pool is None:
            work.take(x)
            work(0)
        else:
            self._pool.run(work, before=lambda: work.take(x))
        outputs = work.plan.outputs.values()
        # copy, since ascontiguousarray would give out the plan's own memory where a map is one pixel.
        return tuple((array if array.ndim == 2 else array.transpose(0, 3, 1, 2)).copy() for array in outputs)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._work = None


class _Work:
    """A plan as the machine code reads it. Whoever runs it holds it, and so its memory and the images."""

    def __init__(self, plan: ExecutionPlan, threads: int) -> None:
        from .jit.engine import jit_compile, yield_thread_address

        self.plan = plan
        self._code = jit_compile(plan.config)
        self._images: Optional[NDArray[Any]] = None
        calls = plan.calls
        self._steps = np.array([(self._code.addresses[call.kernel], call.arguments.ctypes.data) for call in calls])
        self._barrier = np.zeros(16, np.int64)
        self._threads = threads
        self._yield_thread = yield_thread_address()

    def take(self, x: NDArray[Any]) -> None:
        """Sets the images, which must not be changed before the work is done."""
        assert x.shape == self.plan.input_shape
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        self._images = x
        self.plan.calls[0].arguments[0] = x.ctypes.data

    def __call__(self, thread: int) -> None:
        steps = self._steps
        self._code.run(
            steps.ctypes.data, len(steps), thread, self._threads, self._barrier.ctypes.data, self._yield_thread
        )


class LiteRunner:
    """Runs a dumped graph: one Lite network with all threads, or one for each with its share of the batch.

    ``shape`` is the whole batch's. ``algorithms`` is the table to choose from, afterwards what was chosen. Whoever
    makes one holds ``BUILDING``. Raises what Lite raises: RuntimeError.
    """

    def __init__(
        self,
        graph: Union[Path, bytes],
        outputs: Tuple[str, ...],
        shape: Tuple[int, ...],
        threads: int,
        split: bool,
        preprocess: bool,
        algorithms: Optional[bytes] = None,
    ) -> None:
        parts = threads if split else 1
        self._share = shape[0] // parts
        self._networks: List[LiteNetwork] = []
        self.algorithms = algorithms
        for _ in range(parts):
            network = LiteNetwork(
                graph, outputs, (self._share, *shape[1:]), threads // parts, preprocess, self.algorithms
            )
            # Measured once, so that all of them compute alike.
            self.algorithms = network.algorithms
            self._networks.append(network)
        self._helpers = ThreadPoolExecutor(parts - 1) if parts > 1 else None

    def __call__(self, x: NDArray[Any]) -> Arrays:
        jobs = [(network, x[i * self._share : (i + 1) * self._share]) for i, network in enumerate(self._networks)]
        first, *others = jobs
        promises = [self._helpers.submit(_run, *job) for job in others] if self._helpers is not None else []
        _run(*first)
        for promise in promises:
            promise.result()
        # It makes new arrays, which are the caller's own.
        return tuple(np.concatenate(shares) for shares in zip(*(network.outputs for network in self._networks)))

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()
        while self._networks:
            self._networks.pop().close()


def _run(network: LiteNetwork, images: NDArray[Any]) -> None:
    network.input[...] = images
    network.run()


class EagerRunner:
    """The network as MegEngine runs it by itself, three to four times as slow."""

    def __init__(self, network: M.Module) -> None:
        self._network: Callable[[Tensor], Any] = network
        self._device = next((str(tensor.device) for tensor in network.parameters()), None)

    def __call__(self, x: NDArray[Any]) -> Arrays:
        try:
            return tuple(tensor.numpy().copy() for tensor in self._outputs(x)[1])
        except RuntimeError as error:
            raise cannot_run(error) from error

    def structure(self, x: NDArray[Any]) -> Structure:
        """What the network returns, found by running it."""
        return self._outputs(x)[0]

    def close(self) -> None:
        del self._network

    def _outputs(self, x: NDArray[Any]) -> Tuple[Structure, List[Tensor]]:
        return flat_outputs(self._network(Tensor(x, device=self._device)))


def cannot_run(error: RuntimeError) -> ArgumentError:
    """The error for a network that MegEngine cannot run."""
    elsewhere = threading.current_thread() is not threading.main_thread()
    return ArgumentError(
        f"MegEngine cannot run this network: {str(error).splitlines()[0]}",
        hint="MegEngine works only in the thread that imported it: compile there" if elsewhere else None,
    )
