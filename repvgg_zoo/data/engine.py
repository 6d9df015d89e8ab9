"""compute: the outputs of a network for many images, in their order, on all cores.

The threads share nothing: each decodes images and computes them with a network of its own, compiled for one thread. So
no thread waits for another at a barrier, which costs a network on several threads a third of its speed as soon as other
threads decode images. Where weights for each thread would take too much memory, all threads use one network.
"""

from __future__ import annotations

import itertools
import os
import queue
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Deque, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_choice, check_image_size, check_int, is_module
from ..checkpoints import Checkpoint
from ..errors import ArgumentError, ZooError
from ..image.preprocess import metadata_of, open_model, preprocess_image
from ..inference.api import compile_network
from ..inference.quantized_network import QuantizedNetwork
from ..inference.target import limit_threads
from ..registry.api import find_model
from ..registry.specs import CheckpointSpec, Preprocessing
from ..reparam.fusion import to_form
from .pooled import pool_features
from .samples import Sample, as_image

if TYPE_CHECKING:
    from ..inference.cost_model import CpuSpeed

BATCH_SIZE = 16
OUTPUTS = ("logits", "features")
ON_ERROR = ("error", "skip")
BATCHES_AHEAD = 2  # for each thread, so that none waits for whoever takes the results
MEMORY_SHARE = 0.25  # of the machine's memory that networks for each thread may take
PACKED_WEIGHTS = 2.0  # memory of a compiled network's weights over their own size


class Output(NamedTuple):
    """What a network says about one image: float32 ``values``, or ``error``, why the image could not be read."""

    key: str
    label: Optional[str]
    values: Optional[NDArray[Any]]
    error: Optional[str] = None


def compute(
    model: Any,
    samples: Iterable[Sample],
    *,
    threads: Optional[int] = None,
    batch_size: int = BATCH_SIZE,
    output: str = "logits",
    on_error: str = "error",
    speed: Optional[CpuSpeed] = None,
) -> Iterator[Output]:
    """Yield the logits (classes,), or the pooled features (channels,) that the head gets, of each image in order.

    ``model`` is a name, a file, a Checkpoint, or a network of ``create``, ``compile`` or ``quantize``; its images are
    preprocessed as ``preprocess`` says. ``threads`` is by default the number of cores that this process may use. An
    image that cannot be read is an error, which is raised after the images before it were yielded; with
    ``on_error="skip"`` it is yielded with its ``error`` and no values. ``speed`` is that of ``compile_network``.

    Raises ArgumentError, and what ``compile`` raises.
    """
    batch_size, threads = check_int("batch_size", batch_size, minimum=1), limit_threads(threads)
    output, on_error = check_choice("output", output, OUTPUTS), check_choice("on_error", on_error, ON_ERROR)
    _check_pillow()
    model = open_model(model)
    preprocessing = metadata_of(model).preprocessing
    assert preprocessing is not None
    return _compute(model, preprocessing, iter(samples), threads, batch_size, output, on_error == "skip", speed)


def _compute(
    model: Any,
    preprocessing: Preprocessing,
    samples: Iterator[Sample],
    threads: int,
    batch_size: int,
    output: str,
    skip: bool,
    speed: Optional[CpuSpeed],
) -> Iterator[Output]:
    with ExitStack() as stack:
        networks = open_networks(model, preprocessing, threads, batch_size, output, stack, speed)
        yield from run_networks(networks, preprocessing, samples, batch_size, skip)


def run_networks(
    networks: Sequence[Any], preprocessing: Preprocessing, samples: Iterator[Sample], batch_size: int, skip: bool
) -> Iterator[Output]:
    """Yield the outputs as ``compute`` does, on a thread for each of the networks."""
    with ExitStack() as stack:
        # Networks that are not compiled to kernels run in this thread: MegEngine works in no other one.
        here = None if all(getattr(network, "backend", "eager") != "eager" for network in networks) else networks[0]
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for network in networks:
            free.put(network)

        def run(batch: Sequence[Sample]) -> Tuple[List[Any], Any]:
            network = None if here is not None else free.get()
            try:
                images = [_read(sample, preprocessing, skip) for sample in batch]
                return images, None if network is None else _forward(network, images)
            finally:
                if network is not None:
                    free.put(network)

        pool = ThreadPoolExecutor(len(networks), thread_name_prefix="repvgg-zoo")
        stack.callback(pool.shutdown)
        pending: Deque[Tuple[List[Sample], Future[Any]]] = deque()
        stack.callback(lambda: [future.cancel() for _, future in pending])
        failure: Optional[ZooError] = None
        is_last = False
        while True:
            while not is_last and len(pending) < BATCHES_AHEAD * len(networks):
                batch, failure = _take(samples, batch_size)
                is_last = len(batch) < batch_size
                if batch:
                    pending.append((batch, pool.submit(run, batch)))
            if not pending:
                break
            batch, future = pending.popleft()
            images, values = future.result()
            values = _forward(here, images) if here is not None else values
            yield from _outputs(batch, images, values)
        if failure is not None:
            raise failure


def _take(samples: Iterator[Sample], count: int) -> Tuple[List[Sample], Optional[ZooError]]:
    """Return the next samples, and the error that ended them, which is raised once those before it were yielded."""
    batch: List[Sample] = []
    try:
        batch.extend(itertools.islice(samples, count))
    except ZooError as error:
        return batch, error
    return batch, None


def _outputs(batch: Sequence[Sample], images: Sequence[Any], values: Any) -> Iterator[Output]:
    rows = iter(() if values is None else values)
    for sample, image in zip(batch, images):
        if isinstance(image, str):
            yield Output(sample.key, sample.label, None, image)
        elif isinstance(image, Exception):
            raise image
        else:
            yield Output(sample.key, sample.label, next(rows))


def _read(sample: Sample, preprocessing: Preprocessing, skip: bool) -> Any:
    """Return the preprocessed image, or why it cannot be read: a text if it is skipped, else the error."""
    image = sample.image
    try:
        return preprocess_image(as_image(image), preprocessing)
    except ArgumentError as error:
        if skip:
            return error.message
        if not isinstance(image, Path):
            error.message = f"{sample.key}: {error.message}"
        error.hint = error.hint or 'remove it, or pass on_error="skip"'
        return error


def _forward(network: Any, images: Sequence[Any]) -> Any:
    """Return the outputs (N, values) for the images that could be read, or None if there are none."""
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if not arrays:
        return None
    values = network(np.stack(arrays))
    if getattr(values, "ndim", None) != 2 or len(values) != len(arrays):
        raise ArgumentError(
            f"{type(network).__name__} does not return logits",
            expected=f"an array ({len(arrays)}, classes)",
            actual=getattr(values, "shape", type(values).__name__),
            hint="a network that was created with features_only has no head",
        )
    if not np.isfinite(values).all():
        raise ArgumentError("the network's outputs are not finite numbers", hint="are its weights damaged?")
    return values


def open_networks(
    model: Any,
    preprocessing: Preprocessing,
    threads: int,
    batch_size: int,
    output: str,
    stack: ExitStack,
    speed: Optional[CpuSpeed] = None,
) -> List[Any]:
    """Return a network for each thread: one of its own, or the same one where weights would take too much memory."""
    if output == "features":
        model = pool_features(model)
    if not isinstance(model, (CheckpointSpec, Checkpoint, QuantizedNetwork)) and not is_module(model):
        return [model] * threads
    source = to_form(model, "deploy") if isinstance(model, Checkpoint) else model  # once, and not for each thread
    size = check_image_size("image_size", preprocessing.image_size)

    def compiled(threads: int) -> Any:
        return stack.enter_context(
            compile_network(source, batch_size=batch_size, size=size, threads=threads, speed=speed)
        )

    if PACKED_WEIGHTS * weight_bytes(model) * threads > MEMORY_SHARE * memory_bytes():
        return [compiled(threads)] * threads
    first = compiled(1)
    return [first] * threads if first.backend == "eager" else [first, *(compiled(1) for _ in range(threads - 1))]


def weight_bytes(model: Any) -> int:
    """Return about how much memory the weights of a network take."""
    if isinstance(model, CheckpointSpec):
        return 4 * find_model(model.variant)[0].params.deploy
    if isinstance(model, Checkpoint):
        return sum(array.nbytes for array in model.state_dict.values())
    if isinstance(model, QuantizedNetwork):
        return 2 * sum(layer.kernel.size for layer in model.weights.layers)
    return 4 * sum(int(np.prod(parameter.shape)) for parameter in model.parameters())


def memory_bytes() -> float:
    """Return the size of the machine's memory, or infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not POSIX
        return float("inf")


def _check_pillow() -> None:
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ArgumentError(
            "Pillow was told to read truncated images, of which it makes up the missing part",
            expected="PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False",
            actual=True,
            hint="set it to False",
        )
