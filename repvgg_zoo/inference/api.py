"""compile: a network as it runs fastest on this machine, with numpy arrays going in and coming out."""

from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Dict, Optional, Tuple, Type, Union

import megengine
import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from .. import __version__
from .._cpu import lower_sync_thread_priority, usable_cores
from ..errors import ArgumentError, ClosedError
from ..hub import fetch_file, read_settings
from ..hub.cache import read_stamp
from ..registry.api import find_model
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, ModelSpec
from ..reparam.to_deploy import eval_mode, find_blocks, to_deploy
from ..weights import load_weights
from .backends import candidates
from .compile_cache import Store
from .fingerprint import checkpoint_digest, network_digest, processor
from .graph import Structure, private_copy
from .ir import NetworkWeights, check_state_dict, weights_from_state_dict
from .lite import BUILDING, obstacle
from .module_weights import extract_weights
from .pipeline import Job, NotCompilable, Source, build, probe_input
from .runners import EagerRunner, Runner, cannot_run

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
    """Compiles a network for inference on the CPU: several times as fast as MegEngine's eager mode.

    A name stands for the variant's default checkpoint, or the one of its tag. A network is left as it is; blocks in
    the train form are re-parameterised in a copy. ``image_size`` is one number or (height, width), by default what the
    checkpoint, or else the variant, was made for. ``threads`` is by default the number of cores that this process may
    use. ``low_memory`` keeps the weights once and as they are, which is slower.

    RepVGG and RepVGGplus are computed by kernels of our own, made for this processor; other networks by MegEngine Lite,
    or, where that is missing (macOS) or cannot run them, by MegEngine itself, and a warning says so. The first call
    compares the result with the eager network; what it gave is kept in the zoo's cache, so that later calls, also in
    other processes, take a fraction of the time.

    MegEngine works only in the thread that imported it, so compile there; the result may be called from any thread.

    Raises ArgumentError, EquivalenceError if the compiled network's output is more than 1e-4 of its scale away from
    the eager network's, and what ``create`` raises.
    """
    # What can be checked is checked before anything is fetched.
    batch_size = _positive("batch_size", batch_size)
    size = None if image_size is None else _height_and_width(image_size)
    threads = _threads(threads)
    with BUILDING:
        subject = _named(model_or_name) if isinstance(model_or_name, str) else _given(model_or_name)
        shape = (batch_size, subject.channels, *(size or _height_and_width(_own_size(subject))))
        source = subject.source
        runner, structure, plan, error = _compiled(source, shape, threads, low_memory) or _run_eagerly(source, shape)
    lower_sync_thread_priority()
    return CompiledModel(runner, structure, shape, threads, plan, error, subject.spec, subject.checkpoint)


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


@dataclass(frozen=True)
class _Subject:
    """What is to be compiled, and what is known of it."""

    source: Source
    channels: int
    spec: Optional[ModelSpec]
    checkpoint: Optional[CheckpointSpec]


def _named(name: str) -> _Subject:
    """A published checkpoint: no MegEngine network is made of it as long as what was kept can be used."""
    from ..builder import create

    spec, tag = find_model(name)
    checkpoint = find_checkpoint(spec, tag)
    path = fetch_file(checkpoint.file)
    stamp = read_stamp(path)
    if stamp is None or "/" in spec.architecture.builder:  # the cache takes no stamps, or a plug-in builds it
        return _given(create(name, pretrained=True, deploy=True))
    digest = checkpoint_digest(stamp.sha256, checkpoint, spec.architecture)

    def weights() -> NetworkWeights:
        loaded = load_weights(path, checkpoint, deploy=True, cache_dir=read_settings().cache_dir).state_dict
        state_dict = {key: _as_float32(array) for key, array in loaded.items()}
        check_state_dict(state_dict, spec.architecture, checkpoint.num_classes, path)
        return weights_from_state_dict(state_dict)

    source = Source(lambda: create(name, pretrained=True, deploy=True), lambda: digest, weights)
    return _Subject(source, spec.architecture.in_chans, spec, checkpoint)


def _as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Cast floating-point numbers as ``create`` does; ``check_state_dict`` refuses all others."""
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _given(network: M.Module) -> _Subject:
    if not isinstance(network, M.Module):
        raise ArgumentError(
            f"compile takes a name or a MegEngine module, not {type(network).__name__}",
            expected="a name such as 'RepVGG_A0', or a network",
            actual=type(network).__name__,
        )

    @functools.lru_cache(maxsize=None)
    def deployed() -> M.Module:
        if all(block.deploy for block in find_blocks(network).values()):
            return network
        with eval_mode(network):
            return to_deploy(network)

    source = Source(deployed, lambda: network_digest(network), lambda: extract_weights(deployed()))
    known = (getattr(network, name, None) for name in ("spec", "checkpoint"))
    return _Subject(source, _channels(network), *known)


_Running = Tuple[Runner, Structure, str, float]


def _compiled(source: Source, shape: Tuple[int, int, int, int], threads: int, low_memory: bool) -> Optional[_Running]:
    """Runner, structure, plan and error, or None, with a warning, where nothing but MegEngine can run the network."""
    plans = candidates(shape[0], threads, low_memory)
    facts = {
        "megengine": megengine.__version__,
        "plans": [repr(plan) for plan in plans],
        "processor": processor(),
        "repvgg_zoo": __version__,
        **_engines(),
    }
    plans = tuple(plan for plan in plans if ("llvmlite" if plan.kernels else "megenginelite") in facts)
    try:
        built = build(source, Job(shape, threads, plans, facts), Store(read_settings().cache_dir))
    except NotCompilable:
        # It is shown once: Python shows a warning once for each place in the code that gives it.
        text = f"{obstacle()}; networks that need it run eagerly, 3 to 4 times as slowly"
        warnings.warn(text, RuntimeWarning, stacklevel=1)
        return None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        logger.warning("this network cannot be compiled (%s); it runs eagerly, 3 to 4 times as slowly", reason)
        return None
    return built.runner, built.structure, built.plan.name, built.error


def _engines() -> Dict[str, str]:
    """What can run a compiled network here, and its version."""
    found = {}
    with suppress(ImportError, OSError):
        import llvmlite

        from .jit.engine import is_supported

        if is_supported():
            found["llvmlite"] = llvmlite.__version__
    if obstacle() is None:
        import megenginelite

        found["megenginelite"] = megenginelite.__version__
    return found


def _run_eagerly(source: Source, shape: Tuple[int, int, int, int]) -> _Running:
    try:
        runner = EagerRunner(private_copy(source.network()))
        return runner, runner.structure(probe_input(shape)[:1]), "eager", 0.0
    except RuntimeError as error:
        raise cannot_run(error) from error


def _own_size(subject: _Subject) -> int:
    """The image size that the network was made for."""
    if subject.checkpoint is not None:
        return subject.checkpoint.preprocessing.image_size
    if subject.spec is not None:
        return subject.spec.architecture.image_size
    raise ArgumentError(
        "image_size is needed for a network that repvgg_zoo.create did not make",
        expected="a number, or (height, width)",
    )


def _height_and_width(image_size: ImageSize) -> Tuple[int, int]:
    pair = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(pair) != 2:
        raise ArgumentError(f"image_size is {image_size!r}", expected="a number, or (height, width)", actual=image_size)
    return _positive("image_size", pair[0]), _positive("image_size", pair[1])


def _threads(wanted: Optional[int]) -> int:
    cores = usable_cores()
    threads = cores if wanted is None else _positive("threads", wanted)
    if threads > cores:
        # The threads wait by spinning, so that more of them than cores is many times slower, not a little.
        logger.warning("%d threads asked for, %d cores usable; taking %d", threads, cores, cores)
    return min(threads, cores)


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
