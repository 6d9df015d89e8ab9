"""repvgg-zoo evaluate: the accuracy of a network on labeled images, beside the one that its publisher states."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

from ...errors import ArgumentError
from ...registry.model_or_file import find_model_or_file
from ..common import add_fetch_options, fetch_model
from ..console import Result, print_error
from ..megengine_setup import default_to_cpu
from ..run_options import add_run_options, check_no_run_options, run_job, run_options, run_result

HELP = """
Evaluates a network on labeled images: a folder with a folder for each class, a
folder and --labels, or .tar files in webdataset's convention; URLs of these as
well, where megfile is installed. Labels are class names, WordNet synsets or
indices, and are matched by name, never by the order of folders.

With --output, a CSV file gets a row for each image, and a run that was
interrupted continues when the same command is run again. An image that cannot
be read ends the command with exit code 2, unless it is to be skipped.

With --engine, --workers or --part as well, OUT is a folder, which gets a file of
rows for each shard of the images, from many cores or machines.
"""
EXAMPLES = (
    "repvgg-zoo evaluate RepVGG_N0 digits",
    "repvgg-zoo evaluate RepVGG_N0 digits --output rows.csv --confusion x.png",
    "repvgg-zoo evaluate n0 flat --labels labels.csv --on-error skip --json",
    "repvgg-zoo evaluate n0 digits --output rows --workers 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...data.engine import BATCH_SIZE, ON_ERROR

    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file, or NAME or NAME.TAG of the registry")
    parser.add_argument("data", nargs="+", metavar="DATA", help="a folder, .tar files ('val-{00..49}.tar'), or URLs")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="file names in DATA and their labels")
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="names of the network's classes, in the order of the logits"
    )
    parser.add_argument("--output", metavar="OUT", help="write a row for each image to this CSV file")
    parser.add_argument("--confusion", type=Path, metavar="FIGURE", help="draw the confusion matrix: .png, .svg, .pdf")
    parser.add_argument(
        "--on-error", choices=ON_ERROR, default="error", help="for images that cannot be read (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="of each thread (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT, and start over")
    add_run_options(parser)
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    target = find_model_or_file(args.source)
    from ...data.confusion_figure import check_figure_path
    from ...data.evaluation import evaluate, read_class_names
    from ...data.progress import image_progress

    if args.confusion is not None:
        check_figure_path(args.confusion)
    class_names = None if args.class_names is None else read_class_names(args.class_names.expanduser())
    if run_options(args):
        return evaluate_shards(args, class_names)
    model = fetch_model(target, args)
    default_to_cpu()
    report = evaluate(
        model,
        args.data[0] if len(args.data) == 1 else args.data,
        labels=args.labels,
        class_names=class_names,
        output=args.output,
        overwrite=args.force,
        on_error=args.on_error,
        threads=args.threads,
        batch_size=args.batch_size,
        progress=image_progress(None, write=print_error),
    )
    if args.confusion is not None:
        report.plot_confusion(args.confusion)
    payload = {**report.to_dict(), "output": args.output, "figure": args.confusion}
    return Result(payload, lambda payload: render(payload, str(report)))


def evaluate_shards(args: argparse.Namespace, class_names: Optional[Sequence[str]]) -> Result:
    """Evaluate on many cores or machines, into the folder OUT."""
    if args.output is None:
        check_no_run_options(args)
    for option in ("threads", "force"):
        if getattr(args, option):
            raise ArgumentError(
                f"--{option} is not for runs on many cores or machines",
                actual=f"--{option}",
                hint="a worker has one thread, and another folder starts over",
            )
    options = {"labels": args.labels, "class_names": class_names, "on_error": args.on_error}
    report = run_job("evaluate", args.source, args.data, args, batch_size=args.batch_size, **options)
    if args.confusion is not None and report.evaluation is not None:
        report.evaluation.plot_confusion(args.confusion)
    return run_result(report)


def render(payload: Mapping[str, Any], report: str) -> List[str]:
    """Return the summary, the skipped images, and the files that were written."""
    lines = report.split("\n")
    lines += [f"skipped: {item['key']}: {item['reason']}" for item in payload["skipped"]]
    return [*lines, *(f"wrote {payload[name]}" for name in ("output", "figure") if payload[name] is not None)]
