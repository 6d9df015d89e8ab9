"""repvgg-zoo bench: how fast a network is in each form and compiled, told with all that the figures depend on."""

from __future__ import annotations

import argparse
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

from ..._cpu import usable_cores
from ...errors import ArgumentError
from ...registry.api import find_model
from ..console import paint, show, table
from ..megengine_setup import facts as machine_facts
from ..megengine_setup import has_gpu, prepare_megengine

HELP = """
Times one forward pass of each network, in both forms as MegEngine runs them and
compiled (repvgg_zoo.compile): the same weights (random; speed does not depend
on them), the same input, taken in turns so that a busy machine is busy for all,
after a warm-up. The time is from the call, the input being at hand, until the
output is a NumPy array.
"""
EXAMPLES = (
    "repvgg-zoo bench RepVGG_N0 --rounds 20",
    "repvgg-zoo bench RepVGG_N0 --batch 8 --image-size 64 --rounds 20 --json",
)
WARM_UP = 5
LEAST_ROUNDS = 10
P99_ROUNDS = 100  # a 99th percentile of fewer is the maximum under another name


@dataclass(frozen=True)
class Contestant:
    """One way to run a network, and the call that does it once."""

    form: str
    call: Callable[[], Any]
    eager: bool = False  # although it was meant to be compiled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="variants")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in one call (default: 1)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="default: the variant's own")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="MegEngine's CPU threads (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="time for each NAME (default: 10)")
    parser.add_argument("--rounds", type=int, metavar="N", help="exactly so many calls of each form, however long")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, metavar="N", help=f"untimed calls (default: {WARM_UP})")


def run(args: argparse.Namespace) -> int:
    models = [find_model(name)[0] for name in args.names]
    for option in ("batch", "image_size", "threads", "rounds"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ArgumentError(f"--{option.replace('_', '-')} is {value}", expected="1 or more", actual=value)
    prepare_megengine()
    missing = not_measured(args)
    rows: List[Dict[str, Any]] = []
    with device(args.threads):
        machine = machine_facts()  # before, or the load would be our own
        for model in models:
            size = args.image_size or model.architecture.image_size
            shape = (args.batch, model.architecture.in_chans, size, size)
            with contestants(model.name, shape, args.threads) as taking_part:
                seconds = in_turns(taking_part, args)
            if any(one.eager for one in taking_part):
                missing.append(f"{model.name} compiled: nothing here compiles it, so that row is eager")
            rows += [summary(model.name, form, shape, found) for form, found in seconds.items()]
    if any(row["p99_ms"] is None for row in rows):
        missing.append(f"p99: it needs {P99_ROUNDS} rounds (--rounds {P99_ROUNDS}, or more --seconds)")
    facts = {
        "machine": machine,
        "threads": args.threads,
        "warm_up": args.warm_up,
        "rows": rows,
        "not_measured": missing,
    }
    show(args, facts, lines(facts))
    return 0


@contextmanager
def contestants(name: str, shape: Tuple[int, int, int, int], threads: int) -> Iterator[List[Contestant]]:
    """Every way to run this network that is here; a further one is one more entry."""
    import megengine
    import numpy as np

    from ...builder import create
    from ...inference.api import compile
    from ...reparam.to_deploy import find_blocks, to_deploy

    images = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    x = megengine.Tensor(images)
    train = create(name, in_chans=shape[1])
    train.eval()
    deploy = to_deploy(train)
    # A model that still has branches would be timed as if they were gone.
    left = [block for block, part in find_blocks(deploy).items() if not part.deploy]
    if left:
        raise ArgumentError(f"{name} still has branches after to_deploy: {', '.join(left)}", actual=left)
    with compile(deploy, batch_size=shape[0], image_size=shape[2:], threads=threads) as compiled:
        yield [
            Contestant("train", lambda: train(x).numpy()),
            Contestant("deploy", lambda: deploy(x).numpy()),
            Contestant("compiled", lambda: compiled(images), eager=compiled.backend == "eager"),
        ]


def in_turns(
    contestants: Sequence[Contestant], args: argparse.Namespace, clock: Callable[[], float] = time.perf_counter
) -> Dict[str, List[float]]:
    """The seconds of every timed call of each contestant; who begins a round changes from round to round."""
    for _ in range(args.warm_up):
        for one in contestants:
            one.call()
    seconds: Dict[str, List[float]] = {one.form: [] for one in contestants}
    begun, rounds = clock(), 0
    while rounds < args.rounds if args.rounds else rounds < LEAST_ROUNDS or clock() - begun < args.seconds:
        turn = rounds % len(contestants)
        for one in [*contestants[turn:], *contestants[:turn]]:
            start = clock()
            one.call()
            seconds[one.form].append(clock() - start)
        rounds += 1
    return seconds


def summary(name: str, form: str, shape: Sequence[int], seconds: Sequence[float]) -> Dict[str, Any]:
    """Percentiles in milliseconds, nearest-rank, and images per second at the median."""
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
        "p99_ms": percentile(99) if len(seconds) >= P99_ROUNDS else None,
        "min_ms": ordered[0] * 1e3,
        "max_ms": ordered[-1] * 1e3,
        "images_per_second": shape[0] / (percentile(50) / 1e3),
    }


def not_measured(args: argparse.Namespace) -> List[str]:
    """What a reader might think was measured and was not."""
    missing = ["half precision", "memory", "reading, decoding and preprocessing of images"]
    if has_gpu():
        missing.append("the CPU: MegEngine's default device is used; MGE_DEFAULT_DEVICE=cpux chooses the CPU")
    else:
        missing.append("a GPU: none is here")
    if args.threads > usable_cores():
        missing.append(f"{args.threads} threads at once: only {usable_cores()} cores may be used")
    return missing


@contextmanager
def device(threads: int) -> Iterator[None]:
    """MegEngine's default device for a while: so many threads of the CPU, or for one thread as it is."""
    import megengine

    before = megengine.get_default_device()
    if threads > 1:
        megengine.set_default_device(f"multithread{threads}:0")
    try:
        yield
    finally:
        if threads > 1:
            megengine.set_default_device(before)


def lines(facts: Mapping[str, Any]) -> List[str]:
    """The table, the machine, and what was not measured."""
    machine, rows = facts["machine"], facts["rows"]
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
    shown = [*table(heads, cells, right=heads[3:]), ""]
    for name in dict.fromkeys(row["name"] for row in rows):
        of_name = {row["form"]: row["p50_ms"] for row in rows if row["name"] == name}
        first = of_name.pop("train")
        shown += [f"{name}: {form} {first / found:.2f} times as fast as train" for form, found in of_name.items()]
    shown += [
        "",
        f"on {machine['cpu']}, {machine['cores']} cores, load {machine['load']}",
        f"device {machine['device']}, {facts['threads']} thread(s), MegEngine {machine['megengine']}, "
        f"NumPy {machine['numpy']}, Python {machine['python']}",
        f"float32, {facts['warm_up']} untimed calls first, forms taken in turns",
        paint("not measured:", "bold"),
        *(f"  {what}" for what in facts["not_measured"]),
    ]
    if machine["load"] is not None and machine["load"] > machine["cores"] / 2:
        shown.append(paint("the machine is busy with other work: take the figures as bounds", "yellow"))
    return shown
