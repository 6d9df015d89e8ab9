"""repvgg-zoo features: the pooled features of images, for search, clustering, or a head of your own."""

from __future__ import annotations

import argparse

from ..common import add_fetch_options
from ..console import Result
from ..run_options import add_run_options, run_job, run_result

HELP = """
Writes the pooled features of each image into FOLDER: the CSV of a shard has a
row for each image, its .npy the features, in the same order. Images that cannot
be read have NaN there, and the reason in their row; the exit code is 1 then. The
same command again continues a run that was interrupted.
"""
EXAMPLES = (
    "repvgg-zoo features RepVGG_N0 digits --output features",
    "repvgg-zoo features RepVGG_N0 digits --output features-2 --part 1/2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME|FILE", help="a variant (its default checkpoint), NAME.TAG, or a file")
    parser.add_argument("data", nargs="+", metavar="DATA", help="a folder of images, or tar files, or URLs of those")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="a folder, or a URL such as s3://bucket/run-1"
    )
    add_run_options(parser)
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    return run_result(run_job("features", args.model, args.data, args))
