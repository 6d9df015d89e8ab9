"""repvgg-zoo predict: predict the classes of images, as a table, as JSON, or drawn beside the image."""

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
Predicts the most probable classes of each image. Images are preprocessed as the
checkpoint's publisher does it, and rotated by their EXIF orientation. The
checkpoint is fetched if it is not in the cache.

Exit code 1 if an image could not be read; the others are still predicted.
"""
EXAMPLES = (
    "repvgg-zoo predict digit.png --model RepVGG_N0",
    "repvgg-zoo predict digit.png other.jpg --model RepVGG_N0.digits --topk 3",
    "repvgg-zoo predict digit.png --model n0 --output-image result.png",
    "repvgg-zoo predict digit.png --model n0 --json",
)
MODEL = "RepVGG_A0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or TIFF")
    parser.add_argument(
        "--model", metavar="NAME", default=MODEL, help=f"a variant (its default checkpoint) or NAME.TAG ({MODEL})"
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="how many classes (5)")
    parser.add_argument("--output-image", type=Path, metavar="OUT", help="draw IMAGE with its classes into this file")
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
    drawn: Optional[Path] = args.output_image if first["predictions"] else None
    if drawn is not None:
        from ..draw import draw_predictions

        draw_predictions(first["image"], first["predictions"], checkpoint.name).save(drawn)
    show(args, {"model": checkpoint.name, "images": found, "output_image": drawn}, lines(found, checkpoint.name, drawn))
    return int(any(one["error"] for one in found))


def check(args: argparse.Namespace) -> None:
    """What is wrong with the arguments is told before anything is downloaded."""
    if args.topk < 1:
        raise ArgumentError(f"--topk is {args.topk}", expected="an integer of at least 1", actual=args.topk)
    if args.output_image is None:
        return
    if len(args.images) > 1:
        raise ArgumentError("--output-image draws one IMAGE", actual=len(args.images), hint="one command for each")
    from PIL import Image

    if Image.registered_extensions().get(args.output_image.suffix.lower()) not in Image.SAVE:
        raise ArgumentError(
            f"{args.output_image} does not have the suffix of an image format",
            path=args.output_image,
            hint="such as .png",
        )
    if args.output_image.exists() and not args.force:
        raise ArgumentError(f"{args.output_image} exists already", path=args.output_image, hint="--force overwrites it")


def lines(found: List[Dict[str, Any]], name: str, drawn: Optional[Path]) -> List[str]:
    """Return a table for each image."""
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
