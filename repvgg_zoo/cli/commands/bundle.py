"""repvgg-zoo bundle: copy checkpoints to machines without internet, or serve them as a mirror."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Sequence

from ..._settings import CACHE_DIRS_ENV, MIRROR_ENV
from ..._text import pluralize
from ...errors import UnverifiedError
from ...hub import bundle
from ...hub.progress import format_size
from ...registry.api import find_default_checkpoint
from ...registry.specs import FileSpec
from ..common import add_checkpoint_names, fetch
from ..console import Result, table
from ..parser import run_action

HELP = """
A bundle is a folder or a .zip file with checkpoints, their descriptions and
their digests, and no code. Pack it on a machine with internet, copy it, and
unpack it into the cache of another machine. A folder can also be mounted as a
read-only cache, or served by any static web server as a mirror; what a mirror
serves is verified, so it need not be trusted. Files of which no whole digest is
published need --allow-unverified.
"""
EXAMPLES = (
    "repvgg-zoo bundle pack zoo.zip RepVGG_N0",
    "repvgg-zoo bundle show zoo.zip",
    "repvgg-zoo bundle unpack zoo.zip",
    "repvgg-zoo bundle pack zoo-mirror RepVGG_N0",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    pack = actions.add_parser("pack", help="create a bundle or a mirror, fetching what is not in the cache")
    pack.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a new file that ends in .zip")
    add_checkpoint_names(pack)
    pack.set_defaults(action_run=run_pack)
    unpack = actions.add_parser("unpack", help="copy a bundle's files into the cache; all of them, or none")
    unpack.add_argument("--allow-unverified", action="store_true", default=None, help="trust the bundle's creator")
    unpack.set_defaults(action_run=run_unpack)
    show = actions.add_parser("show", help="list a bundle's files without reading them")
    show.set_defaults(action_run=run_show)
    for action in (unpack, show):
        action.add_argument("path", type=Path, metavar="BUNDLE", help="the folder or .zip file")


run = run_action


def run_pack(args: argparse.Namespace) -> Result:
    files: Dict[str, FileSpec] = {}
    for name in args.names:
        checkpoint = find_default_checkpoint(name)
        files[checkpoint.name] = checkpoint.file
    path = bundle.pack(files, args.out, fetch=lambda file: fetch(file, args))
    usage = [f"unpack it    repvgg-zoo bundle unpack {path.name}"]
    if path.is_dir():
        usage += [
            f"or serve it  python3 -m http.server --directory {path}",
            f"             export {MIRROR_ENV}=http://HOST:8000",
            f"or mount it  export {CACHE_DIRS_ENV}=/path/to/{path.name}",
        ]
    payload = {"path": path, "files": to_dicts(bundle.read_bundle(path))}
    return Result(payload, lambda payload: [*render_files(payload["files"]), f"wrote {path}", *usage])


def run_unpack(args: argparse.Namespace) -> Result:
    try:
        paths = bundle.unpack(args.path, allow_unverified=args.allow_unverified)
    except UnverifiedError as error:
        error.hint = "if you trust its creator, add --allow-unverified"
        raise
    return Result({"files": paths}, lambda _: [f"{name}  {path}" for name, path in paths.items()])


def run_show(args: argparse.Namespace) -> Result:
    payload = {"path": args.path, "files": to_dicts(bundle.read_bundle(args.path))}
    return Result(payload, lambda payload: render_files(payload["files"]))


def to_dicts(content: bundle.Bundle) -> List[Dict[str, Any]]:
    """Return a bundle's files as data."""
    return [
        {
            "name": name,
            "file": packed.file.name,
            "stored": packed.filename,
            "size": packed.size,
            "sha256": packed.sha256,
            "integrity": packed.file.integrity,
        }
        for name, packed in content.files.items()
    ]


def render_files(files: Sequence[Dict[str, Any]]) -> List[str]:
    """Return the files as a table."""
    rows = [[file["name"], format_size(file["size"]), file["integrity"], f"{file['sha256'][:16]}..."] for file in files]
    total = f"{pluralize(len(files), 'file')}, {format_size(sum(file['size'] for file in files))}"
    return [*table(["name", "size", "integrity", "sha256"], rows, right=["size"]), total]
