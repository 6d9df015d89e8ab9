"""export_onnx: write a network as ONNX, and compare what runtimes compute from the file with our own kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Callable, List, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from .._atomic import atomic_write
from .._cpu import usable_cores
from ..errors import ArgumentError
from ..inference.api import compile
from ..inference.ir import NetworkWeights
from ..inference.quantized import MAX_ACTIVATION, MAX_WEIGHT
from ..registry.specs import Preprocessing
from .checks import Outputs, check_read_again, compare_outputs, with_softmax
from .graph import INPUT, Graph, build_graph, channel_order
from .metadata import metadata_entries
from .onnx_file import read_onnx, summarize, write_onnx
from .report import DYNAMIC, TENSORRT, Check, ExportOptions, ExportReport
from .source import ExportSource, export_source

# Of an output's scale. Float32's rounding is about 1e-6 over a network this deep; in a quantized one it moves some
# activations to the next of their steps, and the outputs by no more than one.
BOUND, BOUND_INT8, BOUND_SIGNED = 1e-5, 1 / MAX_ACTIVATION, 1 / MAX_WEIGHT

Shape = Tuple[int, int, int, int]


def export_onnx(model: Any, file: Path, options: ExportOptions) -> ExportReport:
    """Write an ONNX file as ``export`` describes it."""
    options.refuse(".onnx", "for_x86", "float16")
    source = export_source(model, deploy=options.deploy, features_only=options.features_only)
    if options.softmax and source.weights.head is None:
        raise ArgumentError("softmax is for networks with a head", actual=True, hint="leave softmax out")
    quantized = source.quantized
    size = options.usual_size(source.metadata, source.spec, None if quantized is None else quantized.image_size)
    preprocessing = _baked_preprocessing(source) if options.input == "uint8" else None
    signed = options.target == TENSORRT
    graph = build_graph(
        source,
        batch=options.batch,
        image_size=None if options.image_size == DYNAMIC else size,
        uint8_input=preprocessing,
        softmax=options.softmax,
        signed=signed,
    )
    entries = metadata_entries(source, input=options.input)
    shape = (options.batch or 2, source.in_chans, *size)
    checks: Tuple[Check, ...] = ()

    def write(stream: BinaryIO) -> None:
        nonlocal checks
        doc = f"{graph.name}, {source.form} form"
        write_onnx(stream, graph, producer_version=__version__, metadata=entries, doc=doc)
        stream.flush()
        check_read_again(file, read_onnx(stream.name), summarize(graph, entries))
        checks = (Check("read again", None, "structure and weights are equal"),)
        checks += _compare_with_runtimes(Path(stream.name), source, graph, shape, preprocessing, signed)

    atomic_write(file, write)
    return ExportReport(file, file.stat().st_size, tuple(graph.inputs), tuple(graph.outputs), checks)


def _baked_preprocessing(source: ExportSource) -> Preprocessing:
    preprocessing = source.metadata.preprocessing
    if preprocessing is None:
        raise ArgumentError(
            'input="uint8" needs to know the preprocessing of the network',
            hint="save it with save_checkpoint(path, network, preprocessing=...), and export that file",
        )
    if len(preprocessing.mean) != source.in_chans:
        raise ArgumentError(
            f"the preprocessing is for {len(preprocessing.mean)} channels, and the network has {source.in_chans}",
            expected=source.in_chans,
            actual=len(preprocessing.mean),
            hint='leave input="uint8" out',
        )
    return preprocessing


def _compare_with_runtimes(
    path: Path, source: ExportSource, graph: Graph, shape: Shape, preprocessing: Optional[Preprocessing], signed: bool
) -> Tuple[Check, ...]:
    """Run the file in each runtime that is installed; raise EquivalenceError above the bound."""
    checks: List[Check] = []
    expected: Optional[Outputs] = None
    bound = BOUND if source.quantized is None else BOUND_SIGNED if signed else BOUND_INT8
    images = _random_images(shape, preprocessing)
    for name, load in RUNTIMES.items():
        try:
            run = load()
            if expected is None:
                expected = _own_outputs(source, graph, _network_input(images, preprocessing), shape, signed)
        except ImportError as error:
            checks.append(Check(name, None, f"not compared, as {error.name} is not installed"))
            continue
        hint = "these weights are extreme, or this version of the runtime computes in another precision"
        checks.append(compare_outputs(name, run(path, images), expected, bound, hint))
    return tuple(checks)


def _random_images(shape: Shape, preprocessing: Optional[Preprocessing]) -> NDArray[Any]:
    random = np.random.RandomState(0)
    if preprocessing is None:
        return random.standard_normal(shape).astype(np.float32)
    count, channels, height, width = shape
    return random.randint(0, 256, (count, height, width, channels)).astype(np.uint8)


def _network_input(images: NDArray[Any], preprocessing: Optional[Preprocessing]) -> NDArray[Any]:
    """Return what ``preprocess`` makes of pixels, or the images themselves."""
    if preprocessing is None:
        return images
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    pixels = images[..., channel_order(preprocessing)].astype(np.float32)
    return np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))


def _own_outputs(source: ExportSource, graph: Graph, images: NDArray[Any], shape: Shape, signed: bool) -> Outputs:
    """Return the outputs of our kernels by name; raise ImportError where there are none."""
    from ..inference.jit.engine import host_microkernel_config, is_supported
    from ..inference.kernel_runner import KernelRunner
    from ..inference.lowering import lower
    from ..inference.simulation import simulate

    if not is_supported():
        raise ImportError("no kernels", name="a processor with AVX2 or NEON")
    threads = usable_cores()
    if isinstance(source.weights, NetworkWeights):
        # Without Winograd, whose rounding is larger.
        plan = lower(source.weights, shape, threads=threads, config=host_microkernel_config(), low_memory=True)
        runner = KernelRunner(plan, threads)
        try:
            outputs = dict(zip([output.name for output in graph.outputs], runner(images)))
        finally:
            runner.close()
    elif signed:
        # The kernels have no such steps.
        simulated = simulate(source.weights, images, threads, MAX_WEIGHT)
        outputs = {name or graph.outputs[0].name: array for name, array in simulated.items()}
    else:
        assert source.quantized is not None
        with compile(source.quantized, batch_size=shape[0], image_size=shape[2:]) as compiled:
            result = compiled(images)
        outputs = result if isinstance(result, dict) else {graph.outputs[0].name: result}
    return with_softmax(outputs)


# Runtimes: each function returns one that runs a file, or raises ImportError ---------------------------------

Run = Callable[[Path, NDArray[Any]], Outputs]


def _onnxruntime() -> Run:
    import onnxruntime

    def run(path: Path, images: NDArray[Any]) -> Outputs:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {INPUT: images})))

    return run


# Its default on some processors is bfloat16, and its sums of int8 products overflow on those without VNNI.
OPENVINO_CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}


def _openvino() -> Run:
    import openvino

    def run(path: Path, images: NDArray[Any]) -> Outputs:
        core = openvino.Core()
        model = core.compile_model(core.read_model(str(path)), "CPU", OPENVINO_CONFIG)
        results = model(images)
        return {output.any_name: results[output] for output in model.outputs}

    return run


RUNTIMES: Mapping[str, Callable[[], Run]] = {"ONNX Runtime": _onnxruntime, "OpenVINO": _openvino}
