"""From a network to a runner: what was kept if it still holds, else rewrite, dump, check, keep."""

from __future__ import annotations

import ctypes
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from ..errors import EquivalenceError
from ..reparam.convert import relative_error
from .graph import Arrays, Structure, Traced, dump, look_at, private_copy
from .nchw88 import Block, Head, Segment, numbers_of
from .plans import Plan, Step
from .runners import LiteRunner
from .stages import rewritten, side_by_side, stages
from .store import Graphs, Record, Store, key_of

BOUND = 1e-4  # of the output's scale; winograd in float32 differs from direct convolution by up to 6e-6
SAMPLES = 2000  # values of each output that are kept for the check of a later start
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
    """The runner of a network, which ``make`` makes (see ``private_copy``) only if nothing was kept.

    ``digest`` identifies the network, None if only its dumped graph can. Raises EquivalenceError if no plan gives
    the eager network's output, RuntimeError if MegEngine cannot trace the network or Lite cannot run it.
    """
    probe = probe_input(job.shape)
    graphs = Graphs(store)
    network: Optional[M.Module] = None
    whole: Optional[str] = None
    if digest is None:
        network = make()
        digest = whole = _add(graphs, network, probe, optimize=True)
    key = key_of({**job.facts, "network": digest, "shape": job.shape, "threads": job.threads})
    record = store.read(key)
    if record is not None:
        kept = _rebuilt(record, job, store, probe)
        if kept is not None:
            return kept
    network = make() if network is None else network
    traced = look_at(network, probe)
    # A network that is known by its graph only has code of the user's, which cannot be rewritten.
    numbers = None if whole is not None else numbers_of(network)
    if numbers is None and whole is None:
        whole = _add(graphs, network, probe, optimize=True)
    del network
    built = _first_right(_Steps(job, graphs, numbers, whole), traced, job, probe)
    samples = tuple(_sample(array) for array in traced.reference)
    store.keep(key, Record(built.plan.name, built.runner.steps, traced.structure, samples))
    return built


@dataclass(frozen=True)
class _Steps:
    """Turns plans into steps: from the ``numbers`` of a network that can be rewritten, or else its ``whole`` graph."""

    job: Job
    graphs: Graphs
    numbers: Optional[Tuple[Tuple[Block, ...], Head]]
    whole: Optional[str]

    def of(self, plan: Plan) -> Optional[Tuple[Step, ...]]:
        """The plan's steps, None if it does not suit the network."""
        shape, threads = self.job.shape, self.job.threads
        parts = threads if plan.split else 1
        if self.numbers is None:
            if plan.form != "whole" or self.whole is None:
                return None
            return (side_by_side(self.whole, (shape[0] // parts, *shape[1:]), threads, parts),)
        if plan.form == "stages":
            return stages(*self.numbers, shape, threads, self._dump)
        if plan.form == "rewritten":
            return rewritten(*self.numbers, shape, threads, self._dump, parts)
        return None

    def _dump(self, segment: Segment, shape: Tuple[int, ...]) -> str:
        return _add(self.graphs, private_copy(segment), np.zeros(shape, np.float32), optimize=False)


def _add(graphs: Graphs, network: M.Module, x: NDArray[Any], *, optimize: bool) -> str:
    """Dumps a network, and gives the graph's SHA-256."""
    sha256 = graphs.add(dump(network, x, optimize=optimize))
    _return_freed_memory()
    return sha256


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
    names = {part.graph for step in record.steps for part in step.parts}
    graphs = {name: path for name, path in ((name, store.find_graph(name)) for name in names) if path is not None}
    if plan is None or not names or len(graphs) < len(names):
        return None
    try:
        runner = LiteRunner(record.steps, record.structure.names, plan.preprocess, graphs.__getitem__)
    except RuntimeError as failure:
        logger.warning("what was kept of a compiled network cannot be used (%s); compiling anew", failure)
        return None
    error = _distance(runner, record.samples, probe, job.batch, thin=True)
    if not error <= BOUND:
        logger.warning("a compiled network no longer gives what it gave (%.1e); compiling anew", error)
        runner.close()
        return None
    return Built(runner, record.structure, plan, error)


def _first_right(steps: _Steps, traced: Traced, job: Job, probe: NDArray[Any]) -> Built:
    """The first plan that suits the network and gives the eager network's output."""
    errors: Dict[str, float] = {}
    for plan in job.plans:
        how = steps.of(plan)
        if how is None:
            continue
        runner = LiteRunner(how, traced.structure.names, plan.preprocess, steps.graphs.find)
        errors[plan.name] = error = _distance(runner, traced.reference, probe, job.batch)
        if error <= BOUND:
            return Built(runner, traced.structure, plan, error)
        runner.close()
    raise _refusal(errors)


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
