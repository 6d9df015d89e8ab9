"""export_mge: dump a network for MegEngine Lite, and compare what the file computes with the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, List, Optional

import numpy as np

from .._atomic import atomic_write
from ..errors import ArgumentError, DependencyError
from ..inference.quantized_network import as_quantized
from ..inference.target import find_target
from .checks import Outputs, check_read_again, compare_outputs, with_softmax
from .metadata import target_entries
from .mge_file import INPUT, RUNTIMES, output_names, read_mge_metadata, run_mge, write_mge
from .report import Check, ExportOptions, ExportReport, TensorInfo

BOUND, BOUND_FLOAT16 = 1e-5, 1e-2  # of an output's scale


def export_mge(model: Any, file: Path, options: ExportOptions) -> ExportReport:
    """Write a ``.mge`` file as ``export`` describes it."""
    options.refuse(".mge", "input", "deploy", "features_only", "target")
    if as_quantized(model) is not None:
        raise ArgumentError(
            "a QuantizedNetwork cannot be written for MegEngine",
            hint="export it to .onnx, or the float network to .mge",
        )
    target = find_target(model)
    try:
        from ..inference.eager import run_network
    except ImportError as error:
        raise DependencyError(
            "a .mge file is written by MegEngine, which is not installed",
            hint="install it on CPython 3.8 to 3.10, or export to .onnx",
        ) from error
    network = target.network()
    if options.softmax and not getattr(network, "num_classes", True):
        raise ArgumentError("softmax is for networks with a head", actual=True, hint="leave softmax out")
    size = options.usual_size(target.metadata, target.spec)
    images = np.random.RandomState(0).standard_normal((options.batch or 2, target.in_chans, *size)).astype(np.float32)
    names = output_names(network, softmax=options.softmax)
    expected = with_softmax(dict(zip(names, run_network(network, images)[1])))
    entries = target_entries(target)
    checks: List[Check] = []

    def write(stream: BinaryIO) -> None:
        write_mge(stream, network, images.shape, options, entries)
        stream.flush()
        check_read_again(file, read_mge_metadata(stream.name), entries)
        checks.append(Check("read again", None, "metadata are equal"))
        outputs = run_mge(Path(stream.name), images)
        checks.extend(_compare(runtime, outputs.get(runtime), expected, options) for runtime in RUNTIMES)

    atomic_write(file, write)
    batch = options.batch or "batch"
    inputs = (TensorInfo(INPUT, "float32", (batch, target.in_chans, "height", "width")),)
    outputs = tuple(TensorInfo(name, "float32", (batch, *array.shape[1:])) for name, array in expected.items())
    return ExportReport(file, file.stat().st_size, inputs, outputs, tuple(checks))


def _compare(runtime: str, outputs: Optional[Outputs], expected: Outputs, options: ExportOptions) -> Check:
    if outputs is None:
        return Check(runtime, None, "not compared, as it does not run this file on this processor")
    bound = BOUND_FLOAT16 if options.float16 else BOUND
    return compare_outputs(runtime, outputs, expected, bound, "these weights are extreme")
