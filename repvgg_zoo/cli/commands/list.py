"""repvgg-zoo list: the variants as a table."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Optional, Sequence

from ...registry.api import list_models, model_info, top1
from ...registry.specs import IMAGENET, ModelSpec
from ..console import Result, style, table

HELP = """
Lists the variants that pass all filters, with the cost of their deploy form and
the top-1 of their default checkpoint, as its publisher states it. A PATTERN is
a name or a wildcard; case, "-" and "_" do not matter, and RepVGG may be left
out.
"""
EXAMPLES = (
    "repvgg-zoo list",
    "repvgg-zoo list 'B1*' D2se",
    "repvgg-zoo list --min-top1 75 --max-macs 5G",
    "repvgg-zoo list --pareto",
    "repvgg-zoo list --tag timm --exclude '*g4' --json",
)
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
INTEGRITY = {"sha256": "sha256", "sha256_prefix": "prefix", "none": "none"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="names or wildcards (default: all variants)")
    parser.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these out")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="only variants with weights")
    weights.add_argument("--tag", metavar="TAG", help="only variants with a checkpoint of this tag (or wildcard)")
    parser.add_argument("--min-top1", type=float, metavar="PERCENT", help="of the default checkpoint, or the paper")
    parser.add_argument("--max-params", type=parse_count, metavar="N", help="of the deploy form; 10M is ten million")
    parser.add_argument("--max-macs", type=parse_count, metavar="N", help="of the deploy form, for one image; 5G, 800M")
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="only the Pareto front of top-1 and MACs: variants that no other one, on the same dataset, beats in both",
    )


def run(args: argparse.Namespace) -> Result:
    names = list_models(
        args.patterns or None,
        exclude=args.exclude,
        pretrained=args.tag or (True if args.pretrained else None),
        min_top1=args.min_top1,
        max_params=args.max_params,
        max_macs=args.max_macs,
    )
    models = [model_info(name) for name in names]
    front = pareto_front(models)
    rows = [to_dict(model, model.name in front) for model in models]
    return Result([row for row in rows if row["pareto"] or not args.pareto], render)


def to_dict(model: ModelSpec, on_pareto_front: bool) -> Dict[str, Any]:
    """Return a variant as data."""
    return {
        "name": model.name,
        "family": model.family,
        "params": model.params.deploy,
        "macs": model.macs.deploy,
        "image_size": model.architecture.image_size,
        "num_classes": model.architecture.num_classes,
        "top1": top1(model),
        "top1_image_size": top1_image_size(model),
        "top1_stated_by": top1_stated_by(model),
        "default": model.default,
        "integrity": None if model.default is None else model.checkpoint(model.default).file.integrity,
        "checkpoints": [checkpoint.tag for checkpoint in model.checkpoints],
        "no_weights": model.no_weights,
        "pareto": on_pareto_front,
    }


def render(rows: Sequence[Dict[str, Any]]) -> List[str]:
    """Return the table, and an explanation of its columns."""
    if not rows:
        return ["no variant passes these filters"]
    heads = ["name", "params", "MACs", "px", "top-1", "at px", "default", "integrity"]
    cells = [
        [
            row["name"],
            format_count(row["params"]),
            format_count(row["macs"]),
            str(row["image_size"]),
            "-" if row["top1"] is None else f"{row['top1']:.2f}",
            str(row["top1_image_size"] or "-"),
            row["default"] or "-",
            "-" if row["integrity"] is None else INTEGRITY[row["integrity"]],
        ]
        for row in rows
    ]
    notes = [
        "Costs are those of the deploy form; top-1 is stated by the publisher of the",
        "default checkpoint. Integrity: the whole SHA-256 is known, or a prefix of it, or",
        "none, in which case the file is refused unless you allow it.",
    ]
    return [*table(heads, cells, right=heads[1:6]), "", *(style(note, "dim") for note in notes)]


def pareto_front(models: Sequence[ModelSpec]) -> List[str]:
    """Return the names on the Pareto front of top-1 and the MACs at the image size of that top-1.

    Only variants whose top-1 is of the same dataset are compared. Where it was measured at another image size than the
    registry's MACs, these are scaled: the cost of convolutions is proportional to the area of the image.
    """
    entries = []
    for model in models:
        accuracy, size = top1(model), top1_image_size(model)
        if accuracy is not None and size is not None:
            macs = model.macs.deploy * (size / model.architecture.image_size) ** 2
            entries.append((model.name, dataset(model), accuracy, macs))
    return [
        name
        for name, data, accuracy, macs in entries
        if not any(
            other == data and better >= accuracy and cheaper <= macs and (better, cheaper) != (accuracy, macs)
            for _, other, better, cheaper in entries
        )
    ]


def top1_image_size(model: ModelSpec) -> Optional[int]:
    """Return the image size at which the variant's top-1 was measured."""
    if top1(model) is None:
        return None
    if top1_stated_by(model) == "paper":
        return None if model.paper is None else model.paper.image_size
    return model.checkpoint(str(model.default)).preprocessing.image_size


def dataset(model: ModelSpec) -> str:
    """Return the dataset of the variant's top-1; the paper's is ImageNet-1k."""
    return IMAGENET if model.default is None else model.checkpoint(model.default).dataset


def top1_stated_by(model: ModelSpec) -> Optional[str]:
    """Return who states the variant's top-1: a publisher, or the paper."""
    if top1(model) is None:
        return None
    checkpoint = None if model.default is None else model.checkpoint(model.default)
    return "paper" if checkpoint is None or checkpoint.top1 is None else checkpoint.publisher


def format_count(number: int) -> str:
    """Return a count as papers write it.

    >>> from repvgg_zoo.cli.commands.list import format_count
    >>> format_count(8_309_384), format_count(1_360_600_000)
    ('8.31M', '1.36G')
    """
    return f"{number / 1e9:.2f}G" if number >= 1e9 else f"{number / 1e6:.2f}M"


def parse_count(text: str) -> int:
    """Return a count that may end in k, M or G as an integer.

    >>> from repvgg_zoo.cli.commands.list import parse_count
    >>> parse_count("1.5G")
    1500000000
    """
    scale = UNITS.get(text[-1:].lower(), 1.0)
    try:
        return round(float(text[:-1] if scale > 1 else text) * scale)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid count, such as 800M or 5G") from None
