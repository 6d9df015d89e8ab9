"""repvgg-zoo search: variants and checkpoints by what the registry says about them."""

from __future__ import annotations

import argparse
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ...registry.api import full_registry, top1
from ...registry.names import candidate_names, natural_key, normalize_name, suggestions
from ...registry.specs import CheckpointSpec, ModelSpec
from ..console import Result, style, table

HELP = """
Searches the variants and checkpoints of the registry: their names and aliases,
families, publishers, datasets, licenses, layouts, formats, and notes. All words
of TEXT must occur, in any case and order, each in any of these.
"""
EXAMPLES = (
    "repvgg-zoo search timm",
    "repvgg-zoo search digits",
    "repvgg-zoo search b1 apache openmmlab --json",
)
NAMES = ("name", "alias")  # compared as names are: without case, "-" and "_"

Fields = List[Tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="+", metavar="TEXT", help="words")


def run(args: argparse.Namespace) -> Result:
    words = " ".join(args.text).split()
    rows = [row for row in (match(entry, words) for entry in entries()) if row is not None]
    rows.sort(key=lambda row: ("name" not in row["matches"], natural_key(row["name"])))
    close = [] if rows else suggestions(full_registry(), words[0] if words else "")
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return Result(rows, lambda rows: render(rows) if rows else [f"nothing matches {' '.join(words)!r}{hint}"])


def entries() -> Iterator[Tuple[Dict[str, Any], Fields]]:
    """Yield each variant and each checkpoint as a row, with the names and values of what is searched."""
    for model in full_registry().models:
        row = {"name": model.name, "kind": "variant", "top1": top1(model), "license": None}
        yield row, variant_fields(model)
        for checkpoint in model.checkpoints:
            values = {"kind": "checkpoint", "top1": checkpoint.top1, "license": checkpoint.license}
            yield {"name": checkpoint.name, **values}, checkpoint_fields(checkpoint)


def variant_fields(model: ModelSpec) -> Fields:
    """Return what is searched of a variant."""
    fields = [("name", model.name), *(("alias", alias) for alias in model.aliases), ("family", model.family)]
    return [*fields, *(("notes", text) for text in (model.notes, model.no_weights) if text)]


def checkpoint_fields(checkpoint: CheckpointSpec) -> Fields:
    """Return what is searched of a checkpoint."""
    fields = [("name", checkpoint.name), *(("alias", alias) for alias in checkpoint.aliases)]
    fields += [(name, getattr(checkpoint, name)) for name in ("publisher", "dataset", "license", "layout", "format")]
    return [*fields, *([("notes", checkpoint.notes)] if checkpoint.notes else [])]


def match(entry: Tuple[Dict[str, Any], Fields], words: Sequence[str]) -> Optional[Dict[str, Any]]:
    """Return the row with the first value in which each word occurs, or None if one occurs in none."""
    row, fields = entry
    matches: Dict[str, str] = {}
    for word in words:
        field = next(((name, value) for name, value in fields if occurs(word, name, value)), None)
        if field is None:
            return None
        matches.setdefault(*field)
    return {**row, "matches": matches}


def occurs(word: str, name: str, value: str) -> bool:
    """Return whether a word occurs in a field's value."""
    if name in NAMES:
        return any(form and form in normalize_name(value) for form in candidate_names(word))
    return word.casefold() in value.casefold()


def render(rows: Sequence[Mapping[str, Any]]) -> List[str]:
    """Return the table; the first column is enough where a name matches."""
    cells = [
        [
            row["name"],
            "-" if row["top1"] is None else f"{row['top1']:.2f}",
            ", ".join(f"{name}: {value}" for name, value in row["matches"].items() if name != "name") or "name",
        ]
        for row in rows
    ]
    hint = "repvgg-zoo info NAME shows one of them."
    return [*table(["name", "top-1", "matches"], cells, right=["top-1"]), "", style(hint, "dim")]
