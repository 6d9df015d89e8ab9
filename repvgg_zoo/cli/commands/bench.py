"""repvgg-zoo bench: the latency of a network in each form and compiled, and what the figures depend on."""

from __future__ import annotations

import argparse
import math
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..._cpu import usable_cores
from ...errors import ArgumentError, MissingFileError
from ...inference.explanation import ExplainedLayer, Explanation
from ...registry.model_or_file import find_model_or_file
from ..common import load_network, try_each
from ..console import Result, style, table
from ..megengine_setup import default_to_cpu, has_gpu, machine_info

HELP = """
Measures the latency of one forward pass of each network: in train form and
deploy form in MegEngine, and compiled (repvgg_zoo.compile). All have the same
weights (those of FILE, or random ones: speed does not depend on them) and the
same input, and their calls are interleaved, so that other load on the machine
affects all of them. The time is that from the call until the output is a NumPy
array. A FILE in deploy form has no train form to measure. --explain adds each
layer of the compiled network: its algorithm, and its expected and best time.

A network that cannot be built does not stop the others; its error is reported
at the end, and has the exit code.
"""
EXAMPLES = (
    "repvgg-zoo bench RepVGG_N0 --rounds 20",
    "repvgg-zoo bench RepVGG_N0 --batch 8 --image-size 64 --rounds 20 --json",
    "repvgg-zoo bench RepVGG_N0 --rounds 20 --explain",
    "repvgg-zoo convert RepVGG_N0 own.pkl --deploy --force",
    "repvgg-zoo bench own.pkl --rounds 20",
)
WARMUP_CALLS = 5
MIN_ROUNDS = 10
MIN_P99_ROUNDS = 100  # with fewer, the 99th percentile is the maximum


@dataclass(frozen=True)
class Runner:
    """One way to run a network: ``call`` runs it once.

    Of the compiled network, ``explain`` measures its layers, and ``eager`` says that it could not be compiled.
    """

    form: str
    call: Callable[[], Any]
    eager: bool = False
    explain: Optional[Callable[[], Explanation]] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME|FILE", help="variants, or checkpoint files")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch size (default: %(default)s)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="default: the variant's own")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="time for each NAME (default: 10)")
    parser.add_argument("--rounds", type=int, metavar="N", help="number of calls of each form, instead of a time")
    parser.add_argument(
        "--warm-up", type=int, default=WARMUP_CALLS, metavar="N", help="untimed calls first (default: %(default)s)"
    )
    parser.add_argument("--explain", action="store_true", help="also measure each layer of the compiled network")


def run(args: argparse.Namespace) -> Result:
    for name in args.names:
        with suppress(MissingFileError):  # which is reported with its results
            find_model_or_file(name)  # an unknown name fails before anything is measured
    for option in ("batch", "image_size", "threads", "rounds"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ArgumentError(f"--{option.replace('_', '-')} is {value}", expected="1 or more", actual=value)
    default_to_cpu()
    missing = not_measured(args)
    with megengine_threads(args.threads):
        machine = machine_info()  # before measuring, which is load itself
        results, failures = try_each(args.names, lambda name: measure(name, args, missing))
    rows = [row for result in results if isinstance(result, list) for row in result]
    if any(row["p99_ms"] is None for row in rows):
        missing.append(f"p99: it needs {MIN_P99_ROUNDS} rounds (--rounds {MIN_P99_ROUNDS}, or more --seconds)")
    payload = {
        "machine": machine,
        "threads": args.threads,
        "warm_up": args.warm_up,
        "rows": rows,
        "failed": [result for result in results if not isinstance(result, list)],
        "not_measured": missing,
    }
    return Result(payload, render, failures=failures)


def measure(name: str, args: argparse.Namespace, missing: List[str]) -> List[Dict[str, Any]]:
    """Return a row for each form of one network; add what could not be measured to ``missing``."""
    from ...builder import create

    target = find_model_or_file(name)
    network = load_network(target) if isinstance(target, Path) else create(name)
    size = args.image_size or network.spec.architecture.image_size
    shape = (args.batch, network.in_chans, size, size)
    with runners(name, network, shape, args.threads) as available:
        seconds = time_interleaved(available, args)
        explanations = {each.form: asdict(each.explain()) for each in available if args.explain and each.explain}
    if any(runner.eager for runner in available):
        missing.append(f"{name} compiled: it cannot be compiled on this machine, so that row is eager")
    label = name if isinstance(target, Path) else network.spec.name
    return [
        {**summarize(label, form, shape, times), "explanation": explanations.get(form)}
        for form, times in seconds.items()
    ]


@contextmanager
def runners(name: str, network: Any, shape: Tuple[int, int, int, int], threads: int) -> Iterator[List[Runner]]:
    """Yield every way to run this network on random images of this shape."""
    import megengine
    import numpy as np

    from ...inference.api import compile
    from ...reparam.to_deploy import find_blocks, to_deploy

    images = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    x = megengine.Tensor(images)
    network.eval()
    deploy = to_deploy(network)
    remaining = [key for key, block in find_blocks(deploy).items() if not block.deploy]
    if remaining:  # the row would have the wrong name
        raise ArgumentError(f"{name} has branches after to_deploy: {', '.join(remaining)}", actual=remaining)
    has_train_form = any(not block.deploy for block in find_blocks(network).values())
    with compile(deploy, batch_size=shape[0], image_size=shape[2:], threads=threads) as compiled:
        yield [
            *([Runner("train", lambda: network(x).numpy())] if has_train_form else []),
            Runner("deploy", lambda: deploy(x).numpy()),
            Runner(
                "compiled",
                lambda: compiled(images),
                eager=compiled.backend == "eager",
                explain=lambda: compiled.explain(measure=True),
            ),
        ]


def time_interleaved(
    runners: Sequence[Runner], args: argparse.Namespace, clock: Callable[[], float] = time.perf_counter
) -> Dict[str, List[float]]:
    """Return the seconds of every timed call of each runner; each round begins with another runner."""
    for _ in range(args.warm_up):
        for runner in runners:
            runner.call()
    seconds: Dict[str, List[float]] = {runner.form: [] for runner in runners}
    start, rounds = clock(), 0
    while rounds < args.rounds if args.rounds else rounds < MIN_ROUNDS or clock() - start < args.seconds:
        first = rounds % len(runners)
        for runner in [*runners[first:], *runners[:first]]:
            call_start = clock()
            runner.call()
            seconds[runner.form].append(clock() - call_start)
        rounds += 1
    return seconds


def summarize(name: str, form: str, shape: Sequence[int], seconds: Sequence[float]) -> Dict[str, Any]:
    """Return nearest-rank percentiles in milliseconds, and images per second at the median."""
    ordered = sorted(seconds)

    def percentile(percent: float) -> float:
        return ordered[math.ceil(percent / 100 * len(ordered)) - 1] * 1e3

    return {
        "name": name,
        "form": form,
        "input": list(shape),
        "rounds": len(seconds),
        "p50_ms": percentile(50),
        "p90_ms": percentile(90),
        "p99_ms": percentile(99) if len(seconds) >= MIN_P99_ROUNDS else None,
        "min_ms": ordered[0] * 1e3,
        "max_ms": ordered[-1] * 1e3,
        "images_per_second": shape[0] / (percentile(50) / 1e3),
    }


def not_measured(args: argparse.Namespace) -> List[str]:
    """Return what a reader might expect to be measured and is not."""
    missing = ["half precision", "memory", "reading, decoding and preprocessing of images"]
    if has_gpu():
        missing.append("the CPU: MegEngine's default device is used; MGE_DEFAULT_DEVICE=cpux selects the CPU")
    else:
        missing.append("a GPU: this machine has none")
    if args.threads > usable_cores():
        missing.append(f"{args.threads} threads in parallel: only {usable_cores()} cores are available")
    return missing


@contextmanager
def megengine_threads(threads: int) -> Iterator[None]:
    """Let MegEngine's default device use this many CPU threads; one thread leaves the device as it is."""
    import megengine

    before = megengine.get_default_device()
    if threads > 1:
        megengine.set_default_device(f"multithread{threads}:0")
    try:
        yield
    finally:
        if threads > 1:
            megengine.set_default_device(before)


def render(payload: Mapping[str, Any]) -> List[str]:
    """Return the table, the machine, and what was not measured."""
    machine, rows = payload["machine"], payload["rows"]
    heads = ["name", "form", "input", "rounds", "p50 ms", "p90 ms", "p99 ms", "images/s"]
    cells = [
        [
            row["name"],
            row["form"],
            "x".join(map(str, row["input"])),
            str(row["rounds"]),
            *("-" if row[key] is None else f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['images_per_second']:.1f}",
        ]
        for row in rows
    ]
    lines = [*table(heads, cells, right=heads[3:]), ""]
    for name in dict.fromkeys(row["name"] for row in rows):
        medians = {row["form"]: row["p50_ms"] for row in rows if row["name"] == name}
        first, slowest = next(iter(medians.items()))
        lines += [
            f"{name}: {form} is {slowest / median:.2f} times as fast as {first}"
            for form, median in medians.items()
            if form != first
        ]
    lines += [line for row in rows if row["explanation"] for line in ("", *_explanation_lines(row))]
    lines += [
        "",
        f"on {machine['cpu']}, {machine['cores']} cores, load {machine['load']}",
        f"device {machine['device']}, {payload['threads']} thread(s), MegEngine {machine['megengine']}, "
        f"NumPy {machine['numpy']}, Python {machine['python']}",
        f"float32, {payload['warm_up']} untimed calls first, calls interleaved",
        style("not measured:", "bold"),
        *(f"  {item}" for item in payload["not_measured"]),
    ]
    if machine["load"] is not None and machine["load"] > machine["cores"] / 2:
        lines.append(style("the machine is busy with other work, so the figures are upper bounds", "yellow"))
    return lines


def _explanation_lines(row: Mapping[str, Any]) -> List[str]:
    fields = row["explanation"]
    layers = tuple(ExplainedLayer(**layer) for layer in fields["layers"])
    return [
        f"{row['name']} {row['form']}, layer by layer:",
        *str(Explanation(**{**fields, "layers": layers})).split("\n"),
    ]
