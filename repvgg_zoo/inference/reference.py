"""The reference: what a network returns in eager mode for two fixed images, which a compiled one must return as well.

Some of its values are in the derived cache, so that the eager network runs only once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from .._derived_cache import DerivedCache, DerivedKey
from ..errors import EquivalenceError
from ..reparam.fusion import relative_error
from .compiled_model import Arrays, Runner

MAX_ERROR = 1e-4  # of the output's scale; winograd in float32 differs from direct convolution by up to 6e-6
PROBES = 2  # different images, so that images that are mixed up are noticed
MAX_SAMPLES = 2000  # values of each output and image that are cached
VERSION = 1  # to be raised whenever the same network would have other probes or samples

Shape = Tuple[int, int, int, int]


def probe_images(shape: Shape) -> NDArray[Any]:
    """Return the images of the comparison, (PROBES, C, H, W) for an input of (N, C, H, W): the same everywhere."""
    return np.random.RandomState(0).standard_normal((PROBES, *shape[1:])).astype(np.float32)


def reference_key(source: str, shape: Shape, parameters: Mapping[str, Any]) -> DerivedKey:
    """Return the key of a network's samples: ``source`` and ``parameters`` say which network it is."""
    more = {"image": list(shape[1:]), "repvgg_zoo": __version__}
    return DerivedKey(source, "reference", VERSION, {**parameters, **more})


def read_samples(cache_dir: Path, key: DerivedKey) -> Optional[Arrays]:
    """Return the samples of an earlier start, or None if there are none."""
    payload = DerivedCache(cache_dir).read(key)
    if payload is None:
        return None
    return tuple(np.array(values, np.float32) for values in json.loads(bytes(payload)))


def write_samples(cache_dir: Path, key: DerivedKey, outputs: Arrays) -> None:
    """Keep samples of the eager network's outputs for a later start."""
    payload = json.dumps([_samples(output).tolist() for output in outputs]).encode()
    DerivedCache(cache_dir).write(key, lambda stream: stream.write(payload))


def max_relative_error(runner: Runner, reference: Arrays, shape: Shape, *, sampled: bool = False) -> float:
    """Return how far a runner's outputs for the probes are from the reference, relative to each output's scale.

    The probes are repeated to fill whole batches, and every position of every batch is compared. ``sampled`` says that
    the reference holds samples only. The error is infinite if shapes differ, or values are not finite.
    """
    probes, batch = probe_images(shape), shape[0]
    order = np.arange(-(-max(batch, PROBES) // batch) * batch) % PROBES
    results = [runner(probes[order[start : start + batch]]) for start in range(0, len(order), batch)]
    outputs = [np.concatenate(pieces) for pieces in zip(*results)]
    outputs = [_samples(output) for output in outputs] if sampled else outputs
    # The first axis of an eager network's output need not be the batch.
    shapes = [(len(order), *array.shape[1:]) for array in reference if array.ndim and len(array) == PROBES]
    if shapes != [output.shape for output in outputs]:
        return float("inf")
    pairs = ((array[order].astype(np.float64), output.astype(np.float64)) for array, output in zip(reference, outputs))
    return max(relative_error(*pair)[2] for pair in pairs)


def not_equivalent(error: float) -> EquivalenceError:
    """Return the error for a compiled network that is too far from the eager one."""
    return EquivalenceError(
        f"the compiled network differs from the eager one by {error:.1e} of the output's scale",
        expected=f"at most {MAX_ERROR:g}",
        actual=error,
        hint="weights with values that are not finite do this; otherwise run the network itself, and report it",
    )


def _samples(array: NDArray[Any]) -> NDArray[Any]:
    """Return up to ``MAX_SAMPLES`` values of each image: (N, ...) to (N, values)."""
    flat = array.reshape(len(array), -1)
    return flat[:, :: max(1, -(-flat.shape[1] // MAX_SAMPLES))]
