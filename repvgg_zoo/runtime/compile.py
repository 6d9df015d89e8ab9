"""compile: a network as MegEngine Lite runs it fastest on this machine, with numpy arrays going in and coming out."""

from __future__ import annotations

import copy
import logging
import os
import threading
import warnings
from types import TracebackType
from typing import Any, Optional, Tuple, Type, Union

import megengine
import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, ClosedError
from ..hub.settings import read_settings
from ..registry.spec import CheckpointSpec, ModelSpec
from ..reparam.convert import evaluating, find_blocks, to_deploy
from .build import Job, build, probe_input
from .graph import Structure
from .identity import network_digest, processor, usable_cores
from .plans import candidates
from .runners import EagerRunner, Runner
from .store import Store

ImageSize = Union[int, Tuple[int, int]]

logger = logging.getLogger(__name__)


def compile(
    model_or_name: Union[str, M.Module],
    *,
    batch_size: int = 1,
    image_size: Optional[ImageSize] = None,
    threads: Optional[int] = None,
    low_memory: bool = False,
) -> CompiledModel:
    """Compiles a network for inference on the CPU: three to four times as fast as MegEngine's eager mode.

    A name stands for the variant's default checkpoint, or the one of its tag. A network is left as it is; blocks in
    the train form are re-parameterised in a copy. ``image_size`` is one number or (height, width), by default what the
    checkpoint, or else the variant, was made for. ``threads`` is by default the number of cores that this process may
    use. ``low_memory`` keeps no weights in the form that the algorithms want, which is slower.

    The first call for a network dumps it, profiles the algorithms, and compares the result with the eager network; the
    outcome is kept in the zoo's cache, so that later calls, also in other processes, take a fraction of the time.
    Where MegEngine Lite is missing (macOS) or cannot run the network, the result runs the eager network and a warning
    says so.

    Raises ArgumentError, EquivalenceError if the compiled network's output is more than 1e-4 of its scale away from
    the eager network's, and what ``create`` raises.
    """
    source = _network(model_or_name)
    spec, checkpoint = getattr(source, "spec", None), getattr(source, "checkpoint", None)
    height, width = _image_size(image_size, spec, checkpoint)
    batch_size = _positive("batch_size", batch_size)
    shape = (batch_size, _channels(source), height, width)
    cores = usable_cores()
    threads = cores if threads is None else _positive("threads", threads)
    if threads > cores:
        # Lite's threads wait by spinning, so that more of them than cores is many times slower, not a little.
        logger.warning("%d threads asked for, %d cores usable; taking %d", threads, cores, cores)
        threads = cores

    network = _deployed(source, owned=isinstance(model_or_name, str))
    private = network is not model_or_name
    runner, structure, plan, error = _runner(network, private, shape, threads, low_memory)
    return CompiledModel(runner, structure, shape, threads, plan, error, spec, checkpoint)


class CompiledModel:
    """A network with fixed image size: call it with float32 (N, C, H, W), any N, and get numpy logits or features.

    The result has the network's structure: an array (N, classes), or a dict of feature maps by stage. A batch smaller
    than ``batch_size`` is filled up and a larger one is cut into pieces, so the speed is best at its multiples. It may
    be called from several threads: calls wait for one another (a lock); for calls at the same time compile one model
    for each thread. It does not survive a fork. ``close()``, or the end of a ``with`` block, gives memory and threads
    back.

    Attributes: ``shape`` (batch_size, C, H, W), ``threads``, ``plan`` (how it is run), ``error`` (its distance from the
    eager network at the start, of the output's scale), ``spec`` and ``checkpoint`` as of ``create``'s networks.
    """

    def __init__(
        self,
        runner: Runner,
        structure: Structure,
        shape: Tuple[int, int, int, int],
        threads: int,
        plan: str,
        error: float,
        spec: Optional[ModelSpec],
        checkpoint: Optional[CheckpointSpec],
    ) -> None:
        self.shape = shape
        self.threads = threads
        self.plan = plan
        self.error = error
        self.spec = spec
        self.checkpoint = checkpoint
        self._runner: Optional[Runner] = runner
        self._structure = structure
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def batch_size(self) -> int:
        """How many images are run at once."""
        return self.shape[0]

    def __call__(self, x: NDArray[Any]) -> Any:
        """Runs a batch: float32 (N, C, H, W) to an array, or a dict or tuple of them, each with N as its first length.

        Raises ArgumentError for another dtype or shape, ClosedError after ``close()``.
        """
        self._check(x)
        size = self.batch_size
        # An empty batch is run as well, for the shapes of its outputs.
        starts = range(0, max(len(x), 1), size)
        with self._lock:
            runner = self._open_runner()
            outputs = [runner(_filled(x[start : start + size], size)) for start in starts]
        arrays = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in zip(*outputs))
        return self._structure.pack(tuple(array[: len(x)] for array in arrays))

    def close(self) -> None:
        """Gives memory and threads back; to close twice does nothing."""
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
        state = "closed" if self._runner is None else self.plan
        return f"<CompiledModel {name} {self.shape} on {self.threads} threads, {state}>"

    def _check(self, x: NDArray[Any]) -> None:
        expected = f"float32 (N, {', '.join(map(str, self.shape[1:]))})"
        if not isinstance(x, np.ndarray):
            raise ArgumentError(
                f"a compiled network takes a numpy array, not {type(x).__name__}",
                expected=expected,
                actual=type(x).__name__,
                hint="a tensor gives one with .numpy()" if hasattr(x, "numpy") else None,
            )
        if x.dtype != np.float32:
            raise ArgumentError(
                f"a compiled network takes float32, not {x.dtype}",
                expected=expected,
                actual=str(x.dtype),
                hint="repvgg_zoo.preprocess(model) makes it from an image; otherwise x.astype(numpy.float32)",
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
                hint="compile in the child: the second time is quick",
            )
        return self._runner


def _filled(x: NDArray[Any], size: int) -> NDArray[Any]:
    if len(x) < size:
        x = np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), np.float32)])
    return np.ascontiguousarray(x)


def _network(model_or_name: Union[str, M.Module]) -> M.Module:
    if isinstance(model_or_name, str):
        from ..factory import create

        return create(model_or_name, pretrained=True, deploy=True)
    if not isinstance(model_or_name, M.Module):
        raise ArgumentError(
            f"compile takes a name or a MegEngine module, not {type(model_or_name).__name__}",
            expected="a name such as 'RepVGG_A0', or a network",
            actual=type(model_or_name).__name__,
        )
    return model_or_name


def _deployed(network: M.Module, owned: bool) -> M.Module:
    """The deploy form in eval mode; the user's own network if it is that already."""
    if any(not block.deploy for block in find_blocks(network).values()):
        with evaluating(network):
            return to_deploy(network, inplace=owned)
    return network


def _runner(
    network: M.Module, private: bool, shape: Tuple[int, int, int, int], threads: int, low_memory: bool
) -> Tuple[Runner, Structure, str, float]:
    """Runner, structure, plan and error; ``private`` says that the network is not the user's."""

    def own() -> M.Module:
        copied = network if private else copy.deepcopy(network)
        copied.eval()
        return copied

    try:
        import megenginelite
    except (ImportError, OSError) as error:
        # Without a level of its own this warning comes once, by Python's rule of once for each place.
        warnings.warn(
            f"MegEngine Lite is missing ({error}): networks run eagerly, 3 to 4 times as slowly", stacklevel=1
        )
        return (*_eager(own(), shape), "eager", 0.0)
    plans = candidates(shape[0], threads, low_memory)
    facts = {
        "lite": megenginelite.__version__,
        "megengine": megengine.__version__,
        "plans": [repr(plan) for plan in plans],
        "processor": processor(),
    }
    job = Job(shape, threads, plans, facts)
    try:
        built = build(own, network_digest(network), job, Store(read_settings().cache))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("this network cannot be compiled (%s); it runs eagerly, 3 to 4 times as slowly", reason)
        return (*_eager(own(), shape), "eager", 0.0)
    return built.runner, built.structure, built.plan.name, built.error


def _eager(network: M.Module, shape: Tuple[int, int, int, int]) -> Tuple[Runner, Structure]:
    runner = EagerRunner(network)
    try:
        return runner, runner.structure(probe_input(shape)[:1])
    except RuntimeError as error:
        raise ArgumentError(
            f"the network cannot run on (1, {', '.join(map(str, shape[1:]))}) float32: {str(error).splitlines()[0]}",
            actual=shape,
        ) from error


def _image_size(
    given: Optional[ImageSize], spec: Optional[ModelSpec], checkpoint: Optional[CheckpointSpec]
) -> Tuple[int, int]:
    if given is None:
        if checkpoint is not None:
            given = checkpoint.preprocessing.image_size
        elif spec is not None:
            given = spec.architecture.image_size
        else:
            raise ArgumentError(
                "image_size is needed for a network that repvgg_zoo.create did not make",
                expected="a number, or (height, width)",
            )
    pair = given if isinstance(given, (tuple, list)) else (given, given)
    if len(pair) != 2:
        raise ArgumentError(f"image_size is {given!r}", expected="a number, or (height, width)", actual=given)
    return _positive("image_size", pair[0]), _positive("image_size", pair[1])


def _channels(network: M.Module) -> int:
    """How many channels the input has: the network's word for it, or the first convolution's."""
    channels = getattr(network, "in_chans", None)
    if channels is None:
        weight = next((p for p in network.parameters() if p.ndim in (4, 5) and p.shape[-1] > 1), None)
        if weight is None:
            raise ArgumentError(f"{type(network).__name__} holds no convolution, so its input is not known")
        groups = int(weight.shape[0]) if weight.ndim == 5 else 1
        channels = groups * int(weight.shape[-3])
    return int(channels)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(f"{name} is {value!r}", expected="a whole number from 1", actual=value)
    return int(value)
