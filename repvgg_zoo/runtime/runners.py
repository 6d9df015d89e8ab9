"""What runs a batch: Lite networks side by side, or the eager network where there is no Lite."""

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
from .plans import Plan


class Runner(Protocol):
    """Runs float32 arrays of one shape; not for several threads at once."""

    def __call__(self, x: NDArray[Any]) -> Arrays:
        """The network's outputs for a batch, in order."""

    def close(self) -> None:
        """Give memory and threads back."""


class LiteRunner:
    """The networks of a plan, each in a thread of its own with its share of the batch."""

    def __init__(
        self,
        graph: Union[Path, bytes],
        outputs: Tuple[str, ...],
        shape: Tuple[int, ...],
        threads: int,
        plan: Plan,
        algorithms: Optional[bytes] = None,
    ) -> None:
        self.share = shape[0] // plan.parts
        part = (self.share, *shape[1:])
        self.algorithms = algorithms
        self._networks: List[LiteNetwork] = []
        for _ in range(plan.parts):
            network = LiteNetwork(graph, outputs, part, threads // plan.parts, plan, self.algorithms)
            self.algorithms = network.algorithms
            self._networks.append(network)
        self._helpers = ThreadPoolExecutor(plan.parts - 1) if plan.parts > 1 else None

    def __call__(self, x: NDArray[Any]) -> Arrays:
        first, *others = self._networks
        if self._helpers is None:
            return first(x)
        parts = [x[start : start + self.share] for start in range(0, len(x), self.share)]
        promises = [self._helpers.submit(network, part) for network, part in zip(others, parts[1:])]
        results = [first(parts[0]), *(promise.result() for promise in promises)]
        return tuple(np.concatenate(pieces) for pieces in zip(*results))

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()
        for network in self._networks:
            network.close()


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
