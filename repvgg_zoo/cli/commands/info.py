"""repvgg-zoo info: a variant, or a checkpoint."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any, List, Mapping

from ...registry.api import find_model
from ...registry.specs import CheckpointSpec, ModelSpec
from ..console import Result, key_values, style, to_jsonable
from ..describe import describe, format_checkpoint

HELP = """
Shows what a variant is, what it costs, its published checkpoints, and how far
the integrity of each file is known. NAME.TAG shows one checkpoint with its file
and its sources.
"""
EXAMPLES = (
    "repvgg-zoo info RepVGG_A0",
    "repvgg-zoo info a0.timm",
    "repvgg-zoo info RepVGG_N0.digits --json",
)
WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a variant, or NAME.TAG for a checkpoint; any known spelling")


def run(args: argparse.Namespace) -> Result:
    model, tag = find_model(args.name)
    if tag is None:
        return Result(model, render_variant)
    checkpoint = model.checkpoint(tag)
    payload = {"name": checkpoint.name, **to_jsonable(checkpoint), "integrity": checkpoint.file.integrity}
    return Result(payload, lambda _: render_checkpoint(model, checkpoint))


def render_variant(model: ModelSpec) -> List[str]:
    """Return the description of the variant, with its first line in bold."""
    first, *rest = describe(model).rstrip("\n").split("\n\n")
    lines = [style(first.partition("\n")[0], "bold"), *first.split("\n")[1:]]
    code = rest.index("Example:") if "Example:" in rest else len(rest)  # code is not wrapped
    for paragraph in rest[:code]:
        is_prose = "  " not in paragraph
        text = paragraph.replace("\n", " ") if is_prose else paragraph
        lines += ["", *(part for line in text.split("\n") for part in wrap(line))]
    return [*lines, "", *"\n\n".join(rest[code:]).split("\n")]


def render_checkpoint(model: ModelSpec, checkpoint: CheckpointSpec) -> List[str]:
    """Return the description of one checkpoint, then its file, sources, and where the registry's data are from."""
    file = checkpoint.file
    properties: Mapping[str, Any] = {
        "format": f"{checkpoint.format}, layout {checkpoint.layout}, {checkpoint.form} form",
        "classes": checkpoint.num_classes,
        "aliases": ", ".join(checkpoint.aliases) or None,
        "file": file.name,
        "size": None if file.size is None else f"{file.size:,} bytes",
        "sha256": file.sha256 or (f"{file.sha256_prefix}..." if file.sha256_prefix else "not published"),
    }
    role = "the default of" if checkpoint.tag == model.default else "a checkpoint of"
    return [
        style(f"{checkpoint.name}, {role} {model.name}", "bold"),
        "",
        *(part for line in format_checkpoint(checkpoint) for part in wrap(line[2:])),
        "",
        *key_values(properties),
        "sources, in this order:",
        *(f"  {source}" for source in file.sources),
        "provenance:",
        *(f"  {source}" for source in checkpoint.provenance),
    ]


def wrap(line: str) -> List[str]:
    """Return a line in several if it is too long for a terminal; a value continues below its first line."""
    if len(line) <= WIDTH:
        return [line]
    label = re.match(r"\s*(?:\S+\s{2,})?", line)
    return textwrap.wrap(
        line,
        WIDTH,
        subsequent_indent=" " * (label.end() if label else 0),
        break_long_words=False,
        break_on_hyphens=False,
    )
