"""repvgg-zoo bundle: checkpoints carried to a machine without internet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from ...errors import UnverifiedError
from ...hub import bundle
from ...hub.progress import format_size
from ...registry.api import find_default_checkpoint
from ...registry.specs import FileSpec
from ..console import count, show, table
from ..parser import run_action
from .fetch import add_names, fetched

HELP = """
A bundle is a folder, or one .zip file, with checkpoints, their descriptions and
their digests, and no code. Pack it where the internet is, carry it over, unpack
it there into the cache. The folder is also a mirror and a cache as it stands.
"""
EXAMPLES = (
    "repvgg-zoo bundle pack zoo.zip RepVGG_N0",
    "repvgg-zoo bundle show zoo.zip",
    "repvgg-zoo bundle unpack zoo.zip",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    pack = actions.add_parser("pack", help="make a bundle, fetching what is not in the cache")
    pack.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a new file that ends in .zip")
    add_names(pack)
    pack.set_defaults(action_run=run_pack)
    unpack = actions.add_parser("unpack", help="bring a bundle's files into the cache; all of them, or none")
    unpack.add_argument("--allow-unverified", action="store_true", default=None, help="trust who made the bundle")
    unpack.set_defaults(action_run=run_unpack)
    shown = actions.add_parser("show", help="what a bundle holds, without reading its files")
    shown.set_defaults(action_run=run_show)
    for action in (unpack, shown):
        action.add_argument("path", type=Path, metavar="BUNDLE", help="the folder or .zip file")


run = run_action


def run_pack(args: argparse.Namespace) -> int:
    path = packed(args.out, args)
    files = described(bundle.read_bundle(path))
    lines = [
        *listing(files),
        f"packed into {path}; on the other machine: repvgg-zoo bundle unpack {path.name}",
    ]
    show(args, {"path": path, "files": files}, lines)
    return 0


def packed(out: Path, args: argparse.Namespace) -> Path:
    """A new bundle of the named checkpoints, under the command's fetching options."""
    chosen: Dict[str, FileSpec] = {}
    for name in args.names:
        checkpoint = find_default_checkpoint(name)
        chosen[checkpoint.name] = checkpoint.file
    return bundle.pack(chosen, out, fetch=lambda file: fetched(file, args))


def run_unpack(args: argparse.Namespace) -> int:
    try:
        done = bundle.unpack(args.path, allow_unverified=args.allow_unverified)
    except UnverifiedError as error:
        error.hint = "if you trust who made it, add --allow-unverified"
        raise
    show(args, {"files": done}, [f"{name}  {path}" for name, path in done.items()])
    return 0


def run_show(args: argparse.Namespace) -> int:
    files = described(bundle.read_bundle(args.path))
    show(args, {"path": args.path, "files": files}, listing(files))
    return 0


def described(found: bundle.Bundle) -> List[Dict[str, Any]]:
    """A bundle's files for a program."""
    return [
        {
            "name": name,
            "file": one.file.name,
            "stored": one.filename,
            "size": one.size,
            "sha256": one.sha256,
            "integrity": one.file.integrity,
        }
        for name, one in found.files.items()
    ]


def listing(files: Sequence[Mapping[str, Any]]) -> List[str]:
    """The files as a table."""
    rows = [[one["name"], format_size(one["size"]), one["integrity"], f"{one['sha256'][:16]}..."] for one in files]
    total = f"{count(len(files), 'file')}, {format_size(sum(one['size'] for one in files))}"
    return [*table(["name", "size", "integrity", "sha256"], rows, right=["size"]), total]
