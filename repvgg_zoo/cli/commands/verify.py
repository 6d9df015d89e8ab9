"""repvgg-zoo verify: is a file what it should be?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List

from ..._digest import hash_file
from ...errors import ZooError
from ...hub import cache_filename, read_settings
from ...hub.progress import format_size
from ...hub.verify import digest_matches, expected_digest
from ...registry.api import find_default_checkpoint, full_registry
from ...registry.specs import CheckpointSpec
from ..console import count, paint, pairs, show

HELP = """
Reads files to the last byte and says whether they are right. Without a target:
every file in the cache. NAME: its file in the cache, against the registry's
digest. FILE: any file on disk, against the registry's digests, and whether it
can be read as a checkpoint.

Exit code 1 if anything is damaged, or a NAME is not in the cache.
"""
EXAMPLES = (
    "repvgg-zoo fetch RepVGG_N0",
    "repvgg-zoo verify",
    "repvgg-zoo verify RepVGG_N0",
    'repvgg-zoo verify "$(repvgg-zoo fetch RepVGG_N0)" --json',
)
COLOURS = {"right": "green", "unknown": "yellow", "damaged": "red", "absent": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="NAME|FILE", help="what to verify; the whole cache without any")


def run(args: argparse.Namespace) -> int:
    if args.targets:
        found = [of_file(Path(target)) if is_path(target) else of_name(target) for target in args.targets]
    else:
        found = of_cache(read_settings().cache_dir)
    show(args, found, lines(found))
    return int(any(one["status"] in ("damaged", "absent") for one in found))


def is_path(target: str) -> bool:
    """Whether a target is meant as a file: it is one, or no name of the registry looks like it."""
    return Path(target).is_file() or any(separator in target for separator in "/\\")


def of_cache(root: Path) -> List[Dict[str, Any]]:
    """Every file of a cache folder against its name and its stamp; a damaged one is fetched anew when next needed."""
    from ...hub import cache_manager

    return [
        {
            "target": finding.file.path.name,
            "path": finding.file.path,
            "status": "right" if finding.problem is None else "damaged",
            "problem": finding.problem,
            "size": finding.file.size,
            "sha256": finding.sha256,
            "integrity": finding.file.integrity,
        }
        for finding in cache_manager.verify(root)
    ]


def of_name(name: str) -> Dict[str, Any]:
    """A checkpoint's file in the caches against the registry's digest."""
    checkpoint = find_default_checkpoint(name)
    settings = read_settings()
    roots = [*settings.read_only_cache_dirs, settings.cache_dir]
    paths = [root / cache_filename(checkpoint.file) for root in roots]
    path = next((path for path in paths if path.is_file()), None)
    expected = expected_digest(checkpoint.file)
    facts: Dict[str, Any] = {"target": checkpoint.name, "path": path, "expected": expected}
    if path is None:
        where = ", ".join(map(str, roots))
        return {**facts, "status": "absent", "problem": f"not in {where}; repvgg-zoo fetch {checkpoint.name}"}
    sha256 = hash_file(path)
    facts.update(size=path.stat().st_size, sha256=sha256, integrity=checkpoint.file.integrity)
    if not digest_matches(checkpoint.file, sha256):
        return {**facts, "status": "damaged", "problem": f"its SHA-256 is {sha256}, the registry says {expected}"}
    if checkpoint.file.integrity == "none":
        return {**facts, "status": "unknown", "problem": "its publisher states no digest"}
    return {**facts, "status": "right", "problem": None}


def of_file(path: Path) -> Dict[str, Any]:
    """Any file: its digest, whose it is, and what it is as a checkpoint."""
    from ...checkpoints import load_checkpoint

    sha256 = hash_file(path)
    known = [checkpoint for checkpoint in published() if digest_matches(checkpoint.file, sha256)]
    facts: Dict[str, Any] = {
        "target": str(path),
        "path": path,
        "size": path.stat().st_size,
        "sha256": sha256,
        "known_as": [checkpoint.name for checkpoint in known],
    }
    claimed = [checkpoint for checkpoint in published() if path.name in names_of(checkpoint)]
    if claimed and not any(checkpoint in known for checkpoint in claimed):
        expected = expected_digest(claimed[0].file)
        problem = f"it has the name of {claimed[0].name}, whose SHA-256 is {expected}, but its own is {sha256}"
        return {**facts, "status": "damaged", "problem": problem}
    try:
        checkpoint = load_checkpoint(path)
    except ZooError as error:
        return {**facts, "status": "damaged", "problem": error.message}
    facts["checkpoint"] = {
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "form": checkpoint.form,
        "arrays": len(checkpoint.state_dict),
        "numbers": sum(int(array.size) for array in checkpoint.state_dict.values()),
        "dtypes": sorted({array.dtype.name for array in checkpoint.state_dict.values()}),
        "skipped": dict(checkpoint.report.skipped),
    }
    if known:
        return {**facts, "status": "right", "problem": None}
    return {**facts, "status": "unknown", "problem": "the registry has no such digest; it can be read as a checkpoint"}


def published() -> List[CheckpointSpec]:
    """Every checkpoint of the registry that states a digest."""
    models = full_registry().models
    return [one for model in models for one in model.checkpoints if one.file.integrity != "none"]


def names_of(checkpoint: CheckpointSpec) -> List[str]:
    """The file names that this checkpoint's file alone has; a name such as model.safetensors says nothing."""
    stored = cache_filename(checkpoint.file)
    prefix = checkpoint.file.sha256_prefix
    return [stored, checkpoint.file.name] if prefix and prefix in checkpoint.file.name else [stored]


def lines(found: List[Dict[str, Any]]) -> List[str]:
    """A line for each target, with what is wrong and what it holds below it."""
    shown = []
    for one in found:
        size = f", {format_size(one['size'])}" if "size" in one else ""
        shown.append(f"{paint(one['status'], COLOURS[one['status']])}  {one['target']}{size}")
        held = one.get("checkpoint")
        shown += pairs(
            {
                "why": one["problem"],
                "sha256": one.get("sha256"),
                "known as": ", ".join(one.get("known_as", [])) or None,
                "holds": held and f"{held['format']}, layout {held['layout']}, {held['form']} form",
                "arrays": held and f"{held['arrays']:,} of {', '.join(held['dtypes'])}, {held['numbers']:,} numbers",
                "skipped": held and (count(len(held["skipped"]), "entry", "entries") if held["skipped"] else None),
            },
            indent="  ",
        )
    return shown or ["the cache is empty"]
