"""compile: a network for fast inference on the CPU, with NumPy arrays as inputs and outputs."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_flag, check_image_size, check_int, is_module
from .._cpu import lower_sync_thread_priority, usable_cores
from .._log import get_logger
from .._settings import read_settings
from ..checkpoints import Checkpoint, CheckpointMetadata, load_checkpoint
from ..checkpoints.load import checkpoint_from_arrays
from ..checkpoints.metadata import default_image_size, metadata_of_spec
from ..checkpoints.network_metadata import architecture_of, metadata_of_network
from ..checkpoints.publisher import complete_metadata, variant_of
from ..checkpoints.state_dict import class_count, input_channels
from ..errors import ArgumentError, PathLike
from ..hub import fetch_verified
from ..registry.model_or_file import find_model_or_file
from ..registry.names import find_checkpoint
from ..registry.specs import Architecture, CheckpointSpec, ModelSpec
from ..reparam.fusion import to_form
from ..weights import load_weights
from .compiled_model import CompiledModel, Runner
from .ir import NetworkWeights, check_state_dict, weights_from_state_dict

if TYPE_CHECKING:
    from megengine.module import Module

ImageSize = Union[int, Tuple[int, int]]
Shape = Tuple[int, int, int, int]

COMPILE_LOCK = threading.Lock()  # one at a time: each takes several times the memory of the weights

logger = get_logger(__name__)


def compile(
    model: Union[PathLike, Checkpoint, Mapping[str, NDArray[Any]], Module],
    *,
    batch_size: int = 1,
    image_size: Optional[ImageSize] = None,
    threads: Optional[int] = None,
    low_memory: bool = False,
) -> CompiledModel:
    """Compile a network for inference on the CPU, which is faster than MegEngine's eager mode.

    A name stands for the variant's default checkpoint, or the one of its tag; a path for a checkpoint of any known
    layout, whose variant it says or is identified by its arrays, as that of a ``Checkpoint`` or of arrays. A network is
    not changed. Blocks in the train form are re-parameterized in a copy. ``image_size`` is one number or (height,
    width), by default that of the checkpoint, or else of the variant. ``threads`` is by default the number of cores
    that this process may use. ``low_memory`` stores the weights once and in their own size, which is slower.

    RepVGG and RepVGGplus are computed by kernels that are compiled for this processor; only a network that is given as
    a MegEngine module needs MegEngine for that. Other networks, and all where llvmlite is missing or the processor is
    not supported, run in MegEngine's eager mode, and a warning says so. Each call compares outputs of every layer with
    NumPy's.

    MegEngine works only in the thread that imported it, so compile a module there; the result may be called from any
    thread.

    Raises ArgumentError, EquivalenceError if a layer's output is more than 1e-4 of its scale away from what NumPy
    computes, LayoutError if the arrays fit no variant, DependencyError if MegEngine is needed and missing, and what
    ``fetch`` and ``load_checkpoint`` raise.
    """
    # Arguments are checked before anything is downloaded.
    batch_size = check_int("batch_size", batch_size, minimum=1)
    size = None if image_size is None else check_image_size("image_size", image_size)
    threads, low_memory = _limit_threads(threads), check_flag("low_memory", low_memory)
    with COMPILE_LOCK:
        target = _target(model)
        shape = (batch_size, target.in_chans, *(size or (_default_image_size(target),) * 2))
        runner, backend, error = _compile_target(target, shape, threads, low_memory)
    lower_sync_thread_priority()
    return CompiledModel(
        runner,
        shape,
        threads,
        backend=backend,
        error=error,
        spec=target.spec,
        checkpoint=target.checkpoint,
        metadata=target.metadata,
    )


@dataclass(frozen=True)
class _Target:
    """A network to be compiled; what takes time is computed when it is needed.

    ``load_weights`` returns None for a network that the kernels cannot compute. ``network`` is the MegEngine Module in
    the deploy form.
    """

    load_weights: Callable[[], Optional[NetworkWeights]]
    network: Callable[[], Module]
    in_chans: int
    spec: Optional[ModelSpec]
    checkpoint: Optional[CheckpointSpec]
    metadata: CheckpointMetadata


def _compile_target(target: _Target, shape: Shape, threads: int, low_memory: bool) -> Tuple[Runner, str, float]:
    """Return a runner that has passed the comparison, its backend, and its error."""
    reason = _kernels_unavailable_reason()
    weights = None if reason else target.load_weights()
    if weights is None:
        # Python shows a warning once for each text and place in the code.
        network = target.network()
        text = reason or _why_not_compiled(network)
        text = f"{text}; this network runs in MegEngine's eager mode, which is slower"
        warnings.warn(text, RuntimeWarning, stacklevel=1)
        from .eager import EagerRunner

        return EagerRunner(network, np.zeros((1, *shape[1:]), np.float32)), "eager", 0.0

    # Here, because they load LLVM.
    from .jit.engine import host_microkernel_config
    from .kernel_runner import KernelRunner
    from .lowering import lower
    from .reference import check_plan

    plan = lower(weights, shape, threads=threads, config=host_microkernel_config(), low_memory=low_memory)
    runner = KernelRunner(plan, threads)
    try:
        error = check_plan(plan, weights, runner.run_calls)
    except BaseException:
        runner.close()
        raise
    return runner, "kernels-low-memory" if low_memory else "kernels", error


def _kernels_unavailable_reason() -> Optional[str]:
    try:
        import llvmlite  # noqa: F401

        from .jit.engine import is_supported
    except (ImportError, OSError):
        return "the kernels need llvmlite, which cannot be imported"
    return None if is_supported() else "the kernels need a processor with AVX2 and FMA, or with NEON"


def _target(model: Any) -> _Target:
    if is_module(model):
        return _from_module(model)
    if isinstance(model, (str, os.PathLike)):
        model_or_file = find_model_or_file(model)
        if isinstance(model_or_file, Path):
            return _from_checkpoint(load_checkpoint(model_or_file))
        return _from_spec(*model_or_file)
    if isinstance(model, Mapping):
        return _from_checkpoint(checkpoint_from_arrays(model))
    if isinstance(model, Checkpoint):
        return _from_checkpoint(model)
    raise ArgumentError(
        f"compile takes a name, a path, a Checkpoint, arrays or a MegEngine module, not {type(model).__name__}",
        expected="a name such as 'RepVGG_A0', or a network",
        actual=type(model).__name__,
    )


def _from_spec(spec: ModelSpec, tag: Optional[str]) -> _Target:
    """Return the target for a published checkpoint."""
    checkpoint = find_checkpoint(spec, tag)

    @functools.lru_cache(maxsize=None)
    def network() -> Module:
        from .. import create

        return create(spec.name, pretrained=checkpoint.tag, deploy=True)

    if "/" in spec.architecture.builder:
        return _from_module(network())  # a plugin builds it
    file = fetch_verified(checkpoint.file)

    def weights() -> NetworkWeights:
        state_dict = load_weights(file, checkpoint, deploy=True, cache_dir=read_settings().cache_dir).state_dict
        return _checked_weights(state_dict, spec.architecture, checkpoint.num_classes, file.path)

    return _Target(weights, network, spec.architecture.in_chans, spec, checkpoint, metadata_of_spec(checkpoint))


def _from_checkpoint(checkpoint: Checkpoint) -> _Target:
    """Return the target for arrays, which decide on the classes and the input channels, and on an unknown variant."""
    spec = variant_of(checkpoint)
    in_chans = input_channels(checkpoint.state_dict) or spec.architecture.in_chans
    architecture = architecture_of(checkpoint, spec)._replace(in_chans=in_chans)

    @functools.lru_cache(maxsize=None)
    def network() -> Module:
        from .. import create

        return create(spec.name, checkpoint=checkpoint, in_chans=in_chans, deploy=True)

    def weights() -> NetworkWeights:
        state_dict = to_form(checkpoint, "deploy").state_dict
        return _checked_weights(state_dict, architecture, class_count(state_dict), checkpoint.path)

    return _Target(weights, network, in_chans, spec, None, complete_metadata(checkpoint, spec))


def _checked_weights(
    state_dict: Mapping[str, NDArray[Any]], architecture: Architecture, num_classes: Optional[int], path: PathLike
) -> NetworkWeights:
    state_dict = {key: _as_float32(array) for key, array in state_dict.items()}
    check_state_dict(state_dict, architecture, num_classes, path)
    return weights_from_state_dict(state_dict)


def _as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Cast floating-point numbers as ``create`` does; ``check_state_dict`` refuses all others."""
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _from_module(network: Module) -> _Target:
    from .eager import deploy_form, extract_weights, has_known_code, input_channels

    deployed = functools.lru_cache(maxsize=None)(lambda: deploy_form(network))
    return _Target(
        lambda: extract_weights(deployed()) if has_known_code(deployed()) else None,
        deployed,
        input_channels(network),
        spec=getattr(network, "spec", None),
        checkpoint=getattr(network, "checkpoint", None),
        metadata=metadata_of_network(network),
    )


def _why_not_compiled(network: Module) -> str:
    from .eager import unsupported_part

    part = unsupported_part(network)
    text = "only RepVGG and RepVGGplus as repvgg_zoo builds them can be compiled"
    return text if part is None else f"{text}, and {part}"


def _default_image_size(target: _Target) -> int:
    size = default_image_size(target.metadata, target.spec)
    if size is None:
        raise ArgumentError(
            "image_size is needed for a network that repvgg_zoo.create did not return",
            expected="a number, or (height, width)",
        )
    return size


def _limit_threads(threads: Optional[int]) -> int:
    cores = usable_cores()
    if threads is None:
        return cores
    # The threads spin while they wait, so more threads than cores are not a little slower but many times.
    threads = check_int("threads", threads, minimum=1)
    if threads > cores:
        logger.warning("%d threads requested, %d cores usable; using %d", threads, cores, cores)
    return min(threads, cores)
