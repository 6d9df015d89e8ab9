"""repvgg-zoo fetch: checkpoints into the cache, verified."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List

from ...errors import UnverifiedError
from ...hub import fetch_file
from ...registry.api import find_default_checkpoint
from ..console import show

HELP = """
Brings checkpoints into the cache, downloads what is missing, verifies it, and
prints the path of each file. A download that was stopped is continued by the
next call. Mirrors, proxies and the cache's place: environment variables, see
docs/guides/downloads.md.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo fetch --offline RepVGG_N0.digits",
    'ls -l "$(repvgg-zoo fetch RepVGG_N0)"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_names(parser)


def add_names(parser: argparse.ArgumentParser) -> None:
    """NAME..., and the options of every command that fetches."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a variant (its default checkpoint) or NAME.TAG")
    add_fetching(parser)


def add_fetching(parser: argparse.ArgumentParser) -> None:
    """The options of every command that fetches."""
    parser.add_argument("--offline", action="store_true", default=None, help="use no network")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        default=None,
        help="take files whose publisher states no digest; it is recorded, and checked ever after",
    )


def run(args: argparse.Namespace) -> int:
    checkpoints = [
        find_default_checkpoint(name) for name in args.names
    ]  # a wrong name is told before anything is downloaded
    done: List[Dict[str, Any]] = []
    for checkpoint in checkpoints:
        path = fetched(checkpoint.file, args)
        done.append(
            {
                "name": checkpoint.name,
                "path": path,
                "size": path.stat().st_size,
                "integrity": checkpoint.file.integrity,
            }
        )
        if not args.json:
            print(path, flush=True)
    show(args, done, [])
    return 0


def fetched(file: Any, args: argparse.Namespace) -> Any:
    """The path of a checkpoint's file, fetched under the command's options."""
    try:
        return fetch_file(file, offline=args.offline, allow_unverified=args.allow_unverified)
    except UnverifiedError as error:
        error.hint = "add --allow-unverified to take it; its digest is then recorded and checked ever after"
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on where this one was") from None
