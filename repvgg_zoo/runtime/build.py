"""From a network to a runner: what was kept if it still holds, else dump, measure the candidates, check, keep."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from ..errors import EquivalenceError
from ..reparam.convert import relative_error
from .graph import Arrays, Structure, Traced, dump
from .plans import Plan
from .runners import LiteRunner
from .store import Record, Store, key_of

BOUND = 1e-4  # of the output's scale; winograd in float32 differs from direct convolution by up to 6e-6
SAMPLES = 2000  # values of each output that are kept for the check of a later start
CHOOSING_SECONDS = 20.0  # no further candidate is tried after this
MEASURING_SECONDS = 0.5  # for each candidate, after its first runs
PROBES = 2  # different images in the check, so that images cannot be mixed up unnoticed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """A runner that has passed its check, and what it returns; ``error`` is its distance from the eager network."""

    runner: LiteRunner
    structure: Structure
    plan: Plan
    error: float


@dataclass(frozen=True)
class Job:
    """What is to be built: ``shape`` is (N, C, H, W), ``facts`` are all that the choices depend on."""

    shape: Tuple[int, int, int, int]
    threads: int
    plans: Tuple[Plan, ...]
    facts: Mapping[str, Any]

    @property
    def batch(self) -> int:
        return self.shape[0]


def build(make: Callable[[], M.Module], digest: Optional[str], job: Job, store: Store) -> Built:
    """The fastest runner of a network, which ``make`` makes (see ``private_copy``) only if nothing was kept.

    ``digest`` identifies the network, None if only its dumped graph can. Raises EquivalenceError if no candidate gives
    the eager network's output, RuntimeError if MegEngine cannot trace the network or Lite cannot run it.
    """
    probe = probe_input(job.shape)
    found: Optional[Tuple[str, Union[Path, bytes], Traced]] = None
    if digest is None:
        found = _dumped(make, probe, store)
        digest = found[0]
    key = key_of({**job.facts, "network": digest, "shape": job.shape, "threads": job.threads})
    record = store.read(key)
    if record is not None:
        kept = _rebuilt(record, job, store, probe)
        if kept is not None:
            return kept
    sha256, graph, traced = found if found is not None else _dumped(make, probe, store)
    built = _fastest(graph, traced, job, probe)
    samples = tuple(_sample(array) for array in traced.reference)
    assert built.runner.algorithms is not None
    store.keep(key, Record(sha256, built.plan.name, traced.structure, built.runner.algorithms, samples))
    return built


def _dumped(make: Callable[[], M.Module], probe: NDArray[Any], store: Store) -> Tuple[str, Union[Path, bytes], Traced]:
    """The graph's SHA-256, its file (or its bytes, if they could not be written), and what was seen in tracing."""
    data, traced = dump(make(), probe)
    sha256 = hashlib.sha256(data).hexdigest()
    path = store.keep_graph(sha256, data)
    graph = data if path is None else path
    del data
    _return_freed_memory()
    return sha256, graph, traced


def _return_freed_memory() -> None:
    """Gives the system what dumping used; glibc would keep it, for B3 two gigabytes."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def probe_input(shape: Tuple[int, int, int, int]) -> NDArray[Any]:
    """The images that a network checks itself with: the same in every process."""
    return np.random.RandomState(0).standard_normal((PROBES, *shape[1:])).astype(np.float32)


def _rebuilt(record: Record, job: Job, store: Store, probe: NDArray[Any]) -> Optional[Built]:
    """The runner of a record, or None if it no longer works."""
    plan = {plan.name: plan for plan in job.plans}.get(record.plan)
    graph = store.find_graph(record.graph)
    if plan is None or graph is None:
        return None
    try:
        runner = LiteRunner(graph, record.structure.names, job.shape, job.threads, plan, record.algorithms)
    except RuntimeError as failure:
        logger.warning("what was kept of a compiled network cannot be used (%s); compiling anew", failure)
        return None
    error = _distance(runner, record.samples, probe, job.batch, thin=True)
    if not error <= BOUND:
        logger.warning("a compiled network no longer gives what it gave (%.1e); compiling anew", error)
        runner.close()
        return None
    return Built(runner, record.structure, plan, error)


def _fastest(graph: Union[Path, bytes], traced: Traced, job: Job, probe: NDArray[Any]) -> Built:
    """Builds the candidates one after another, so that memory holds one at a time, and gives the fastest right one."""
    started = time.monotonic()
    errors: Dict[str, float] = {}
    seconds: Dict[str, float] = {}
    last: Optional[Built] = None
    tables: Dict[str, Optional[bytes]] = {}
    for plan in job.plans:
        if seconds and time.monotonic() - started > CHOOSING_SECONDS:
            break
        if last is not None:
            last.runner.close()
            last = None
        runner = LiteRunner(graph, traced.structure.names, job.shape, job.threads, plan)
        errors[plan.name] = error = _distance(runner, traced.reference, probe, job.batch)
        if not error <= BOUND:
            runner.close()
            continue
        last = Built(runner, traced.structure, plan, error)
        tables[plan.name] = runner.algorithms
        seconds[plan.name] = _seconds(runner, job.shape) if len(job.plans) > 1 else 0.0
    if not seconds:
        raise _refusal(errors)
    best = min(seconds, key=lambda name: seconds[name])
    logger.debug("seconds of each plan: %s; taking %s", seconds, best)
    if last is not None and last.plan.name == best:
        return last
    if last is not None:
        last.runner.close()
    plan = next(plan for plan in job.plans if plan.name == best)
    runner = LiteRunner(graph, traced.structure.names, job.shape, job.threads, plan, tables[best])
    return Built(runner, traced.structure, plan, errors[best])


def _seconds(runner: LiteRunner, shape: Tuple[int, ...]) -> float:
    """The least time of a run: other programs can only add to it."""
    x = np.zeros(shape, np.float32)
    times: List[float] = []
    end = time.monotonic() + MEASURING_SECONDS
    while len(times) < 3 or time.monotonic() < end:
        start = time.perf_counter()
        runner(x)
        times.append(time.perf_counter() - start)
    return min(times)


def _distance(runner: LiteRunner, reference: Arrays, probe: NDArray[Any], batch: int, thin: bool = False) -> float:
    """How far the runner's outputs for the probe are from the reference, relative to each output's scale.

    The probe's images are repeated to fill whole batches, and every place of every batch is looked at. ``thin`` says
    that the reference holds samples only.
    """
    places = np.arange(-(-max(batch, len(probe)) // batch) * batch) % len(probe)
    answers = [runner(probe[places[start : start + batch]]) for start in range(0, len(places), batch)]
    outputs = [np.concatenate(pieces) for pieces in zip(*answers)]
    outputs = [_sample(output) for output in outputs] if thin else outputs
    # A record may hold anything, and a network's first length need not be the batch.
    shapes = [(len(places), *array.shape[1:]) for array in reference if len(array) == len(probe)]
    if shapes != [output.shape for output in outputs]:
        return float("inf")
    pairs = ((array[places].astype(np.float64), output.astype(np.float64)) for array, output in zip(reference, outputs))
    return max(relative_error(*pair)[2] for pair in pairs)


def _sample(array: NDArray[Any]) -> NDArray[Any]:
    """Up to ``SAMPLES`` values of each image: (N, ...) to (N, values)."""
    flat = array.reshape(len(array), -1)
    return flat[:, :: max(1, -(-flat.shape[1] // SAMPLES))]


def _refusal(errors: Mapping[str, float]) -> EquivalenceError:
    worst = min(errors.values())
    return EquivalenceError(
        f"the compiled network differs from the eager one by {worst:.1e} of the output's scale",
        expected=f"at most {BOUND:g}",
        actual=dict(errors),
        hint="weights with values that are not finite do this; otherwise run the network itself, and report it",
    )
