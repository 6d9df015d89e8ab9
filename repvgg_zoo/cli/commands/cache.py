"""repvgg-zoo cache: manage the cache folder."""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from ..._derived_cache import DerivedCache, DerivedEntry
from ..._settings import PLUGINS_ENV, plugin_mode
from ..._text import pluralize
from ...errors import ArgumentError, UnknownModelError, ZooError
from ...hub import cache_filename, cache_manager, read_settings
from ...hub.progress import format_size
from ...registry.api import find_default_checkpoint, load_all_registries
from ..common import all_checkpoints
from ..console import Result, table
from ..parser import run_action

HELP = """
Lists, removes and prunes the files of the cache folder. Other files in it are
never touched. repvgg-zoo verify checks the digests of the cache's files.

prune removes no checkpoint, unless --max-size is passed: then it removes what can
be computed or downloaded again until the cache has that size: derived data and
unfinished downloads, the oldest first, then checkpoints of today's registry, the
least recently used first. Others may belong to a plugin or to another shell's
registry; prune lists them, and rm removes them by name.

Exit code of ls: 5 if an entry cannot be used, such as a link. Of prune: 1 if the
cache is still larger than --max-size.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo cache where",
    "repvgg-zoo cache ls",
    "repvgg-zoo cache rm RepVGG_N0 --dry-run",
    "repvgg-zoo cache rm RepVGG_N0",
    "repvgg-zoo cache prune --derived --dry-run --json",
    "repvgg-zoo cache prune --max-size 5GB",
)

UNUSABLE = 5  # the exit code of errors in the cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    where = actions.add_parser("where", help="print the folder")
    where.set_defaults(action_run=run_where)
    ls = actions.add_parser("ls", help="list the files and their sizes")
    ls.set_defaults(action_run=run_ls)
    rm = actions.add_parser("rm", help="remove files")
    rm.add_argument("names", nargs="+", metavar="NAME", help="a name of the registry, or a file as ls shows it")
    rm.set_defaults(action_run=run_rm)
    prune = actions.add_parser("prune", help="remove unfinished downloads that no process has resumed")
    prune.add_argument(
        "--days", type=float, default=cache_manager.MAX_AGE_DAYS, help="their minimum age (default: %(default)g)"
    )
    prune.add_argument("--derived", action="store_true", help="also derived data, which is computed again when needed")
    prune.add_argument(
        "--max-size",
        type=parse_size,
        metavar="SIZE",
        help="also whole files, until the cache has this size: 5GB, 500MB",
    )
    prune.set_defaults(action_run=run_prune)
    for action in (rm, prune):
        action.add_argument("--dry-run", action="store_true", help="only show what would be removed")


run = run_action


def run_where(args: argparse.Namespace) -> Result:
    settings = read_settings()
    payload = {
        "cache": settings.cache_dir,
        "exists": settings.cache_dir.is_dir(),
        "read_only": settings.read_only_cache_dirs,
    }
    return Result(payload, lambda payload: [payload["cache"]])


def run_ls(args: argparse.Namespace) -> Result:
    settings = read_settings()
    names = {cache_filename(checkpoint.file): checkpoint.name for checkpoint in all_checkpoints()}
    files = [
        {**file_to_dict(file), "root": root, "checkpoint": names.get(file.path.name)}
        for root in [*settings.read_only_cache_dirs, settings.cache_dir]
        for file in cache_manager.list_files(root)
    ]
    derived = [derived_to_dict(entry) for entry in DerivedCache(settings.cache_dir).entries()]
    payload = {"cache": settings.cache_dir, "entries": files, "derived": derived}
    return Result(payload, render_files, UNUSABLE if any(file["problem"] for file in files) else 0)


def render_files(payload: Mapping[str, Any]) -> List[str]:
    """Return a table of each folder's files and what is wrong with them, then the size of the derived data."""
    files, derived = payload["entries"], payload["derived"]
    lines: List[str] = []
    for root in dict.fromkeys(file["root"] for file in files):
        in_root = [file for file in files if file["root"] == root]
        rows = [
            [file["kind"], format_size(file["size"]), format_age(file["modified"]), file["checkpoint"] or file["name"]]
            for file in in_root
        ]
        lines += [str(root), *table(["kind", "size", "age", "name"], rows, right=["size", "age"]), total(in_root)]
        lines += [f"problem: {file['path']}: {file['problem']}" for file in in_root if file["problem"]]
    if derived:
        lines.append(f"derived data, such as fused weights: {total(derived)}")
    return lines or ["the cache is empty"]


def run_rm(args: argparse.Namespace) -> Result:
    root = read_settings().cache_dir
    removed = cache_manager.remove(root, [file_name(root, name) for name in args.names], dry_run=args.dry_run)
    return removal_result([file_to_dict(file) for file in removed], dry_run=args.dry_run)


def file_name(root: Path, name: str) -> str:
    """Return the name of the file for a name as ``ls`` shows it, or for a name of the registry."""
    if cache_manager.find_names(root, name):
        return name
    hint = "repvgg-zoo cache ls lists the files"
    try:
        checkpoint = find_default_checkpoint(name)
    except UnknownModelError:
        return name  # cache_manager.remove reports it, with the names of the files
    except ZooError as error:
        raise ArgumentError(error.message, hint=hint, actual=name) from error
    file = cache_filename(checkpoint.file)
    if not cache_manager.find_names(root, file):
        raise ArgumentError(f"{checkpoint.name} is not in {root}; nothing was removed", hint=hint, actual=name)
    return file


def run_prune(args: argparse.Namespace) -> Result:
    root = read_settings().cache_dir
    removed = [file_to_dict(file) for file in cache_manager.prune(root, days=args.days, dry_run=args.dry_run)]
    if args.derived:
        cache = DerivedCache(root)
        removed += [derived_to_dict(entry) for entry in (cache.entries() if args.dry_run else cache.prune())]
    registry, failures = load_all_registries()
    known = [checkpoint.file for model in registry.models for checkpoint in model.checkpoints]
    remaining: Dict[str, Any] = {}
    if args.max_size is not None:
        without = {file["path"] for file in removed}
        files, size = cache_manager.shrink(root, args.max_size, known, without=without, dry_run=args.dry_run)
        removed += map(file_to_dict, files)
        remaining = {"max_size": args.max_size, "remaining_size": size}
    unknown = [file_to_dict(file) for file in cache_manager.unknown_files(root, known)]
    reasons = [failure.message for failure in failures]
    if plugin_mode() == "off":
        reasons.append(f"plugins were not searched ({PLUGINS_ENV}=off)")
    result = removal_result(removed, dry_run=args.dry_run, unknown=unknown, not_searched=reasons, **remaining)
    return result._replace(exit_code=int(bool(remaining) and remaining["remaining_size"] > remaining["max_size"]))


def removal_result(removed: Sequence[Mapping[str, Any]], *, dry_run: bool, **more: Any) -> Result:
    """Return the result of a command that removed these files, or would; ``more`` is more of its payload."""
    payload = {"dry_run": dry_run, "removed": removed, "size": sum(file["size"] for file in removed), **more}
    return Result(payload, render_removed)


def render_removed(payload: Mapping[str, Any]) -> List[str]:
    """Return a line for each file, the total, and the files that were left because nobody knows whose they are."""
    removed, verb = payload["removed"], "would remove" if payload["dry_run"] else "removed"
    derived = [file for file in removed if file["kind"] == "derived"]
    lines = [f"{verb} {describe_removed(file)}" for file in removed if file["kind"] != "derived"]
    if derived:
        lines.append(f"{verb} derived data: {total(derived)}")
    lines.append(f"{verb} {total(removed)}" if removed else "nothing to remove")
    if "max_size" in payload:
        size, most = payload["remaining_size"], payload["max_size"]
        reason = "" if size <= most else ": nothing else could be downloaded or computed again"
        lines.append(f"{format_size(size)} is left in the cache{reason}")
    unknown = payload.get("unknown")
    if unknown:
        lines += [
            f"left {total(unknown)}, which no registry of today has:",
            *(f"  {file['name']}, {format_size(file['size'])}" for file in unknown),
            "a plugin or a registry that is not loaded now may own them; repvgg-zoo cache rm NAME removes one",
            *(f"not loaded: {reason}" for reason in payload["not_searched"]),
        ]
    return lines


def describe_removed(file: Mapping[str, Any]) -> str:
    """Return the name and size of a file, and of a checkpoint when it was last used."""
    used = f", last used {format_age(file['used'])} ago" if file["kind"] == "file" else ""
    return f"{file['name']}, {format_size(file['size'])}{used}"


def file_to_dict(file: cache_manager.CachedFile) -> Dict[str, Any]:
    """Return a file of the cache as data."""
    return {
        "name": file.path.name,
        "path": file.path,
        "kind": file.kind,
        "size": file.size,
        "modified": file.modified,
        "used": file.used,
        "sha256": file.sha256,
        "integrity": file.integrity,
        "problem": file.problem,
    }


def derived_to_dict(entry: DerivedEntry) -> Dict[str, Any]:
    """Return an entry of the derived cache as data."""
    return {
        "name": f"{entry.path.parent.name}/{entry.path.name}",
        "path": entry.path,
        "kind": "derived",
        "step": entry.step,
        "size": entry.size,
        "modified": entry.mtime,
    }


def total(files: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of files and the sum of their sizes."""
    return f"{pluralize(len(files), 'file')}, {format_size(sum(file['size'] for file in files))}"


def format_age(modified: float) -> str:
    """Return the time since a modification, in the largest unit that is at least one.

    >>> import time
    >>> from repvgg_zoo.cli.commands.cache import format_age
    >>> format_age(time.time() - 7300)
    '2 h'
    """
    seconds = max(0.0, time.time() - modified)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def parse_size(text: str) -> int:
    """Return a number of bytes that may have a unit: kB, MB, GB and TB count in thousands, KiB to TiB in 1024.

    >>> from repvgg_zoo.cli.commands.cache import parse_size
    >>> parse_size("5GB"), parse_size("1.5 GiB"), parse_size("500m")
    (5000000000, 1610612736, 500000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None or (match.group(3) and not match.group(2)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid size, such as 5GB or 500MB")
    base = 1024 if match.group(3) else 1000
    power = " kmgt".index(match.group(2).lower() or " ")
    return round(float(match.group(1)) * math.pow(base, power))
