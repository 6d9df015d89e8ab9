"""repvgg-zoo verify: check the digests of files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from ..._digest import hash_file
from ..._text import pluralize
from ...errors import CheckpointFormatError, UnsafePickleError, ZooError
from ...hub import cache_filename, cache_manager, read_settings
from ...hub.progress import format_size
from ...hub.verify import digest_matches, expected_digest
from ...registry.model_or_file import find_model_or_file
from ...registry.names import find_checkpoint
from ...registry.specs import INTEGRITY_LEVELS, CheckpointSpec
from ..common import all_checkpoints, count_arrays, try_each
from ..console import Result, key_values, style

if TYPE_CHECKING:
    from ...checkpoints import Checkpoint

HELP = """
Reads files completely and checks their digests. Without a target: every file in
the cache. NAME: its file in the cache, against the registry's digest. FILE: any
file, against the registry's digests, and whether it is a readable checkpoint.

A file of whose digest only the first digits are published is "prefix only"; one
that has no published digest is "intact" if it could be read to its end, whatever
it holds, and "unknown" if it is of a kind that is not read.
Exit code 1 if a file is damaged or unreadable, or a NAME is not in the cache.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo verify",
    "repvgg-zoo verify RepVGG_N0",
    'repvgg-zoo verify "$(repvgg-zoo fetch RepVGG_N0)" --json',
)
OK, PREFIX, INTACT, UNKNOWN = "ok", "prefix only", "intact", "unknown"
DAMAGED, UNREADABLE, MISSING = "damaged", "unreadable", "missing"
PREFIX_NOTE = "it is not damaged, but it may be forged: its publisher states only the first digits of its SHA-256"
COLORS = {
    OK: "green",
    PREFIX: "yellow",
    INTACT: "green",
    UNKNOWN: "yellow",
    DAMAGED: "red",
    UNREADABLE: "red",
    MISSING: "red",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="NAME|FILE", help="what to verify (default: the whole cache)")


def run(args: argparse.Namespace) -> Result:
    if not args.targets:
        return result(verify_cache(read_settings().cache_dir))
    return result(*try_each(args.targets, verify))


def verify(name: str) -> Dict[str, Any]:
    """Check a file, or a checkpoint by its name."""
    target = find_model_or_file(name)
    return verify_file(target) if isinstance(target, Path) else verify_checkpoint(find_checkpoint(*target))


def result(rows: List[Dict[str, Any]], failures: Sequence[BaseException] = ()) -> Result:
    """Return the command's result; those that could not be checked are ``failures``."""
    failed = any(row.get("status") in (DAMAGED, UNREADABLE, MISSING) for row in rows)
    return Result(rows, render, int(failed), failures)


def undamaged(integrity: Optional[str]) -> Dict[str, Any]:
    """Return the status of a file that has the published digest, or what is published of it."""
    if integrity == "sha256_prefix":
        return {"status": PREFIX, "problem": PREFIX_NOTE}
    if integrity == "none":
        return {"status": UNKNOWN, "problem": "its publisher states no digest"}
    return {"status": OK, "problem": None}


def verify_cache(root: Path) -> List[Dict[str, Any]]:
    """Check every file of a cache folder; a damaged one is downloaded again when it is next needed."""
    rows = []
    for result in cache_manager.verify(root):
        file = result.file
        row = {"target": file.path.name, "path": file.path, **undamaged(file.integrity)}
        if result.sha256 is None:
            row.update(status=UNREADABLE, problem=f"{file.path}: {result.problem}")
        elif result.problem is not None:
            row.update(status=DAMAGED, problem=result.problem)
        rows.append({**row, "size": file.size, "sha256": result.sha256, "integrity": file.integrity})
    return rows


def verify_checkpoint(checkpoint: CheckpointSpec) -> Dict[str, Any]:
    """Check a checkpoint's file in the caches against the registry's digest."""
    settings = read_settings()
    roots = [*settings.read_only_cache_dirs, settings.cache_dir]
    name = cache_filename(checkpoint.file)
    entries = [file for root in roots for file in cache_manager.list_files(root) if file.path.name == name]
    expected = expected_digest(checkpoint.file)
    row: Dict[str, Any] = {"target": checkpoint.name, "path": None, "expected": expected}
    if not entries:
        folders = ", ".join(map(str, roots))
        return {**row, "status": MISSING, "problem": f"not in {folders}; repvgg-zoo fetch {checkpoint.name}"}
    entry = next((entry for entry in entries if not entry.problem), entries[0])
    row["path"] = entry.path
    try:
        sha256 = None if entry.problem else hash_file(entry.path)
    except OSError as error:
        return {**row, "status": UNREADABLE, "problem": f"{entry.path}: cannot be read: {error.strerror}"}
    if sha256 is None:
        return {**row, "status": UNREADABLE, "problem": f"{entry.path}: {entry.problem}"}
    row.update(size=entry.size, sha256=sha256, integrity=checkpoint.file.integrity)
    if not digest_matches(checkpoint.file, sha256):
        return {**row, "status": DAMAGED, "problem": f"its SHA-256 is {sha256}, the registry says {expected}"}
    return {**row, **undamaged(checkpoint.file.integrity)}


def verify_file(path: Path) -> Dict[str, Any]:
    """Check any file: its digest, which checkpoints of the registry it is, and what it contains as a checkpoint."""
    sha256 = hash_file(path)
    with_digest = [checkpoint for checkpoint in all_checkpoints() if checkpoint.file.integrity != "none"]
    matches = [checkpoint for checkpoint in with_digest if digest_matches(checkpoint.file, sha256)]
    row: Dict[str, Any] = {
        "target": str(path),
        "path": path,
        "size": path.stat().st_size,
        "sha256": sha256,
        "known_as": [checkpoint.name for checkpoint in matches],
    }
    same_name = [checkpoint for checkpoint in with_digest if path.name in unique_names(checkpoint)]
    if same_name and not any(checkpoint in matches for checkpoint in same_name):
        expected = expected_digest(same_name[0].file)
        problem = f"it has the name of {same_name[0].name}, whose SHA-256 is {expected}, but its own is {sha256}"
        return {**row, "status": DAMAGED, "problem": problem}
    status, reason, checkpoint = check_content(path)
    row["checkpoint"] = None if checkpoint is None else describe(checkpoint)
    if matches:
        integrity = max((match.file.integrity for match in matches), key=INTEGRITY_LEVELS.index)
        return {**row, **undamaged(integrity), "note": reason}
    if status == DAMAGED:
        return {**row, "status": status, "problem": reason}
    note = "no checkpoint of the registry has this digest"
    return {**row, "status": status, "problem": None, "note": note if reason is None else f"{note}; {reason}"}


def check_content(path: Path) -> Tuple[str, Optional[str], Optional[Checkpoint]]:
    """Return the status of a file without a published digest, why it cannot be loaded, and else the checkpoint."""
    from ...checkpoints import load_checkpoint
    from ...checkpoints.formats import check_archive

    checkpoint: Optional[Checkpoint] = None
    reason: Optional[str] = None
    status = INTACT
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointFormatError as error:
        if error.damaged:
            return DAMAGED, error.message, None
        status, reason = INTACT if isinstance(error, UnsafePickleError) else UNKNOWN, error.message
    except ZooError as error:
        reason = error.message
    try:
        return INTACT if check_archive(path) else status, reason, checkpoint
    except CheckpointFormatError as error:
        return (DAMAGED, error.message, None) if error.damaged else (status, reason, checkpoint)


def describe(checkpoint: Checkpoint) -> Dict[str, Any]:
    """Return what a checkpoint holds."""
    return {
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "form": checkpoint.form,
        **count_arrays(checkpoint.state_dict),
        "skipped": dict(checkpoint.report.skipped),
    }


def unique_names(checkpoint: CheckpointSpec) -> List[str]:
    """Return the file names that identify this checkpoint; a name such as model.safetensors does not."""
    name = cache_filename(checkpoint.file)
    prefix = checkpoint.file.sha256_prefix
    return [name, checkpoint.file.name] if prefix and prefix in checkpoint.file.name else [name]


def render(rows: List[Dict[str, Any]]) -> List[str]:
    """Return a line for each target, with its problem and its contents below it."""
    lines = []
    for row in (row for row in rows if "error" not in row):
        size = f", {format_size(row['size'])}" if "size" in row else ""
        lines.append(f"{style(row['status'], COLORS[row['status']])}  {row['target']}{size}")
        content = row.get("checkpoint")
        lines += key_values(
            {
                "problem": row["problem"],
                "note": row.get("note"),
                "sha256": row.get("sha256"),
                "known as": ", ".join(row.get("known_as", [])) or None,
                "format": content and f"{content['format']}, layout {content['layout']}, {content['form']} form",
                "arrays": content
                and f"{content['arrays']:,} of {', '.join(content['dtypes'])}, {content['numbers']:,} numbers",
                "skipped": content
                and (pluralize(len(content["skipped"]), "entry", "entries") if content["skipped"] else None),
            },
            indent="  ",
        )
    return lines if rows else ["the cache is empty"]
