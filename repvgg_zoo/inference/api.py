"""compile: a network for fast inference on the CPU, with NumPy arrays as inputs and outputs."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_choice, check_flag, check_image_size, check_int
from .._cpu import lower_sync_thread_priority
from .._derived_cache import DerivedKey
from .._log import get_logger
from ..checkpoints import Checkpoint
from ..errors import ArgumentError, DependencyError, PathLike
from .compiled_model import CompiledModel, Runner
from .ir import NetworkWeights
from .quantized import QuantizedWeights
from .quantized_network import QuantizedNetwork, as_quantized
from .target import (
    SUPPORTED,
    Target,
    derived_cache,
    find_target,
    image_size_of,
    kernels_unavailable_reason,
    limit_threads,
    why_not_supported,
)

if TYPE_CHECKING:
    from megengine.module import Module

    from .cost_model import CpuSpeed

ImageSize = Union[int, Tuple[int, int]]
Shape = Tuple[int, int, int, int]

PRECISIONS = ("float32", "int8")

COMPILE_LOCK = threading.Lock()  # one at a time: each takes several times the memory of the weights

logger = get_logger(__name__)


def compile(
    model: Union[PathLike, Checkpoint, Mapping[str, NDArray[Any]], Module, QuantizedNetwork],
    *,
    batch_size: int = 1,
    image_size: Optional[ImageSize] = None,
    threads: Optional[int] = None,
    low_memory: bool = False,
    precision: Optional[str] = None,
    calibration: Any = None,
) -> CompiledModel:
    """Compile a network for inference on the CPU, which is faster than MegEngine's eager mode.

    A name stands for the variant's default checkpoint, or the one of its tag; a path for a checkpoint of any known
    layout, whose variant it says or is identified by its arrays, as that of a ``Checkpoint`` or of arrays. A network is
    not changed. Blocks in the train form are re-parameterized in a copy. ``image_size`` is one number or (height,
    width), by default that of the checkpoint, or else of the variant. ``threads`` is by default the number of cores
    that this process may use. ``low_memory`` stores the weights once and in their own size, which is slower.

    RepVGG and RepVGGplus are computed by kernels that are compiled for this processor; only a network that is given as
    a MegEngine module needs MegEngine for that. Other networks, and all where llvmlite is missing or the processor is
    not supported, run in MegEngine's eager mode, and a warning says so.

    ``precision`` is "float32" or "int8", by default that of the network. For int8, pass what ``quantize`` returns, or
    the file that it saved, or images as ``calibration``, with which ``quantize`` is called; its report is then only
    logged. Integer kernels have no eager mode to fall back to.

    Outputs of every layer are compared with NumPy's; the result is kept for a published checkpoint, as is the machine
    code.

    MegEngine works only in the thread that imported it, so compile a module there; the result may be called from any
    thread.

    Raises ArgumentError, QuantizationError if int8 loses too much, EquivalenceError if a layer's output is more than
    1e-4 of its scale away from what NumPy computes, LayoutError if the arrays fit no variant, DependencyError if
    MegEngine is needed and missing, and what ``fetch`` and ``load_checkpoint`` raise.
    """
    # Arguments are checked before anything is downloaded.
    batch_size = check_int("batch_size", batch_size, minimum=1)
    size = None if image_size is None else check_image_size("image_size", image_size)
    threads, low_memory = limit_threads(threads), check_flag("low_memory", low_memory)
    precision = None if precision is None else check_choice("precision", precision, PRECISIONS)
    quantized = _quantized_network(model, precision, calibration, image_size, threads)
    network = model if quantized is None else quantized
    return compile_network(network, batch_size=batch_size, size=size, threads=threads, low_memory=low_memory)


def compile_network(
    model: Any,
    *,
    batch_size: int,
    size: Optional[Tuple[int, int]],
    threads: int,
    low_memory: bool = False,
    speed: Optional[CpuSpeed] = None,
) -> CompiledModel:
    """Compile a network as ``compile`` does, whose arguments have been checked and whose precision is settled.

    The algorithms are those for a processor of ``speed``, by default this processor's, which is measured and may lead
    another process to other algorithms. With a constant, every process computes the same bits.
    """
    with COMPILE_LOCK:
        network: Union[Target, QuantizedNetwork] = model if isinstance(model, QuantizedNetwork) else find_target(model)
        if isinstance(network, Target):
            shape = (batch_size, network.in_chans, *(size or (image_size_of(network),) * 2))
            runner, backend, error = _compile_target(network, shape, threads, low_memory, speed)
        else:
            reason = kernels_unavailable_reason()
            if reason is not None:
                raise DependencyError(f"int8 has kernels only, and {reason}", hint="pip install llvmlite")
            shape = (batch_size, network.in_chans, *(size or network.image_size))
            runner, error = _compile_kernels(network.weights, None, shape, threads, low_memory, speed)
            backend = "kernels-int8"
    lower_sync_thread_priority()
    return CompiledModel(
        runner,
        shape,
        threads,
        backend=backend,
        error=error,
        spec=network.spec,
        checkpoint=network.checkpoint,
        metadata=network.metadata,
    )


def _compile_target(
    target: Target, shape: Shape, threads: int, low_memory: bool, speed: Optional[CpuSpeed]
) -> Tuple[Runner, str, float]:
    """Return a runner that has passed the comparison, its backend, and its error."""
    reason = kernels_unavailable_reason()
    if reason is not None:
        return _run_eagerly(target, shape, reason)

    from .jit.engine import host_microkernel_config, jit_compile  # here, because it loads LLVM

    with ThreadPoolExecutor(1) as background:  # LLVM compiles while weights are read
        compiling = background.submit(jit_compile, host_microkernel_config(), derived_cache())
        weights = target.load_weights()
        if weights is None:
            return _run_eagerly(target, shape, None)
        compiling.result()
    runner, error = _compile_kernels(weights, target.weights_key, shape, threads, low_memory, speed)
    return runner, "kernels-low-memory" if low_memory else "kernels", error


def _compile_kernels(
    weights: Union[NetworkWeights, QuantizedWeights],
    weights_key: Optional[DerivedKey],
    shape: Shape,
    threads: int,
    low_memory: bool,
    speed: Optional[CpuSpeed],
) -> Tuple[Runner, float]:
    """Return a runner that has passed the comparison, and its error."""
    # Here, because they load LLVM.
    from .cpu_speed import host_cpu_speed
    from .explain import explain_plan
    from .jit.engine import host_integer_config, host_microkernel_config, host_processor, jit_compile
    from .kernel_runner import KernelRunner
    from .lowering import lower
    from .passed_check import check_key, check_once
    from .quantized_lowering import lower_quantized
    from .reference import check_plan

    cache, is_quantized = derived_cache(), isinstance(weights, QuantizedWeights)
    config = host_integer_config() if is_quantized else host_microkernel_config()
    code = jit_compile(config, cache)
    speed = speed or host_cpu_speed(config, cache)
    if isinstance(weights, QuantizedWeights):
        plan = lower_quantized(weights, shape, threads=threads, config=config, low_memory=low_memory, speed=speed)
    else:
        plan = lower(weights, shape, threads=threads, config=config, low_memory=low_memory, speed=speed)
    explanation = explain_plan(plan, weights, threads=threads, speed=speed)
    runner = KernelRunner(plan, threads, explanation)
    try:
        key = check_key(weights_key, plan, threads=threads, code=code.digest, processor=host_processor())
        error = check_once(lambda: check_plan(plan, weights, runner.run_calls), cache, key)
    except BaseException:
        runner.close()
        raise
    return runner, error


def _quantized_network(
    model: Any, precision: Optional[str], calibration: Any, image_size: Optional[ImageSize], threads: int
) -> Optional[QuantizedNetwork]:
    """Return the quantized network that is to be compiled, or None if the network stays float."""
    quantized = as_quantized(model)
    if quantized is not None:
        if precision == "float32" or calibration is not None:
            raise ArgumentError(
                "a quantized network cannot be changed",
                expected='precision "int8" and no calibration',
                hint="compile the float network, with precision='int8' and calibration=images if need be",
            )
        return quantized
    if precision != "int8":
        if calibration is not None:
            raise ArgumentError("calibration is for int8 only", hint='pass precision="int8" as well')
        return None
    if calibration is None:
        raise ArgumentError(
            "int8 needs images to set the ranges of the activations",
            expected="calibration=images, a folder, paths or arrays",
            hint="pass some 100 images such as the network will see",
        )
    from .quantize import quantize

    network = quantize(model, calibration, image_size=image_size, threads=threads)
    logger.info("quantized: %s", network.report.summary())
    return network


def _run_eagerly(target: Target, shape: Shape, reason: Optional[str]) -> Tuple[Runner, str, float]:
    """Return a runner for a network that the kernels cannot compute, and warn."""
    # Python shows a warning once for each text and place in the code.
    network = target.network()
    text = reason or f"only {SUPPORTED} can be compiled{why_not_supported(network)}"
    text = f"{text}; this network runs in MegEngine's eager mode, which is slower"
    warnings.warn(text, RuntimeWarning, stacklevel=1)
    from .eager import EagerRunner

    return EagerRunner(network, np.zeros((1, *shape[1:]), np.float32)), "eager", 0.0
