"""repvgg-zoo list: the variants as a table."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Optional, Sequence

from ...registry.api import list_models, model_info, top1
from ...registry.specs import ModelSpec
from ..console import paint, show, table

HELP = """
The variants that pass every filter, with the cost of their deploy form and the
top-1 of the checkpoint that pretrained=True takes, as its publisher states it.
A PATTERN is a name or a wildcard, compared without case, "-" and "_", with or
without RepVGG.
"""
EXAMPLES = (
    "repvgg-zoo list",
    "repvgg-zoo list 'B1*' D2se",
    "repvgg-zoo list --min-top1 75 --max-macs 5G",
    "repvgg-zoo list --pareto",
    "repvgg-zoo list --tag timm --exclude '*g4' --json",
)
SCALES = {"k": 1e3, "m": 1e6, "g": 1e9}
INTEGRITY = {"sha256": "sha256", "sha256_prefix": "prefix", "none": "none"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="names or wildcards; all variants without any")
    parser.add_argument("--exclude", action="append", metavar="PATTERN", help="leave these out")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="only variants that have weights")
    weights.add_argument("--tag", metavar="TAG", help="only variants with a checkpoint of this tag (or wildcard)")
    parser.add_argument("--min-top1", type=float, metavar="PERCENT", help="of the default checkpoint, else the paper's")
    parser.add_argument("--max-params", type=number, metavar="N", help="of the deploy form; 10M is ten million")
    parser.add_argument("--max-macs", type=number, metavar="N", help="of the deploy form, for one image; 5G, 800M")
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="only the front of top-1 against MACs: no other variant, on the same data, is both as good and as cheap",
    )


def run(args: argparse.Namespace) -> int:
    names = list_models(
        args.patterns or None,
        exclude=args.exclude,
        pretrained=args.tag or (True if args.pretrained else None),
        min_top1=args.min_top1,
        max_params=args.max_params,
        max_macs=args.max_macs,
    )
    models = [model_info(name) for name in names]
    on_front = front(models)
    if args.pareto:
        models = [model for model in models if model.name in on_front]
    show(args, [facts(model, model.name in on_front) for model in models], lines(models))
    return 0


def facts(model: ModelSpec, on_front: bool) -> Dict[str, Any]:
    """One variant for a program."""
    return {
        "name": model.name,
        "family": model.family,
        "params": model.params.deploy,
        "macs": model.macs.deploy,
        "image_size": model.architecture.image_size,
        "num_classes": model.architecture.num_classes,
        "top1": top1(model),
        "top1_image_size": top1_size(model),
        "top1_stated_by": stated_by(model),
        "default": model.default,
        "integrity": None if model.default is None else model.checkpoint(model.default).file.integrity,
        "checkpoints": [checkpoint.tag for checkpoint in model.checkpoints],
        "no_weights": model.no_weights,
        "pareto": on_front,
    }


def lines(models: Sequence[ModelSpec]) -> List[str]:
    """The table, and what its columns mean."""
    if not models:
        return ["no variant passes these filters"]
    heads = ["name", "params", "MACs", "px", "top-1", "at px", "default", "integrity"]
    rows = []
    for model in models:
        accuracy, size = top1(model), top1_size(model)
        checkpoint = None if model.default is None else model.checkpoint(model.default)
        rows.append(
            [
                model.name,
                short(model.params.deploy),
                short(model.macs.deploy),
                f"{model.architecture.image_size}",
                "-" if accuracy is None else f"{accuracy:.2f}",
                "-" if size is None else f"{size}",
                "-" if checkpoint is None else checkpoint.tag,
                "-" if checkpoint is None else INTEGRITY[checkpoint.file.integrity],
            ]
        )
    notes = [
        "Cost is the deploy form's; top-1 is stated by the publisher of the default",
        "checkpoint. Integrity: sha256 is known in full; of a prefix only the first",
        "digits are; with none the file is refused until you allow it.",
    ]
    return [*table(heads, rows, right=heads[1:6]), "", *(paint(note, "dim") for note in notes)]


def front(models: Sequence[ModelSpec]) -> List[str]:
    """The names on the Pareto front of top-1 against the MACs at which it was measured.

    Variants whose top-1 is of other data (digits, ImageNet) do not compete. A top-1 that was measured at another image
    size than the registry's MACs is held against those of its own size: convolutions cost as the image's area.
    """
    points = []
    for model in models:
        accuracy, size = top1(model), top1_size(model)
        if accuracy is not None and size is not None:
            cost = model.macs.deploy * (size / model.architecture.image_size) ** 2
            points.append((model.name, dataset(model), accuracy, cost))
    return [
        name
        for name, data, accuracy, cost in points
        if not any(
            other == data and better >= accuracy and cheaper <= cost and (better, cheaper) != (accuracy, cost)
            for _, other, better, cheaper in points
        )
    ]


def top1_size(model: ModelSpec) -> Optional[int]:
    """The image size at which the variant's top-1 was measured."""
    if top1(model) is None:
        return None
    if stated_by(model) == "paper":
        return None if model.paper is None else model.paper.image_size
    return model.checkpoint(str(model.default)).preprocessing.image_size


def dataset(model: ModelSpec) -> str:
    """What the variant's top-1 was measured on; the paper's figures are of ImageNet-1k."""
    return "ImageNet-1k" if model.default is None else model.checkpoint(model.default).dataset


def stated_by(model: ModelSpec) -> Optional[str]:
    """Who states the variant's top-1: a publisher, or the paper."""
    if top1(model) is None:
        return None
    checkpoint = None if model.default is None else model.checkpoint(model.default)
    return "paper" if checkpoint is None or checkpoint.top1 is None else checkpoint.publisher


def short(number: int) -> str:
    """A count as the tables of papers write it.

    >>> from repvgg_zoo.cli.commands.list import short
    >>> short(8_309_384), short(1_360_600_000)
    ('8.31M', '1.36G')
    """
    return f"{number / 1e9:.2f}G" if number >= 1e9 else f"{number / 1e6:.2f}M"


def number(text: str) -> int:
    """A count that may end in k, M or G.

    >>> from repvgg_zoo.cli.commands.list import number
    >>> number("1.5G")
    1500000000
    """
    scale = SCALES.get(text[-1:].lower(), 1.0)
    return round(float(text[:-1] if scale > 1 else text) * scale)
