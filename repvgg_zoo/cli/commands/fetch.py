"""repvgg-zoo fetch: download checkpoints into the cache, verified."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Mapping

from ...errors import ArgumentError
from ...hub.copy import copy_to_folder
from ...hub.filenames import sanitize_filename
from ...registry.api import find_default_checkpoint
from ...registry.specs import CheckpointSpec
from ..common import add_checkpoint_names, fetch_with_digest, try_each
from ..console import Result, print_path

HELP = """
Downloads checkpoints that are not in the cache yet, verifies them, and prints
the path of each file. An interrupted download is resumed by the next call.
Mirrors, proxies and the location of the cache are set by environment variables,
see docs/guides/downloads.md.

--to copies the files into a folder as well, under their publishers' names, and
prints those paths. A file that is there is left alone if it is equal, and
otherwise not overwritten without --force.

A NAME that cannot be fetched does not stop the others; its error is reported at
the end, and has the exit code.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo fetch --offline RepVGG_N0.digits",
    "repvgg-zoo fetch RepVGG_N0 --to weights",
    'ls -l "$(repvgg-zoo fetch RepVGG_N0)"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_names(parser)
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="copy the files into this folder, which is created")
    parser.add_argument("--force", action="store_true", help="overwrite other files of the same names in FOLDER")


def run(args: argparse.Namespace) -> Result:
    checkpoints = {name: find_default_checkpoint(name) for name in args.names}  # no download if a name is unknown
    if args.to is not None:
        refuse_equal_names(checkpoints)

    def fetch_one(name: str) -> Dict[str, Any]:
        checkpoint = checkpoints[name]
        verified = fetch_with_digest(checkpoint.file, args)
        path = verified.path
        if args.to is not None:
            path = copy_to_folder(verified, checkpoint.file, args.to.expanduser(), force=args.force)
        integrity = checkpoint.file.integrity
        return {"name": checkpoint.name, "path": path, "size": path.stat().st_size, "integrity": integrity}

    def show(row: Dict[str, Any]) -> None:
        if not args.json:
            print_path(row["path"])  # at once, as the next one may take minutes

    rows, failures = try_each(args.names, fetch_one, done=show)
    return Result(rows, lambda _: [], failures=failures)


def refuse_equal_names(checkpoints: Mapping[str, CheckpointSpec]) -> None:
    """Raise ArgumentError if files of different checkpoints have the same name, such as model.safetensors."""
    owners: Dict[str, CheckpointSpec] = {}
    for checkpoint in checkpoints.values():
        name = sanitize_filename(checkpoint.file.name)
        owner = owners.setdefault(name.lower(), checkpoint)
        if owner.file != checkpoint.file:
            raise ArgumentError(
                f"the files of {owner.name} and {checkpoint.name} have the same name, {name}",
                actual=name,
                hint="one command and one folder for each",
            )
