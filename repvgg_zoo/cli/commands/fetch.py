"""repvgg-zoo fetch: download checkpoints into the cache, verified."""

from __future__ import annotations

import argparse
from typing import Any, Dict

from ...registry.api import find_default_checkpoint
from ..common import add_checkpoint_names, fetch, try_each
from ..console import Result, print_path

HELP = """
Downloads checkpoints that are not in the cache yet, verifies them, and prints
the path of each file. An interrupted download is resumed by the next call.
Mirrors, proxies and the location of the cache are set by environment variables,
see docs/guides/downloads.md.

A NAME that cannot be fetched does not stop the others; its error is reported at
the end, and has the exit code.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo fetch --offline RepVGG_N0.digits",
    'ls -l "$(repvgg-zoo fetch RepVGG_N0)"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_names(parser)


def run(args: argparse.Namespace) -> Result:
    checkpoints = {name: find_default_checkpoint(name) for name in args.names}  # no download if a name is unknown

    def fetch_one(name: str) -> Dict[str, Any]:
        checkpoint = checkpoints[name]
        path = fetch(checkpoint.file, args)
        integrity = checkpoint.file.integrity
        return {"name": checkpoint.name, "path": path, "size": path.stat().st_size, "integrity": integrity}

    def show(row: Dict[str, Any]) -> None:
        if not args.json:
            print_path(row["path"])  # at once, as the next one may take minutes

    rows, failures = try_each(args.names, fetch_one, done=show)
    return Result(rows, lambda _: [], failures=failures)
