"""The options with which a command runs on many cores or machines, and what it prints then."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Sequence, Tuple

from .._text import pluralize
from ..errors import ArgumentError
from ..registry.model_or_file import find_model_or_file
from .common import fetch_model
from .console import Result, style

if TYPE_CHECKING:
    from ..data.runner import RunReport

# Each with its metavar, its help and how it is parsed, by the name of the argument of ``repvgg_zoo.run``.
OPTIONS: Mapping[str, Tuple[str, str, Dict[str, Any]]] = {
    "engine": ("ENGINE", "processes (default), ray or dask", {"choices": ("processes", "ray", "dask")}),
    "workers": ("N", "how many, a core each (default: all cores)", {"type": int}),
    "address": ("ADDRESS", "of the Ray or Dask cluster; ray: auto for this machine's", {}),
    "part": ("K/N", "every Nth shard from the Kth, for job arrays; 1/N to N/N", {}),
    "format": ("FORMAT", "csv (default) or parquet", {"choices": ("csv", "parquet")}),
    "shard_size": ("N", "images of a shard of a folder (default: 1000)", {"type": int}),
}


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run."""
    group = parser.add_argument_group("many cores or machines", "the same command again continues a run")
    for name, (metavar, text, keywords) in OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text, **keywords)


def run_options(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the options of a run that the command line has, by the name of the argument."""
    return {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}


def check_no_run_options(args: argparse.Namespace) -> None:
    """Raise ArgumentError if there is an option that needs ``--output``."""
    for name in run_options(args):
        option = f"--{name.replace('_', '-')}"
        raise ArgumentError(f"{option} needs an output folder", actual=option, hint="add --output FOLDER")


def run_job(job: str, model: str, sources: Sequence[str], args: argparse.Namespace, **options: Any) -> RunReport:
    """Run a job into the folder ``args.output``, with the options of the command line and others."""
    from ..data.runner import run

    fetch_model(find_model_or_file(model), args)
    data = sources[0] if len(sources) == 1 else sources
    return run(job, data, args.output, model=model, **run_options(args), **options)


def run_result(report: RunReport) -> Result:
    """Return what a command prints of a run; exit code 1 if images could not be read."""
    evaluation = report.evaluation
    payload = {
        **vars(report),
        "first_errors": [{"key": key, "error": why} for key, why in report.first_errors],
        "evaluation": None if evaluation is None else evaluation.to_dict(),
    }

    def render(_: Any) -> List[str]:
        lines = [str(report), *(() if evaluation is None else str(evaluation).splitlines())]
        lines += [style(f"{key}: {why}", "red") for key, why in report.first_errors]
        if report.errors > len(report.first_errors):
            lines.append(style(f"... {pluralize(report.errors, 'image')} in all, each named in its row", "red"))
        return lines

    return Result(payload, render, int(report.errors > 0))
