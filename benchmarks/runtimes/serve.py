"""A process that runs one network on command, so that runtimes can take turns while all others are stopped.

``python -m benchmarks.runtimes.serve RUNTIME CORES`` binds itself to these cores (a JSON list). It reads a JSON object
per line from its standard input and answers with one per line: ``{"load": {"weights", "images", "logits", "threads"}}``
builds the network for the images in that file and writes its output to ``logits``; ``{"burst": n}`` runs it n times and
returns each time in nanoseconds.

Images are float32 (N, 3, H, W). A run takes them as a NumPy array and ends with the logits as one, so that conversions
count as they do for a user.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

import numpy as np

Array = Any
Run = Callable[[Array], Array]
# A function that runs the network, and the versions of the packages it runs on.
Loaded = Tuple[Run, Dict[str, str]]

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(name: str, cores: List[int], runtimes: Mapping[str, Callable[[Path, Array, int], Loaded]]) -> None:
    os.sched_setaffinity(0, cores)  # before any runtime counts them
    # The driver stops all but one; a process that is stopped when the driver is killed would stay forever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some runtimes print to standard output
    run: Run = not_loaded
    images: Array = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "load" in request:
                images = np.load(request["load"]["images"])
                start = time.perf_counter()
                run, versions = runtimes[name](Path(request["load"]["weights"]), images, request["load"]["threads"])
                logits = np.asarray(run(images))
                answer: Dict[str, Any] = {"load_s": time.perf_counter() - start, "versions": versions}
                np.save(request["load"]["logits"], logits)
            else:
                answer = {"ns": burst(run, images, request["burst"])}
        except Exception as error:  # whatever a runtime raises is shown in the table
            answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


def burst(run: Run, images: Array, runs: int) -> List[int]:
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        run(images)
        times.append(time.perf_counter_ns() - start)
    return times


def not_loaded(images: Array) -> Array:
    raise RuntimeError("nothing is loaded")


# The runtimes: each builds the network of the weights for images of this shape ---------------------------------------


def torch_eager(weights: Path, images: Array, threads: int, channels_last: bool = False) -> Loaded:
    import torch
    from safetensors.torch import load_file

    from .networks import layers
    from .torch_network import torch_network, torch_state

    torch.set_num_threads(threads)
    network = layers(load_file(str(weights)))
    built = torch_network(network)
    built.load_state_dict(torch_state(built, network))
    order = torch.channels_last if channels_last else torch.contiguous_format
    built = built.eval().to(memory_format=order)

    def run(images: Array) -> Array:
        with torch.inference_mode():
            return built(torch.from_numpy(images).to(memory_format=order)).numpy()

    return run, {"torch": torch.__version__}


def torch_channels_last(weights: Path, images: Array, threads: int) -> Loaded:
    return torch_eager(weights, images, threads, channels_last=True)


def onnx_model(weights: Path, images: Array) -> bytes:
    from safetensors.numpy import load_file

    from .networks import layers
    from .onnx_network import onnx_network

    model: bytes = onnx_network(layers(load_file(str(weights))), images.shape).SerializeToString()
    return model


def onnx_int8_model(weights: Path, images: Array) -> bytes:
    """ONNX Runtime's static quantization: QDQ, u8 activations, s8 weights per channel; first and last layer float."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration_images(images.shape).reshape(-1, *images.shape))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    model = onnx.load_from_string(onnx_model(weights, images))
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            model,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=[convolutions[0], "logits"],
        )
        return path.read_bytes()


def calibration_images(shape: Any) -> Array:
    """At least 16 images, in whole batches: the same for all runtimes."""
    batches = -(-16 // shape[0])
    return np.random.RandomState(2).standard_normal((batches * shape[0], *shape[1:])).astype(np.float32)


def onnxruntime(
    weights: Path, images: Array, threads: int, spinning: bool = True, onnx: Callable[..., bytes] = onnx_model
) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = onnxruntime.InferenceSession(onnx(weights, images), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0], {"onnxruntime": onnxruntime.__version__}


def onnxruntime_not_spinning(weights: Path, images: Array, threads: int) -> Loaded:
    return onnxruntime(weights, images, threads, spinning=False)


def onnxruntime_int8(weights: Path, images: Array, threads: int) -> Loaded:
    return onnxruntime(weights, images, threads, onnx=onnx_int8_model)


def openvino(weights: Path, images: Array, threads: int, onnx: Callable[..., bytes] = onnx_model) -> Loaded:
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(onnx(weights, images), b""), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images})[0].copy(), {"openvino": openvino.__version__.split("-")[0]}


def openvino_int8(weights: Path, images: Array, threads: int) -> Loaded:
    return openvino(weights, images, threads, onnx=onnx_int8_model)


def megengine_eager(weights: Path, images: Array, threads: int) -> Loaded:
    import megengine

    import repvgg_zoo

    if threads > 1:
        megengine.set_default_device(f"multithread{threads}:0")
    network = repvgg_zoo.create(variant(weights), checkpoint=weights, deploy=True)
    return lambda images: network(megengine.Tensor(images)).numpy(), {"megengine": megengine.__version__}


def ours(weights: Path, images: Array, threads: int) -> Loaded:
    import megengine

    import repvgg_zoo

    network = repvgg_zoo.create(variant(weights), checkpoint=weights, deploy=True)
    compiled = repvgg_zoo.compile(network, batch_size=len(images), image_size=images.shape[2:], threads=threads)
    return compiled, {"megengine": megengine.__version__, "repvgg_zoo": repvgg_zoo.__version__}


def ours_int8(weights: Path, images: Array, threads: int) -> Loaded:
    import repvgg_zoo

    # Any accuracy will do, since random weights are less robust than trained ones.
    goals = {"min_snr": -100, "min_block_snr": -100}
    calibration = calibration_images(images.shape)
    network = repvgg_zoo.quantize(weights, calibration, threads=threads, **goals)
    assert sum(block.kept_float is not None for block in network.report.blocks) == 1
    compiled = repvgg_zoo.compile(network, batch_size=len(images), image_size=images.shape[2:], threads=threads)
    return compiled, {"repvgg_zoo": repvgg_zoo.__version__}


def variant(weights: Path) -> str:
    """The driver names the file after the variant."""
    return weights.stem


RUNTIMES: Dict[str, Callable[[Path, Array, int], Loaded]] = {
    "torch": torch_eager,
    "torch channels-last": torch_channels_last,
    "onnxruntime": onnxruntime,
    "onnxruntime, not spinning": onnxruntime_not_spinning,
    "openvino": openvino,
    "megengine eager": megengine_eager,
    "ours": ours,
    "onnxruntime int8": onnxruntime_int8,
    "openvino int8": openvino_int8,
    "ours int8": ours_int8,
}

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), RUNTIMES)
