"""CompiledModel: a network of fixed input shape that takes and returns NumPy arrays."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any, NamedTuple, Optional, Protocol, Tuple, Type

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_flag
from ..checkpoints import CheckpointMetadata
from ..errors import ArgumentError, ClosedError
from ..registry.specs import CheckpointSpec, ModelSpec
from .explanation import Explanation

Arrays = Tuple[NDArray[Any], ...]


class OutputSpec(NamedTuple):
    """What a network returns: ``kind`` is array, dict or tuple; ``keys`` has an entry for each array."""

    kind: str
    keys: Tuple[str, ...]

    def unflatten(self, arrays: Arrays) -> Any:
        """Return the arrays in the network's own structure."""
        if self.kind == "array":
            return arrays[0]
        return dict(zip(self.keys, arrays)) if self.kind == "dict" else arrays


class Runner(Protocol):
    """Computes float32 batches of one shape; not for several threads at once."""

    outputs: OutputSpec

    def __call__(self, x: NDArray[Any]) -> Arrays:
        """Return the network's outputs for a batch, in order, as arrays of the caller's own."""

    def explain(self, measure: bool) -> Explanation:
        """Return how the network is computed, with the time that each part takes if ``measure``."""

    def close(self) -> None:
        """Release memory and threads."""


class CompiledModel:
    """A network with a fixed image size: call it with float32 (N, C, H, W), any N, and get NumPy logits or features.

    The result has the network's structure: an array (N, classes), or a dict of feature maps by stage. A batch smaller
    than ``batch_size`` is padded and a larger one is split, so the speed is best at its multiples. Calls from several
    threads wait for one another (a lock); for calls at the same time, compile one model for each thread. It cannot be
    used in a forked process. ``close()``, or the end of a ``with`` block, releases memory and threads.

    Attributes: ``shape`` (batch_size, C, H, W), ``threads``, ``backend`` ("kernels", "kernels-low-memory",
    "kernels-int8" or "eager"), ``error`` (how far a layer's outputs were at most from NumPy's when it was compiled,
    relative to the layer's scale), ``spec``, ``checkpoint`` and ``metadata`` as of networks that ``create`` returns.
    """

    def __init__(
        self,
        runner: Runner,
        shape: Tuple[int, int, int, int],
        threads: int,
        *,
        backend: str,
        error: float,
        spec: Optional[ModelSpec],
        checkpoint: Optional[CheckpointSpec],
        metadata: CheckpointMetadata,
    ) -> None:
        self.shape = shape
        self.threads = threads
        self.backend = backend
        self.error = error
        self.spec = spec
        self.checkpoint = checkpoint
        self.metadata = metadata
        self._runner: Optional[Runner] = runner
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def batch_size(self) -> int:
        """How many images are computed at once."""
        return self.shape[0]

    def __call__(self, x: NDArray[Any]) -> Any:
        """Run a batch: float32 (N, C, H, W) to an array, or a dict or tuple of them, each with N as its first axis.

        Raises ArgumentError for another dtype or shape, ClosedError after ``close()``.
        """
        self._check(x)
        size = self.batch_size
        # An empty batch is run as well, for the shapes of its outputs.
        starts = range(0, max(len(x), 1), size)
        with self._lock:
            runner = self._open_runner()
            outputs = [runner(_pad(x[start : start + size], size)) for start in starts]
        arrays = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in zip(*outputs))
        return runner.outputs.unflatten(tuple(array[: len(x)] for array in arrays))

    def explain(self, measure: bool = False) -> Explanation:
        """Return the algorithm of each layer, its multiply-adds, and the milliseconds that it should take.

        With ``measure``, the network runs ten times, and each layer has its best time, its GF/s, and what share of the
        igemm's peak on this processor that is. ``print`` it for a table. Raises ClosedError after ``close()``.
        """
        measure = check_flag("measure", measure)
        with self._lock:
            return self._open_runner().explain(measure)

    def close(self) -> None:
        """Release memory and threads; closing twice does nothing."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
            self._runner = None

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.spec.name if self.spec is not None else "network"
        state = "closed" if self._runner is None else self.backend
        return f"<CompiledModel {name} {self.shape} on {self.threads} threads, {state}>"

    def _check(self, x: NDArray[Any]) -> None:
        expected = f"float32 (N, {', '.join(map(str, self.shape[1:]))})"
        if not isinstance(x, np.ndarray):
            raise ArgumentError(
                f"a compiled network takes a NumPy array, not {type(x).__name__}",
                expected=expected,
                actual=type(x).__name__,
                hint="a tensor's .numpy() returns one" if hasattr(x, "numpy") else None,
            )
        if x.dtype != np.float32:
            raise ArgumentError(
                f"a compiled network takes float32, not {x.dtype}",
                expected=expected,
                actual=str(x.dtype),
                hint="repvgg_zoo.preprocess(model) returns it for an image; otherwise x.astype(numpy.float32)",
            )
        if x.ndim != 4 or x.shape[1:] != self.shape[1:]:
            raise ArgumentError(
                f"this network was compiled for (N, {', '.join(map(str, self.shape[1:]))}), not {x.shape}",
                expected=expected,
                actual=x.shape,
                hint="one image is x[None]; for another size: compile(model, image_size=(height, width))",
            )

    def _open_runner(self) -> Runner:
        if self._runner is None:
            raise ClosedError("this compiled network is closed", hint="compile the network again")
        if self._process != os.getpid():
            raise ClosedError(
                "this compiled network belongs to the process that this one was forked from",
                hint="compile in the child process: the second time is fast",
            )
        return self._runner


def _pad(x: NDArray[Any], size: int) -> NDArray[Any]:
    """Return a contiguous batch of ``size`` images, with zeros after those of ``x``."""
    if len(x) < size:
        x = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), np.float32)])
    return np.ascontiguousarray(x)
