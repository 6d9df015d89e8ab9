"""From a network to a runner: what was kept if it still holds, else made anew, checked, and kept."""

from __future__ import annotations

import ctypes
import functools
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, Tuple, Union

import megengine.module as M
import numpy as np
from numpy.typing import NDArray

from ..errors import EquivalenceError
from ..reparam.fusion import relative_error
from .backends import Plan
from .compile_cache import Graphs, Record, Store, key_of
from .graph import Arrays, Seen, Structure, dump, look_at, private_copy
from .ir import NetworkWeights
from .lowering import lower
from .plan import ExecutionPlan
from .runners import KernelRunner, LiteRunner, Runner

BOUND = 1e-4  # of the output's scale; winograd in float32 differs from direct convolution by up to 6e-6
SAMPLES = 2000  # values of each output that are kept for the check of a later start
PROBES = 2  # different images in the check, so that images cannot be mixed up unnoticed

logger = logging.getLogger(__name__)


class NotCompilable(Exception):
    """None of the plans is for this network."""


@dataclass(frozen=True)
class Built:
    """A runner that has passed its check, and what it returns; ``error`` is its distance from the eager network."""

    runner: Runner
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


@dataclass(frozen=True)
class Source:
    """A network in the deploy form, maybe the user's own; each part is made when it is asked for.

    ``digest`` identifies the network, or is None if only its dumped graph can, since it has code of the user's.
    ``weights`` are what our kernels need, or None if it is not a RepVGG as this package builds it.
    """

    network: Callable[[], M.Module]
    digest: Callable[[], Optional[str]]
    weights: Callable[[], Optional[NetworkWeights]]


def build(source: Source, job: Job, store: Store) -> Built:
    """The runner of a network: the kept one if it still gives what it gave, else a new one.

    Raises EquivalenceError if no plan gives the eager network's output, NotCompilable if no plan is for it,
    RuntimeError if MegEngine cannot trace it or Lite cannot run it.
    """
    probe = probe_input(job.shape)
    graphs = Graphs(store)
    digest = source.digest()
    graph = _add(graphs, source.network(), job) if digest is None else None
    key = key_of({**job.facts, "network": digest or graph, "shape": job.shape, "threads": job.threads})
    record = store.read(key)
    if record is not None:
        kept = _rebuilt(record, source, job, store, probe)
        if kept is not None:
            return kept
    # Of a network that is known by its graph our kernels know nothing.
    program = None if graph is not None else _program(source, job)
    seen = look_at(private_copy(source.network()), probe)
    runners: Iterable[Tuple[Plan, Callable[[], Runner]]]
    if program is not None:
        made = program
        runners = [(plan, lambda: KernelRunner(made, job.threads)) for plan in job.plans if plan.kernels]
    else:
        graph = _add(graphs, source.network(), job) if graph is None else graph
        dumped = graphs.find(graph)
        lite = functools.partial(_lite, graph=dumped, structure=seen.structure, job=job)
        runners = [(plan, functools.partial(lite, plan)) for plan in job.plans if not plan.kernels]
    built = _first_right(runners, seen, job, probe)
    algorithms = built.runner.algorithms if isinstance(built.runner, LiteRunner) else None
    samples = tuple(_sample(array) for array in seen.reference)
    store.keep(key, Record(built.plan.name, graph, algorithms, seen.structure, samples))
    return built


def _program(source: Source, job: Job) -> Optional[ExecutionPlan]:
    """The program for our kernels, None if they are not for this network or not among the plans."""
    plan = next((plan for plan in job.plans if plan.kernels), None)
    weights = None if plan is None else source.weights()
    if plan is None or weights is None:
        return None
    from .jit.engine import host_microkernel_config  # here, because it loads LLVM

    config = host_microkernel_config()
    return lower(weights, job.shape, threads=job.threads, low_memory=plan.low_memory, config=config)


def _add(graphs: Graphs, network: M.Module, job: Job) -> str:
    """Dumps a network for Lite, and gives the graph's SHA-256. Raises NotCompilable if Lite is not among the plans."""
    plans = [plan for plan in job.plans if not plan.kernels]
    if not plans:
        raise NotCompilable
    batch, *rest = job.shape
    split = plans[0].split
    share = (batch // job.threads if split else batch, *rest)
    sha256 = graphs.add(dump(private_copy(network), np.zeros(share, np.float32)))
    _return_freed_memory()
    return sha256


def _return_freed_memory() -> None:
    """Gives the system what dumping used; glibc would keep it, for B3 two gigabytes."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def probe_input(shape: Tuple[int, int, int, int]) -> NDArray[Any]:
    """The images that a network checks itself with: the same in every process."""
    return np.random.RandomState(0).standard_normal((PROBES, *shape[1:])).astype(np.float32)


def _rebuilt(record: Record, source: Source, job: Job, store: Store, probe: NDArray[Any]) -> Optional[Built]:
    """The runner of a record, or None if it no longer works."""
    plan = {plan.name: plan for plan in job.plans}.get(record.plan)
    if plan is None:
        return None
    runner: Runner
    if plan.kernels:
        program = _program(source, job)
        if program is None:
            return None
        runner = KernelRunner(program, job.threads)
    else:
        path = None if record.graph is None else store.find_graph(record.graph)
        if path is None:
            return None
        try:
            runner = _lite(plan, path, record.structure, job, record.algorithms)
        except RuntimeError as failure:
            logger.warning("what was kept of a compiled network cannot be used (%s); compiling anew", failure)
            return None
    error = _distance(runner, record.samples, probe, job.shape[0], thin=True)
    if not error <= BOUND:
        logger.warning("a compiled network no longer gives what it gave (%.1e); compiling anew", error)
        runner.close()
        return None
    return Built(runner, record.structure, plan, error)


def _first_right(
    runners: Iterable[Tuple[Plan, Callable[[], Runner]]], seen: Seen, job: Job, probe: NDArray[Any]
) -> Built:
    """The first of the runners that gives the eager network's output."""
    errors: Dict[str, float] = {}
    for plan, make in runners:
        runner = make()
        errors[plan.name] = error = _distance(runner, seen.reference, probe, job.shape[0])
        if error <= BOUND:
            return Built(runner, seen.structure, plan, error)
        runner.close()
    raise _refusal(errors)


def _lite(
    plan: Plan, graph: Union[Path, bytes], structure: Structure, job: Job, algorithms: Optional[bytes] = None
) -> LiteRunner:
    preprocess = not plan.low_memory
    return LiteRunner(graph, structure.names, job.shape, job.threads, plan.split, preprocess, algorithms)


def _distance(runner: Runner, reference: Arrays, probe: NDArray[Any], batch: int, thin: bool = False) -> float:
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
