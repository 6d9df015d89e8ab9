"""repvgg-zoo list: the variants, or all checkpoints, as a table."""

from __future__ import annotations

import argparse
import fnmatch
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ...registry.api import full_registry, list_models, model_info, top1
from ...registry.names import natural_key, normalize_name, suggestions
from ...registry.specs import IMAGENET, CheckpointSpec, ModelSpec
from ..console import Prose, Result, style, table
from ..parser import closest

HELP = """
Lists the variants that pass all filters, with the cost of their deploy form and
the size and top-1 of their default checkpoint, as its publisher states it. With
--checkpoints each checkpoint has a row. A PATTERN is a name or a wildcard;
case, "-" and "_" do not matter, and RepVGG may be left out. To search other
properties see repvgg-zoo search.
"""
EXAMPLES = (
    "repvgg-zoo list",
    "repvgg-zoo list 'B1*' D2se",
    "repvgg-zoo list --min-top1 75 --max-macs 5G --sort macs",
    "repvgg-zoo list --pareto",
    "repvgg-zoo list 'A*' --checkpoints --sort top1",
    "repvgg-zoo list --tag timm --exclude '*g4' --json",
)
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
INTEGRITY = {"sha256": "sha256", "sha256_prefix": "prefix", "none": "none"}
BYTES_PER_PARAMETER = 4  # every published checkpoint is of float32
INTEGRITY_NOTE = (
    "Digest: the whole SHA-256 is known, or a prefix of it, or none, in which case the file is refused unless you "
    'allow it. A size with "~" is not published and estimated from the number of parameters.'
)

Row = Dict[str, Any]
# How to sort, and whether the largest comes first. Rows without a value come last.
SORT_KEYS: Mapping[str, Tuple[Callable[[Row], Any], bool]] = {
    "name": (lambda row: natural_key(row["name"]), False),
    "params": (lambda row: row["params"], False),
    "macs": (lambda row: row["macs"], False),
    "top1": (lambda row: row["top1"], True),
    "size": (lambda row: row["size"] or row["estimated_size"], False),
}


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
    parser.add_argument("--checkpoints", action="store_true", help="a row for each checkpoint, with its own top-1")
    parser.add_argument(
        "--sort",
        choices=tuple(SORT_KEYS),
        default="name",
        metavar="KEY",
        help=f"{', '.join(SORT_KEYS)}; the best top-1 comes first, else the smallest (default: name)",
    )
    parser.add_argument("--reverse", action="store_true", help="sort the other way round")


def run(args: argparse.Namespace) -> Result:
    names = list_models(
        args.patterns or None,
        exclude=args.exclude,
        pretrained=args.tag or (True if args.pretrained or args.checkpoints else None),
        min_top1=None if args.checkpoints else args.min_top1,
        max_params=args.max_params,
        max_macs=args.max_macs,
    )
    models = [model_info(name) for name in names]
    front = pareto_front(models)
    models = [model for model in models if model.name in front or not args.pareto]
    if args.checkpoints:
        tag = normalize_name(args.tag or "*")
        rows = [
            checkpoint_to_dict(model, checkpoint)
            for model in models
            for checkpoint in model.checkpoints
            if fnmatch.fnmatchcase(normalize_name(checkpoint.tag), tag)
            if args.min_top1 is None or (checkpoint.top1 or 0.0) >= args.min_top1
        ]
        result = Result(sort(rows, args.sort, args.reverse), render_checkpoints)
    else:
        rows = [to_dict(model, model.name in front) for model in models]
        result = Result(sort(rows, args.sort, args.reverse), render)
    return result if rows else result._replace(render=lambda _: [describe_no_rows(args)])


def describe_no_rows(args: argparse.Namespace) -> str:
    """Return what is printed instead of an empty table, with what a name or tag that nothing has may mean."""
    registry = full_registry()
    unknown = [pattern for pattern in args.patterns if not list_models(pattern)]
    close = [name for pattern in unknown for name in suggestions(registry, pattern)]
    tags = sorted({checkpoint.tag for model in registry.models for checkpoint in model.checkpoints})
    if args.tag is not None and not list_models(pretrained=args.tag):
        tag = closest(args.tag, tags)
        close += [] if tag is None else [f"--tag {tag}"]
    hint = f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""
    return f"no {'checkpoint' if args.checkpoints else 'variant'} passes these filters{hint}"


def sort(rows: Iterable[Row], key: str, reverse: bool) -> List[Row]:
    """Return the rows in the order of a key; those of the same value stay in their order."""
    value, largest_first = SORT_KEYS[key]
    rows = list(rows)
    with_value = [row for row in rows if value(row) is not None]
    ordered = sorted(with_value, key=value, reverse=largest_first != reverse)
    return ordered + [row for row in rows if value(row) is None]


def to_dict(model: ModelSpec, on_pareto_front: bool) -> Row:
    """Return a variant as data."""
    default = None if model.default is None else model.checkpoint(model.default)
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
        "size": None if default is None else default.file.size,
        "estimated_size": None if default is None else estimated_size(model, default),
        "integrity": None if default is None else default.file.integrity,
        "checkpoints": [checkpoint.tag for checkpoint in model.checkpoints],
        "no_weights": model.no_weights,
        "pareto": on_pareto_front,
    }


def checkpoint_to_dict(model: ModelSpec, checkpoint: CheckpointSpec) -> Row:
    """Return a checkpoint as data; ``params`` and ``macs`` are those of its variant's deploy form."""
    return {
        "name": checkpoint.name,
        "variant": model.name,
        "tag": checkpoint.tag,
        "is_default": checkpoint.tag == model.default,
        "publisher": checkpoint.publisher,
        "top1": checkpoint.top1,
        "top5": checkpoint.top5,
        "image_size": checkpoint.preprocessing.image_size,
        "dataset": checkpoint.dataset,
        "num_classes": checkpoint.num_classes,
        "params": model.params.deploy,
        "macs": model.macs.deploy,
        "size": checkpoint.file.size,
        "estimated_size": estimated_size(model, checkpoint),
        "integrity": checkpoint.file.integrity,
        "license": checkpoint.license,
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "form": checkpoint.form,
    }


def estimated_size(model: ModelSpec, checkpoint: CheckpointSpec) -> int:
    """Return roughly how many bytes the file of a checkpoint has; few publishers state it."""
    return BYTES_PER_PARAMETER * int(getattr(model.params, checkpoint.form))


def render(rows: Sequence[Row]) -> List[str]:
    """Return the table of variants, and an explanation of its columns."""
    heads = ["name", "params", "MACs", "px", "top-1", "at px", "default", "digest", "size"]
    cells = [
        [
            row["name"],
            format_count(row["params"]),
            format_count(row["macs"]),
            str(row["image_size"]),
            format_percent(row["top1"]),
            str(row["top1_image_size"] or "-"),
            row["default"] or "-",
            "-" if row["integrity"] is None else INTEGRITY[row["integrity"]],
            format_download_size(row),
        ]
        for row in rows
    ]
    note = "Costs are those of the deploy form; top-1 is stated by the publisher of the default checkpoint."
    lines = table(heads, cells, right=[*heads[1:6], "size"])
    return [*lines, "", Prose(style(f"{note} {INTEGRITY_NOTE}", "dim"))]


def render_checkpoints(rows: Sequence[Row]) -> List[str]:
    """Return the table of checkpoints, and an explanation of its columns."""
    heads = ["name", "top-1", "top-5", "px", "digest", "size", "license"]
    cells = [
        [
            row["name"],
            format_percent(row["top1"]),
            format_percent(row["top5"]),
            str(row["image_size"]),
            INTEGRITY[row["integrity"]],
            format_download_size(row),
            row["license"],
        ]
        for row in rows
    ]
    note = "Top-1 and top-5 are stated by the publisher, for images of px."
    lines = table(heads, cells, right=[*heads[1:4], "size"])
    return [*lines, "", Prose(style(f"{note} {INTEGRITY_NOTE}", "dim"))]


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


def format_percent(value: Optional[float]) -> str:
    """Return an accuracy as papers write it, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def format_download_size(row: Row) -> str:
    """Return the size of a row's file in MB, with "~" if it is estimated, or a dash.

    >>> from repvgg_zoo.cli.commands.list import format_download_size
    >>> format_download_size({"size": 36_600_000, "estimated_size": 36_400_000})
    '37 MB'
    >>> format_download_size({"size": None, "estimated_size": 36_400_000})
    '~36 MB'
    """
    size = row["size"] or row["estimated_size"]
    return "-" if size is None else f"{'' if row['size'] else '~'}{size / 1e6:.0f} MB"


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
