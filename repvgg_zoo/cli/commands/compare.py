"""repvgg-zoo compare: the train form against the deploy form, block by block and end to end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional

from ..console import paint, show, table
from ..megengine_setup import prepare_megengine
from .fetch import add_fetching
from .verify import is_path

HELP = """
Builds a network, re-parameterises it, runs both forms on the same two random
images and says how far their numbers are apart, relative to the size of each
output. Each block is compared on the input that it really gets.

Exit code 1 if a block or the whole is above the bound.
"""
EXAMPLES = (
    "repvgg-zoo compare RepVGG_N0 --pretrained",
    "repvgg-zoo compare RepVGG_N0.digits --blocks",
    "repvgg-zoo convert RepVGG_N0 own.pkl --force",
    "repvgg-zoo compare own.pkl --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="NAME|FILE", help="a variant, NAME.TAG, or a checkpoint file of the train form"
    )
    parser.add_argument("--pretrained", action="store_true", help="take the default checkpoint, not random weights")
    parser.add_argument("--blocks", action="store_true", help="show every block, not only the three worst")
    parser.add_argument("--bound", type=float, metavar="X", help="largest relative error (default: 1e-5 for float32)")
    add_fetching(parser)


def run(args: argparse.Namespace) -> int:
    prepare_megengine()
    from ...reparam.equivalence import compare_forms
    from ...reparam.fusion import BLOCK_BOUNDS

    model, weights = built(args)
    report = compare_forms(model)
    dtype = next(iter(model.parameters())).numpy().dtype.name
    bound = BLOCK_BOUNDS[dtype] if args.bound is None else args.bound
    rows = [*report.blocks, report.end_to_end]
    above = [row.name for row in rows if not row.relative <= bound]
    facts = {
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
    show(args, facts, lines(facts, every=args.blocks))
    return int(bool(above))


def built(args: argparse.Namespace) -> Any:
    """The network in its train form, and where its weights are from."""
    from ...builder import create
    from .fetch import fetched

    if is_path(args.model):
        from ...checkpoints import load_checkpoint
        from ...checkpoints.identify import identify_variant

        spec = identify_variant(load_checkpoint(Path(args.model)))
        return create(spec.name, checkpoint=args.model), args.model
    from ...registry.api import find_model
    from ...registry.names import find_checkpoint

    spec, tag = find_model(args.model)
    if tag is None and not args.pretrained:
        return create(spec.name), None
    checkpoint = find_checkpoint(spec, tag)
    fetched(checkpoint.file, args)  # with this command's options; create then finds it in the cache
    return create(spec.name, pretrained=checkpoint.tag), checkpoint.name


def lines(facts: Dict[str, Any], every: bool) -> List[str]:
    """The verdict, then the blocks."""
    weights: Optional[str] = facts["weights"]
    blocks = list(facts["blocks"])
    shown = blocks if every else sorted(blocks, key=lambda block: block.relative, reverse=True)[:3]
    rows = [
        [row.name, f"{row.relative:.1e}", f"{row.max_abs:.1e}", f"{row.scale:.1e}"]
        for row in [*shown, facts["end_to_end"]]
    ]
    verdict = (
        paint(f"both forms agree within {facts['bound']:g}", "green")
        if facts["within_bound"]
        else paint(f"{len(facts['above'])} of {len(blocks) + 1} are above {facts['bound']:g}", "red")
    )
    size = facts["inputs"][-1]
    origin = "random weights (--pretrained takes trained ones)" if weights is None else f"weights of {weights}"
    what = f"{len(blocks)} blocks" if every else f"the worst of {len(blocks)} blocks"
    return [
        f"{facts['name']}, {origin},",
        f"{facts['dtype']}, two random images of {size} x {size}",
        f"{verdict}; {what}, and the whole:",
        "",
        *table(["block", "relative", "max abs", "scale"], rows, right=["relative", "max abs", "scale"]),
    ]
