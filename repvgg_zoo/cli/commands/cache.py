"""repvgg-zoo cache: look after the cache folder."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from ...errors import ArgumentError, UnknownModelError, ZooError
from ...hub import cache_filename, cache_manager, read_settings
from ...hub.progress import format_size
from ...registry.api import find_default_checkpoint, full_registry
from ...registry.specs import CheckpointSpec
from ..console import count, show, table
from ..parser import run_action

HELP = """
Lists, removes, prunes and verifies the files of the cache folder. Only files
that the loader itself made are ever touched.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo cache where",
    "repvgg-zoo cache ls",
    "repvgg-zoo cache verify",
    "repvgg-zoo cache rm RepVGG_N0 --dry-run",
    "repvgg-zoo cache rm RepVGG_N0",
    "repvgg-zoo cache prune --unknown --derived --compiled --dry-run --json",
)
# Folders of derived files: their names, and what they are.
MADE = {
    "derived": (r"[a-z]+-[0-9a-f]{32}\.derived", "computed from these files, to load faster"),
    "compiled": (r"[0-9a-f]{32}\.(json|mge)(\.[0-9a-f]{12}\.new)?", "made by compile to start faster"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    where = actions.add_parser("where", help="print the folder")
    where.set_defaults(action_run=run_where)
    ls = actions.add_parser("ls", help="what is in it, with sizes")
    ls.set_defaults(action_run=run_ls)
    rm = actions.add_parser("rm", help="remove files")
    rm.add_argument("names", nargs="+", metavar="NAME", help="a name of the registry, or a file as ls shows it")
    rm.set_defaults(action_run=run_rm)
    prune = actions.add_parser("prune", help="remove what serves nobody: unfinished downloads that nobody takes up")
    prune.add_argument(
        "--days", type=float, default=cache_manager.MAX_AGE_DAYS, help="how long they may wait (default: %(default)g)"
    )
    prune.add_argument("--unknown", action="store_true", help="also files that the registry does not know (any more)")
    prune.add_argument("--derived", action="store_true", help="also what was computed from files to load faster")
    prune.add_argument("--compiled", action="store_true", help="also what compile keeps to start faster")
    prune.set_defaults(action_run=run_prune)
    for action in (rm, prune):
        action.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    verify = actions.add_parser("verify", help="read every file and compare digests; exit code 1 for damage")
    verify.set_defaults(action_run=run_verify)


run = run_action


def run_where(args: argparse.Namespace) -> int:
    settings = read_settings()
    facts = {
        "cache": settings.cache_dir,
        "exists": settings.cache_dir.is_dir(),
        "read_only": settings.read_only_cache_dirs,
    }
    show(args, facts, [str(settings.cache_dir)])
    return 0


def run_ls(args: argparse.Namespace) -> int:
    settings = read_settings()
    names = checkpoints_by_file()
    entries = [
        {**described(entry), "root": root, "checkpoint": names.get(entry.path.name)}
        for root in [*settings.read_only_cache_dirs, settings.cache_dir]
        for entry in cache_manager.list_files(root)
    ]
    made = {}
    for kind in MADE:
        files = made_files(settings.cache_dir, kind)
        made[kind] = {"files": len(files), "size": sum(path.stat().st_size for path in files)}
    show(args, {"cache": settings.cache_dir, "entries": entries, **made}, listing(entries, made))
    return 0


def listing(entries: Sequence[Dict[str, Any]], made: Mapping[str, Mapping[str, int]]) -> List[str]:
    """A table for each folder, and the sums; ``made`` says how much there is of each of ``MADE``."""
    if not entries and not any(kind["files"] for kind in made.values()):
        return ["the cache is empty"]
    shown: List[str] = []
    for root in dict.fromkeys(entry["root"] for entry in entries):
        here = [entry for entry in entries if entry["root"] == root]
        rows = [
            [entry["kind"], format_size(entry["size"]), age(entry["modified"]), entry["checkpoint"] or entry["name"]]
            for entry in here
        ]
        shown += [str(root), *table(["kind", "size", "age", "what"], rows, right=["size", "age"])]
        shown.append(f"{count(len(here), 'file')}, {format_size(sum(entry['size'] for entry in here))}")
    shown += [f"{kind}: {format_size(one['size'])} {MADE[kind][1]}" for kind, one in made.items() if one["files"]]
    return shown


def run_rm(args: argparse.Namespace) -> int:
    root = read_settings().cache_dir
    removed = cache_manager.remove(root, [file_name(root, name) for name in args.names], dry_run=args.dry_run)
    return report(args, [described(entry) for entry in removed])


def file_name(root: Path, name: str) -> str:
    """The file that a name stands for: as the listing shows it, or by the registry."""
    if any(name in (entry.path.name, *entry.path.name.split("-", 1)) for entry in cache_manager.list_files(root)):
        return name
    try:
        checkpoint = find_default_checkpoint(name)
    except UnknownModelError:
        return name  # cache_manager.remove says which files there are
    except ZooError as error:
        raise ArgumentError(error.message, hint="repvgg-zoo cache ls shows what is here", actual=name) from error
    stored = cache_filename(checkpoint.file)
    if not (root / stored).exists():
        raise ArgumentError(
            f"{checkpoint.name} is not in {root}; nothing was removed",
            hint="repvgg-zoo cache ls shows what is here",
            actual=name,
        )
    return stored


def run_prune(args: argparse.Namespace) -> int:
    root = read_settings().cache_dir
    known = [one.file for one in all_checkpoints()] if args.unknown else None
    removed = cache_manager.prune(root, days=args.days, known=known, dry_run=args.dry_run)
    gone = [described(entry) for entry in removed]
    for kind in (kind for kind in MADE if getattr(args, kind)):
        for path in made_files(root, kind):
            status = path.stat()
            gone.append(
                {
                    "name": f"{kind}/{path.name}",
                    "path": path,
                    "kind": kind,
                    "size": status.st_size,
                    "modified": status.st_mtime,
                }
            )
            if not args.dry_run:
                path.unlink()
    return report(args, gone)


def report(args: argparse.Namespace, removed: Sequence[Dict[str, Any]]) -> int:
    """What was removed, or would be."""
    verb = "would remove" if args.dry_run else "removed"
    total = sum(entry["size"] for entry in removed)
    lines = [f"{verb} {entry['name']}, {format_size(entry['size'])}" for entry in removed]
    lines.append(f"{verb} {count(len(removed), 'file')}, {format_size(total)}" if removed else "nothing to remove")
    show(args, {"dry_run": args.dry_run, "removed": removed, "size": total}, lines)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from . import verify

    args.targets = []
    return verify.run(args)


def described(entry: cache_manager.CachedFile) -> Dict[str, Any]:
    """An entry for a program."""
    return {
        "name": entry.path.name,
        "path": entry.path,
        "kind": entry.kind,
        "size": entry.size,
        "modified": entry.modified,
        "sha256": entry.sha256,
        "integrity": entry.integrity,
    }


def made_files(root: Path, kind: str) -> List[Path]:
    """The files of this kind, one of ``MADE``, in this cache."""
    folder = root / kind
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(MADE[kind][0], path.name) and not path.is_symlink())


def all_checkpoints() -> List[CheckpointSpec]:
    """Every checkpoint of the registry."""
    return [checkpoint for model in full_registry().models for checkpoint in model.checkpoints]


def checkpoints_by_file() -> Dict[str, str]:
    """Full names by the name of the file in a cache."""
    return {cache_filename(checkpoint.file): checkpoint.name for checkpoint in all_checkpoints()}


def age(modified: float) -> str:
    """How long ago, in the largest unit that fits.

    >>> import time
    >>> from repvgg_zoo.cli.commands.cache import age
    >>> age(time.time() - 7300)
    '2 h'
    """
    seconds = max(0.0, time.time() - modified)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
