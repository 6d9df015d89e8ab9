"""repvgg-zoo compare: the outputs of the train form and the deploy form, block by block and end to end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Mapping, Optional, Tuple

from ...registry.model_or_file import find_model_or_file
from ..common import add_fetch_options, fetch, load_network
from ..console import Result, style, table
from ..megengine_setup import default_to_cpu

HELP = """
Builds a network, re-parameterizes it, runs both forms on the same two random
images and shows how far their outputs differ, relative to the magnitude of each
output. Each block is compared on the input that it gets in the network.

Exit code 1 if a block or the whole network is above the bound.
"""
EXAMPLES = (
    "repvgg-zoo compare RepVGG_N0 --pretrained",
    "repvgg-zoo compare RepVGG_N0.digits --blocks",
    "repvgg-zoo convert RepVGG_N0 own.pkl --force",
    "repvgg-zoo compare own.pkl --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME|FILE", help="a variant, NAME.TAG, or a checkpoint file in train form")
    parser.add_argument("--pretrained", action="store_true", help="use the default checkpoint, not random weights")
    parser.add_argument("--blocks", action="store_true", help="show every block, not only the three worst")
    parser.add_argument("--bound", type=float, metavar="X", help="largest relative error (default: 1e-5 for float32)")
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    default_to_cpu()
    from ...reparam.equivalence import compare_forms
    from ...reparam.fusion import BLOCK_BOUNDS

    model, weights = build(args)
    report = compare_forms(model)
    dtype = next(iter(model.parameters())).numpy().dtype.name
    bound = BLOCK_BOUNDS[dtype] if args.bound is None else args.bound
    above = [row.name for row in [*report.blocks, report.end_to_end] if not row.relative <= bound]
    payload = {
        "name": model.spec.name,
        "weights": weights,
        "dtype": dtype,
        "inputs": [2, model.in_chans, *[model.spec.architecture.image_size] * 2],
        "bound": bound,
        "within_bound": not above,
        "above": above,
        "worst_block": report.worst_block.name,
        "end_to_end": report.end_to_end,
        "blocks": report.blocks,
    }
    return Result(payload, lambda payload: render(payload, all_blocks=args.blocks), int(bool(above)))


def build(args: argparse.Namespace) -> Tuple[Any, Optional[str]]:
    """Return the network in train form, and the file or checkpoint of its weights, or None if they are random."""
    from ...builder import create

    target = find_model_or_file(args.model)
    if isinstance(target, Path):
        return load_network(target, deploy=False), str(target)
    from ...registry.names import find_checkpoint

    spec, tag = target
    if tag is None and not args.pretrained:
        return create(spec.name), None
    checkpoint = find_checkpoint(spec, tag)
    fetch(checkpoint.file, args)  # with this command's options; create then finds it in the cache
    return create(spec.name, pretrained=checkpoint.tag), checkpoint.name


def render(payload: Mapping[str, Any], all_blocks: bool) -> List[str]:
    """Return the verdict, then the blocks."""
    blocks = list(payload["blocks"])
    selected = blocks if all_blocks else sorted(blocks, key=lambda block: block.relative, reverse=True)[:3]
    rows = [
        [row.name, f"{row.relative:.1e}", f"{row.max_abs:.1e}", f"{row.scale:.1e}"]
        for row in [*selected, payload["end_to_end"]]
    ]
    verdict = (
        style(f"both forms agree within {payload['bound']:g}", "green")
        if payload["within_bound"]
        else style(f"{len(payload['above'])} of {len(blocks) + 1} are above {payload['bound']:g}", "red")
    )
    size, weights = payload["inputs"][-1], payload["weights"]
    selection = f"{len(blocks)} blocks" if all_blocks else f"the worst of {len(blocks)} blocks"
    return [
        f"{payload['name']}, {f'weights of {weights}' if weights else 'random weights (see --pretrained)'},",
        f"{payload['dtype']}, two random images of {size} x {size}",
        f"{verdict}; {selection}, and end to end:",
        "",
        *table(["block", "relative", "max abs", "scale"], rows, right=["relative", "max abs", "scale"]),
    ]
