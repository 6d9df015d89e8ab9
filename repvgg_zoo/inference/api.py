"""compile: a network for fast inference on the CPU, with NumPy arrays as inputs and outputs."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_image_size, check_int
from .._cpu import lower_sync_thread_priority, usable_cores
from .._log import get_logger
from .._settings import read_settings
from ..checkpoints.load import CANONICALIZE_VERSION
from ..errors import ArgumentError
from ..hub import fetch_verified
from ..registry.api import find_model
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, ModelSpec
from ..reparam.fusion import FUSE_VERSION
from ..weights import load_weights
from .compiled_model import CompiledModel, Runner
from .ir import NetworkWeights, check_state_dict, weights_from_state_dict
from .reference import (
    MAX_ERROR,
    Shape,
    max_relative_error,
    not_equivalent,
    probe_images,
    read_samples,
    reference_key,
    write_samples,
)

if TYPE_CHECKING:
    from megengine.module import Module

ImageSize = Union[int, Tuple[int, int]]

COMPILE_LOCK = threading.Lock()  # one at a time: each takes several times the memory of the weights

logger = get_logger(__name__)


def compile(
    model_or_name: Union[str, Module],
    *,
    batch_size: int = 1,
    image_size: Optional[ImageSize] = None,
    threads: Optional[int] = None,
    low_memory: bool = False,
) -> CompiledModel:
    """Compile a network for inference on the CPU, which is faster than MegEngine's eager mode.

    A name stands for the variant's default checkpoint, or the one of its tag. A network is not changed; blocks in the
    train form are re-parameterized in a copy. ``image_size`` is one number or (height, width), by default that of the
    checkpoint, or else of the variant. ``threads`` is by default the number of cores that this process may use.
    ``low_memory`` stores the weights once and in their own size, which is slower.

    RepVGG and RepVGGplus are computed by kernels that are compiled for this processor. Other networks, and all where
    llvmlite is missing or the processor is not supported, run in MegEngine's eager mode, and a warning says so. The
    first call compares the outputs with the eager network's, and keeps some of these in the cache; later calls, also in
    other processes, compare with those, and need no MegEngine if a name is given.

    MegEngine works only in the thread that imported it, so compile there; the result may be called from any thread.

    Raises ArgumentError, EquivalenceError if the compiled network's output is more than 1e-4 of its scale away from
    the eager network's, DependencyError if MegEngine is needed and missing, and what ``create`` raises.
    """
    # Arguments are checked before anything is downloaded.
    batch_size = check_int("batch_size", batch_size, minimum=1)
    size = None if image_size is None else check_image_size("image_size", image_size)
    threads = _limit_threads(threads)
    with COMPILE_LOCK:
        target = _from_name(model_or_name) if isinstance(model_or_name, str) else _from_module(model_or_name)
        shape = (batch_size, target.in_chans, *(size or (_default_image_size(target),) * 2))
        runner, backend, error = _compile_target(target, shape, threads, low_memory)
    lower_sync_thread_priority()
    return CompiledModel(
        runner, shape, threads, backend=backend, error=error, spec=target.spec, checkpoint=target.checkpoint
    )


@dataclass(frozen=True)
class _Target:
    """A network to be compiled; what takes time is computed when it is needed.

    ``load_weights`` returns None for a network that the kernels cannot compute. ``network`` is the MegEngine Module in
    the deploy form. ``digest`` and ``parameters`` identify the network in the cache; without a digest it is not cached.
    """

    load_weights: Callable[[], Optional[NetworkWeights]]
    network: Callable[[], Module]
    digest: Callable[[], Optional[str]]
    in_chans: int
    spec: Optional[ModelSpec]
    checkpoint: Optional[CheckpointSpec]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _compile_target(target: _Target, shape: Shape, threads: int, low_memory: bool) -> Tuple[Runner, str, float]:
    """Return a runner that has passed the comparison, its backend, and its error."""
    reason = _kernels_unavailable_reason()
    runner = None if reason else _lower(target, shape, threads, low_memory)
    if runner is None:
        # Python shows a warning once for each text and place in the code.
        text = reason or "only RepVGG and RepVGGplus as repvgg_zoo builds them can be compiled"
        text = f"{text}; this network runs in MegEngine's eager mode, which is slower"
        warnings.warn(text, RuntimeWarning, stacklevel=1)
        network = target.network()
        from .eager import EagerRunner

        return EagerRunner(network, probe_images(shape)[:1]), "eager", 0.0

    try:
        error = _compare(runner, target, shape)
    except BaseException:
        runner.close()
        raise
    return runner, "kernels-low-memory" if low_memory else "kernels", error


def _lower(target: _Target, shape: Shape, threads: int, low_memory: bool) -> Optional[Runner]:
    """Return a runner for the kernels, which has its own copy of the weights, or None for any other network."""
    # Here, because they load LLVM.
    from .jit.engine import host_microkernel_config
    from .kernel_runner import KernelRunner
    from .lowering import lower

    weights = target.load_weights()
    if weights is None:
        return None
    plan = lower(weights, shape, threads=threads, config=host_microkernel_config(), low_memory=low_memory)
    return KernelRunner(plan, threads)


def _compare(runner: Runner, target: _Target, shape: Shape) -> float:
    """Return the runner's error; raise EquivalenceError if it is too large.

    Only if there are no samples of the eager network's outputs, or the runner does not return them, MegEngine runs it.
    """
    digest, cache_dir = target.digest(), read_settings().cache_dir
    key = None if digest is None else reference_key(digest, shape, target.parameters)
    samples = None if key is None else read_samples(cache_dir, key)
    if samples is not None:
        error = max_relative_error(runner, samples, shape, sampled=True)
        if error <= MAX_ERROR:
            return error
        logger.warning("a compiled network no longer returns what it did (%.1e); comparing with MegEngine", error)
    network = target.network()
    from .eager import run_network

    outputs, reference = run_network(network, probe_images(shape))
    error = max_relative_error(runner, reference, shape) if outputs == runner.outputs else float("inf")
    if not error <= MAX_ERROR:
        raise not_equivalent(error)
    if key is not None:
        write_samples(cache_dir, key, reference)
    return error


def _kernels_unavailable_reason() -> Optional[str]:
    try:
        import llvmlite  # noqa: F401

        from .jit.engine import is_supported
    except (ImportError, OSError):
        return "the kernels need llvmlite, which cannot be imported"
    return None if is_supported() else "the kernels need a processor with AVX2 and FMA, or with NEON"


def _from_name(name: str) -> _Target:
    """Return the target for a published checkpoint, of which no MegEngine network is built if it is in the cache."""
    spec, tag = find_model(name)
    checkpoint = find_checkpoint(spec, tag)

    @functools.lru_cache(maxsize=None)
    def network() -> Module:
        from .. import create

        return create(name, pretrained=True, deploy=True)

    if "/" in spec.architecture.builder:
        return _from_module(network())  # a plugin builds it
    file = fetch_verified(checkpoint.file)

    def weights() -> NetworkWeights:
        state_dict = load_weights(file, checkpoint, deploy=True, cache_dir=read_settings().cache_dir).state_dict
        state_dict = {key: _as_float32(array) for key, array in state_dict.items()}
        check_state_dict(state_dict, spec.architecture, checkpoint.num_classes, file.path)
        return weights_from_state_dict(state_dict)

    return _Target(
        weights,
        network,
        digest=lambda: file.sha256,
        in_chans=spec.architecture.in_chans,
        spec=spec,
        checkpoint=checkpoint,
        parameters={
            "layout": checkpoint.layout,
            "architecture": repr(spec.architecture),
            "canonicalize": CANONICALIZE_VERSION,
            "fuse": FUSE_VERSION,
        },
    )


def _as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Cast floating-point numbers as ``create`` does; ``check_state_dict`` refuses all others."""
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _from_module(network: Any) -> _Target:
    # Where there is a Module, MegEngine has been imported already.
    modules = sys.modules.get("megengine.module")
    if modules is None or not isinstance(network, modules.Module):
        raise ArgumentError(
            f"compile takes a name or a MegEngine module, not {type(network).__name__}",
            expected="a name such as 'RepVGG_A0', or a network",
            actual=type(network).__name__,
        )
    from .eager import deploy_form, extract_weights, input_channels, network_digest

    deployed = functools.lru_cache(maxsize=None)(lambda: deploy_form(network))
    digest = functools.lru_cache(maxsize=None)(lambda: network_digest(network))

    def weights() -> Optional[NetworkWeights]:
        extracted = extract_weights(deployed())
        return None if digest() is None else extracted

    return _Target(
        weights,
        deployed,
        digest,
        in_chans=input_channels(network),
        spec=getattr(network, "spec", None),
        checkpoint=getattr(network, "checkpoint", None),
    )


def _default_image_size(target: _Target) -> int:
    if target.checkpoint is not None:
        return target.checkpoint.preprocessing.image_size
    if target.spec is not None:
        return target.spec.architecture.image_size
    raise ArgumentError(
        "image_size is needed for a network that repvgg_zoo.create did not return",
        expected="a number, or (height, width)",
    )


def _limit_threads(threads: Optional[int]) -> int:
    cores = usable_cores()
    if threads is None:
        return cores
    # The threads spin while they wait, so more threads than cores are not a little slower but many times.
    threads = check_int("threads", threads, minimum=1)
    if threads > cores:
        logger.warning("%d threads requested, %d cores usable; using %d", threads, cores, cores)
    return min(threads, cores)
