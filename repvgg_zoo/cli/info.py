"""repvgg-zoo info: all that is known of one variant, or of one checkpoint."""

from __future__ import annotations

import argparse
from typing import List

from ..registry import page
from ..registry.spec import CheckpointSpec, ModelSpec
from ..registry.zoo import find_model
from .output import pairs, paint, plain, show

HELP = """
What a variant is, what it costs, who published weights of it and how far each
file is proved. NAME.TAG shows one checkpoint with its file and its sources.
"""
EXAMPLES = (
    "repvgg-zoo info RepVGG_A0",
    "repvgg-zoo info a0.timm",
    "repvgg-zoo info RepVGG_N0.digits --json",
)


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
    first, *rest = page.page(model).rstrip("\n").split("\n")
    return [paint(first, "bold"), *rest]


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
        *(line[2:] for line in page.described(checkpoint)),
        "",
        *pairs(facts),
        "sources, in the order in which they are tried:",
        *(f"  {source}" for source in file.sources),
        "read from:",
        *(f"  {origin}" for origin in checkpoint.origin),
    ]
