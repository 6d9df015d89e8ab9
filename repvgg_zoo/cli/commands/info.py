"""repvgg-zoo info: all that is known of one variant, or of one checkpoint."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import List

from ...registry.api import find_model
from ...registry.specs import CheckpointSpec, ModelSpec
from ..console import paint, pairs, plain, show
from ..describe import describe, format_checkpoint

HELP = """
What a variant is, what it costs, who published weights of it and how far each
file is proved. NAME.TAG shows one checkpoint with its file and its sources.
"""
EXAMPLES = (
    "repvgg-zoo info RepVGG_A0",
    "repvgg-zoo info a0.timm",
    "repvgg-zoo info RepVGG_N0.digits --json",
)
WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a variant, or NAME.TAG for one checkpoint; any known spelling")


def run(args: argparse.Namespace) -> int:
    model, tag = find_model(args.name)
    if tag is None:
        show(args, model, variant(model))
    else:
        checkpoint = model.checkpoint(tag)
        facts = {"name": checkpoint.name, **plain(checkpoint), "integrity": checkpoint.file.integrity}
        show(args, facts, published(model, checkpoint))
    return 0


def variant(model: ModelSpec) -> List[str]:
    """The registry's page of it, the first line in bold."""
    first, *rest = describe(model).rstrip("\n").split("\n\n")
    lines = [paint(first.partition("\n")[0], "bold"), *first.split("\n")[1:]]
    code = rest.index("Example:") if "Example:" in rest else len(rest)  # breaking its lines would break it
    for paragraph in rest[:code]:
        is_prose = "  " not in paragraph
        text = paragraph.replace("\n", " ") if is_prose else paragraph
        lines += ["", *(part for line in text.split("\n") for part in wrapped(line))]
    return [*lines, "", *"\n\n".join(rest[code:]).split("\n")]


def published(model: ModelSpec, checkpoint: CheckpointSpec) -> List[str]:
    """One checkpoint: what the variant's page says of it, then its file, sources, and where the facts were read."""
    file = checkpoint.file
    facts = {
        "format": f"{checkpoint.format}, layout {checkpoint.layout}, {checkpoint.form} form",
        "classes": checkpoint.num_classes,
        "aliases": ", ".join(checkpoint.aliases) or None,
        "file": file.name,
        "size": None if file.size is None else f"{file.size:,} bytes",
        "sha256": file.sha256 or (f"{file.sha256_prefix}..." if file.sha256_prefix else "not published"),
    }
    default = ", the default of" if checkpoint.tag == model.default else ", a checkpoint of"
    return [
        paint(f"{checkpoint.name}{default} {model.name}", "bold"),
        "",
        *(part for line in format_checkpoint(checkpoint) for part in wrapped(line[2:])),
        "",
        *pairs(facts),
        "sources, in the order in which they are tried:",
        *(f"  {source}" for source in file.sources),
        "read from:",
        *(f"  {source}" for source in checkpoint.provenance),
    ]


def wrapped(line: str) -> List[str]:
    """A line that is too long for a terminal in several; a value's further lines stand below its first."""
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
