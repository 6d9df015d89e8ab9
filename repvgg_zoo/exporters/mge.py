"""export_mge: dump a network for MegEngine Lite, and compare what the file computes with the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, List, Optional

import numpy as np

from .._atomic import atomic_write
from ..errors import ArgumentError, DependencyError, EquivalenceError
from ..inference.quantized_file import is_quantized_file
from ..inference.quantized_network import QuantizedNetwork
from ..inference.target import find_target
from ..reparam.fusion import relative_error
from .metadata import target_entries
from .mge_file import INPUT, RUNTIMES, Outputs, output_names, read_mge_metadata, run_mge, write_mge
from .report import Check, ExportOptions, ExportReport, TensorInfo

BOUND, BOUND_FLOAT16 = 1e-5, 1e-2  # of an output's scale


def export_mge(model: Any, file: Path, options: ExportOptions) -> ExportReport:
    """Write a ``.mge`` file as ``export`` describes it."""
    options.refuse(".mge", "input", "deploy", "features_only", "target")
    is_path = isinstance(model, (str, os.PathLike))
    if isinstance(model, QuantizedNetwork) or (is_path and is_quantized_file(model)):
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
    arrays = run_network(network, images)[1]
    if options.softmax:
        powers = np.exp(arrays[0] - arrays[0].max(axis=1, keepdims=True))
        arrays = (powers / powers.sum(axis=1, keepdims=True),)
    expected = dict(zip(names, arrays))
    entries = target_entries(target)
    checks: List[Check] = []

    def write(stream: BinaryIO) -> None:
        write_mge(stream, network, images.shape, options, entries)
        stream.flush()
        if read_mge_metadata(stream.name) != entries:
            raise EquivalenceError(
                f"{file} differs from what was written to it", path=file, hint="the disk may be damaged"
            )
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
    worst = max(relative_error(expected[name], outputs[name])[2] for name in expected)
    if not worst <= bound:
        raise EquivalenceError(
            f"{runtime}'s outputs differ by {worst:.1e} of their scale; nothing was written",
            expected=f"at most {bound:g}",
            actual=worst,
            hint="these weights are extreme",
        )
    return Check(runtime, worst, "outputs agree")
