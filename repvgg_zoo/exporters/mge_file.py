"""MegEngine's own model files (``.mge``): dumping a network, and what such a file says about it.

Only this module of the package imports MegEngine, when a network is dumped or run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, Tuple

import numpy as np
from numpy.typing import NDArray

from .._files import open_regular_file
from ..errors import PathLike
from .checks import Outputs
from .graph import LOGITS, POOLED, PROBABILITIES
from .report import ExportOptions

if TYPE_CHECKING:
    from megengine.module import Module

INPUT = "data"
# MegEngine pickles the text that a user adds to a file; this begins ours, and is found without unpickling anything.
MARKER = b'{"repvgg_zoo": {'
MAX_TEXT_BYTES = 1 << 22


def write_mge(
    stream: BinaryIO, network: Module, shape: Tuple[int, ...], options: ExportOptions, metadata: Mapping[str, str]
) -> None:
    """Dump a network in eval mode, traced on an input of this shape; the same network gives the same bytes."""
    import megengine.functional as F
    from megengine import Tensor
    from megengine.jit import trace

    from ..inference.eager import private_copy
    from ..reparam.to_deploy import eval_mode

    with _default_device("xpux"):  # a dump on any other device ends in an assertion of MegEngine's
        copy = private_copy(network, "xpux")

        def forward(data: Tensor) -> Any:
            output = copy(data)
            if isinstance(output, dict):
                return tuple(output.values())
            return F.nn.softmax(output, axis=1) if options.softmax else output

        traced = trace(forward, symbolic=True, capture_as_const=True)
        with eval_mode(copy):
            traced(Tensor(np.zeros(shape, np.float32), device="xpux"))
        traced.dump(
            stream,
            arg_names=[INPUT],
            output_names=output_names(network, softmax=options.softmax),
            optimize_for_inference=True,
            enable_fuse_conv_bias_nonlinearity=True,
            enable_nchw88=options.for_x86,
            enable_io16xc32=options.float16,
            user_info=json.dumps({"repvgg_zoo": dict(metadata)}),
        )


def output_names(network: Module, *, softmax: bool) -> List[str]:
    """Return the names of the outputs: those of the feature maps, or of the one output."""
    if getattr(network, "features_only", False):
        return [info.name for info in network.feature_info]
    if softmax:
        return [PROBABILITIES]
    return [POOLED if getattr(network, "num_classes", None) == 0 else LOGITS]


def run_mge(path: Path, images: NDArray[Any]) -> Dict[str, Outputs]:
    """Return what each of MegEngine's runtimes computes from a file, by the names of the outputs.

    In another process, which the convolutions of some layouts end on processors that they do not know; a runtime that
    did is left out.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", images)
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import run_here; run_here()"
        subprocess.run([sys.executable, "-c", code, str(path), name], capture_output=True, check=False)
        files = {runtime: folder / f"{runtime}.npz" for runtime in RUNTIMES}
        return {runtime: dict(np.load(file)) for runtime, file in files.items() if file.exists()}


def run_here() -> None:
    """Run the file of the first argument on images.npy of a folder, and write the outputs there."""
    path, folder = sys.argv[1:]
    images = np.load(Path(folder, "images.npy"))
    for runtime, run in RUNTIMES.items():
        np.savez(Path(folder, f"{runtime}.npz"), **run(path, images))


def _run_in_graph(path: str, images: NDArray[Any]) -> Outputs:
    from megengine.utils.comp_graph_tools import GraphInference

    return dict(GraphInference(path).run(images))


def _run_in_lite(path: str, images: NDArray[Any]) -> Outputs:
    from megenginelite import LiteNetwork

    network = LiteNetwork()
    network.load(path)
    network.get_io_tensor(INPUT).set_data_by_copy(images)
    network.forward()
    network.wait()
    return {name: network.get_io_tensor(name).to_numpy().copy() for name in network.get_all_output_name()}


RUNTIMES: Mapping[str, Callable[[str, NDArray[Any]], Outputs]] = {
    "MegEngine": _run_in_graph,
    "MegEngine Lite": _run_in_lite,
}


def read_mge_metadata(path: PathLike) -> Dict[str, str]:
    """Return the entries that ``write_mge`` wrote, or none for a file of another program; nothing is unpickled."""
    with open_regular_file(path) as stream:
        stream.seek(max(0, stream.seek(0, 2) - MAX_TEXT_BYTES))
        data = stream.read(MAX_TEXT_BYTES)  # MegEngine puts it at the end
    start = data.rfind(MARKER)
    with suppress(ValueError, RecursionError):
        document, _ = json.JSONDecoder().raw_decode(data[max(start, 0) :].decode("ascii", "ignore"))
        entries = document["repvgg_zoo"] if start >= 0 else {}
        if all(isinstance(key, str) and isinstance(value, str) for key, value in entries.items()):
            return dict(entries)
    return {}


@contextmanager
def _default_device(name: str) -> Iterator[None]:
    from megengine import get_default_device, set_default_device

    before = get_default_device()
    set_default_device(name)
    try:
        yield
    finally:
        set_default_device(before)
