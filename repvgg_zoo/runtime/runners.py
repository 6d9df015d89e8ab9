"""What runs a batch: Lite networks side by side and one after another, or the eager network where there is no Lite."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Optional, Protocol, Sequence, Tuple, Union

import megengine.module as M
import numpy as np
from megengine import Tensor
from numpy.typing import NDArray

from ..errors import ArgumentError
from .graph import Arrays, Structure, flat_outputs
from .lite import LiteNetwork
from .plans import Part, Step


class Runner(Protocol):
    """Runs float32 arrays of one shape; not for several threads at once."""

    def __call__(self, x: NDArray[Any]) -> Arrays:
        """The network's outputs for a batch, in order."""

    def close(self) -> None:
        """Give memory and threads back."""


class LiteRunner:
    """Runs steps: the networks of each one side by side, each in a thread of its own.

    ``steps`` are afterwards those that were given, with the algorithms that were measured filled in. ``find`` gives a
    graph's file, or its bytes. Whoever makes one holds ``BUILDING``. Raises what Lite raises: RuntimeError.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        outputs: Tuple[str, ...],
        preprocess: bool,
        find: Callable[[str], Union[Path, bytes]],
    ) -> None:
        self._workers: List[List[_Worker]] = []
        filled: List[Step] = []
        sources: List[_Source] = []
        for step in steps:
            parts: List[Part] = []
            workers: List[_Worker] = []
            for part in step.parts:
                # Networks with the same graph are measured once, so that all of them compute alike.
                measured = next((other.algorithms for other in parts if other.graph == part.graph), None)
                table = part.algorithms if part.algorithms is not None else measured
                names = outputs if step is steps[-1] else outputs[:1]
                network = LiteNetwork(find(part.graph), names, part.shape, part.threads, preprocess, table)
                parts.append(replace(part, algorithms=network.algorithms))
                workers.append(_Worker(network, step, part, sources))
            sources = _sources(step, workers)
            self._workers.append(workers)
            filled.append(replace(step, parts=tuple(parts)))
        self.steps = tuple(filled)
        most = max(len(step.parts) for step in self.steps)
        self._helpers = ThreadPoolExecutor(most - 1) if most > 1 else None

    def __call__(self, x: NDArray[Any]) -> Arrays:
        for first, *others in self._workers:
            promises = [self._helpers.submit(other, x) for other in others] if self._helpers is not None else []
            first(x)
            for promise in promises:
                promise.result()
        results = zip(*(worker.outputs for worker in self._workers[-1]))
        join = self.steps[-1].join
        # Both make new arrays, which are the caller's own.
        return tuple(np.sum(shares, axis=0) if join is None else np.concatenate(shares, join) for shares in results)

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()
        networks = [worker.network for workers in self._workers for worker in workers]
        self._workers.clear()
        for network in networks:
            network.close()


_Source = Tuple[Any, NDArray[Any]]  # a place in a network's input, and the array that goes there


class _Worker:
    """A network that fetches its input: from ``sources``, or its part of the images where there are none."""

    def __init__(self, network: LiteNetwork, step: Step, part: Part, sources: List[_Source]) -> None:
        self.network = network
        self._sources = sources
        self._reads = _along(step.cut, part.reads)
        keeps = _along(step.join or 0, part.keeps)
        self.outputs = [array[keeps] for array in network.outputs]

    def __call__(self, x: NDArray[Any]) -> None:
        for place, array in self._sources or [(..., x[self._reads])]:
            self.network.input[place] = array
        self.network.run()


def _sources(step: Step, workers: Sequence[_Worker]) -> List[_Source]:
    """Where the next step finds its input, which is the joined outputs of this one."""
    sources: List[_Source] = []
    done = 0
    for worker in workers:
        (array,) = worker.outputs[:1]
        size = array.shape[step.join or 0]
        sources.append((_along(step.join or 0, (done, done + size)), array))
        done += size
    return sources


def _along(axis: int, span: Optional[Tuple[int, int]]) -> Any:
    """The index for a span of one axis; None is all of it."""
    return ... if span is None else (slice(None),) * axis + (slice(*span),)


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
