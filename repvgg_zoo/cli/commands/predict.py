"""repvgg-zoo predict: what a network sees in pictures, as text, JSON, or drawn beside the picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional

from ...errors import ArgumentError
from ...registry.api import find_default_checkpoint
from ..console import paint, show, table
from ..megengine_setup import prepare_megengine
from .fetch import add_fetching, fetched

HELP = """
The likeliest classes of each picture, the likeliest first. Pictures are
prepared as the checkpoint's publisher does it, and turned upright by their
EXIF orientation. The checkpoint is fetched at its first use.

Exit code 1 if a picture could not be read; the others are still predicted.
"""
EXAMPLES = (
    "repvgg-zoo predict digit.png --model RepVGG_N0",
    "repvgg-zoo predict digit.png other.jpg --model RepVGG_N0.digits --topk 3",
    "repvgg-zoo predict digit.png --model n0 --picture shown.png",
    "repvgg-zoo predict digit.png --model n0 --json",
)
MODEL = "RepVGG_A0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture in any common format")
    parser.add_argument(
        "--model", metavar="NAME", default=MODEL, help=f"a variant (its default checkpoint) or NAME.TAG ({MODEL})"
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="how many classes (5)")
    parser.add_argument("--picture", type=Path, metavar="OUT", help="draw IMAGE with its classes into this file")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_fetching(parser)


def run(args: argparse.Namespace) -> int:
    checkpoint = find_default_checkpoint(args.model)
    check(args)
    fetched(checkpoint.file, args)  # with this command's options; compile then finds it in the cache
    prepare_megengine()
    from ...image.predict import predict
    from ...inference.api import compile

    found: List[Dict[str, Any]] = []
    with compile(checkpoint.name) as network:
        for image in args.images:
            try:
                found.append({"image": image, "predictions": predict(network, image, topk=args.topk), "error": None})
            except ArgumentError as error:
                found.append({"image": image, "predictions": [], "error": error.message})
    first = found[0]
    drawn: Optional[Path] = args.picture if first["predictions"] else None
    if drawn is not None:
        from ..draw import draw

        draw(first["image"], first["predictions"], checkpoint.name).save(drawn)
    show(args, {"model": checkpoint.name, "images": found, "picture": drawn}, lines(found, checkpoint.name, drawn))
    return int(any(one["error"] for one in found))


def check(args: argparse.Namespace) -> None:
    """What is wrong with the arguments is told before anything is downloaded."""
    if args.topk < 1:
        raise ArgumentError(f"--topk is {args.topk}", expected="a whole number from 1 on", actual=args.topk)
    if args.picture is None:
        return
    if len(args.images) > 1:
        raise ArgumentError("--picture draws one IMAGE", actual=len(args.images), hint="one command for each")
    from PIL import Image

    if Image.registered_extensions().get(args.picture.suffix.lower()) not in Image.SAVE:
        raise ArgumentError(f"{args.picture} has no suffix of a picture", path=args.picture, hint="such as .png")
    if args.picture.exists() and not args.force:
        raise ArgumentError(f"{args.picture} exists already", path=args.picture, hint="--force overwrites it")


def lines(found: List[Dict[str, Any]], name: str, drawn: Optional[Path]) -> List[str]:
    """A table for each picture."""
    said: List[str] = [f"as {name} sees it:"]
    for one in found:
        said += ["", paint(str(one["image"]), "bold")]
        if one["error"]:
            said.append(paint(one["error"], "red"))
            continue
        rows = [[f"{100 * p.probability:.1f} %", p.label, p.synset or "", str(p.index)] for p in one["predictions"]]
        has_synsets = any(row[2] for row in rows)
        heads = ["probability", "class", "synset", "index"]
        kept = [column for column, head in enumerate(heads) if has_synsets or head != "synset"]
        said += table(
            [heads[column] for column in kept],
            [[row[column] for column in kept] for row in rows],
            right=["probability", "index"],
        )
    return said if drawn is None else [*said, "", f"drawn: {drawn}"]
