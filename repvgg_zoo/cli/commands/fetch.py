"""repvgg-zoo fetch: download checkpoints into the cache, verified."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List

from ...registry.api import find_default_checkpoint
from ..common import add_checkpoint_names, fetch
from ..console import Result, print_path

HELP = """
Downloads checkpoints that are not in the cache yet, verifies them, and prints
the path of each file. An interrupted download is resumed by the next call.
Mirrors, proxies and the location of the cache are set by environment variables,
see docs/guides/downloads.md.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo fetch --offline RepVGG_N0.digits",
    'ls -l "$(repvgg-zoo fetch RepVGG_N0)"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_names(parser)


def run(args: argparse.Namespace) -> Result:
    checkpoints = [find_default_checkpoint(name) for name in args.names]  # an unknown name fails before any download
    rows: List[Dict[str, Any]] = []
    for checkpoint in checkpoints:
        path = fetch(checkpoint.file, args)
        size, integrity = path.stat().st_size, checkpoint.file.integrity
        rows.append({"name": checkpoint.name, "path": path, "size": size, "integrity": integrity})
        if not args.json:
            print_path(path)  # at once, as the next one may take minutes
    return Result(rows, lambda _: [])
