"""repvgg-zoo predict: the classes of images, as a table, as JSON, or drawn beside the image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ..._atomic import atomic_write
from ...errors import ArgumentError
from ...registry.api import find_default_checkpoint
from ..common import add_fetch_options, fetch
from ..console import Result, style, table
from ..megengine_setup import default_to_cpu

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
DEFAULT_MODEL = "RepVGG_A0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or TIFF")
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=DEFAULT_MODEL,
        help="a variant (its default checkpoint) or NAME.TAG (default: %(default)s)",
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="number of classes (default: %(default)s)")
    parser.add_argument("--output-image", type=Path, metavar="OUT", help="draw IMAGE and its classes into this file")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    checkpoint = find_default_checkpoint(args.model)
    validate(args)
    fetch(checkpoint.file, args)  # with this command's options; compile then finds it in the cache
    default_to_cpu()
    from ...image.predict import predict
    from ...inference.api import compile

    rows: List[Dict[str, Any]] = []
    with compile(checkpoint.name) as network:
        for image in args.images:
            try:
                rows.append({"image": image, "predictions": predict(network, image, topk=args.topk), "error": None})
            except ArgumentError as error:
                rows.append({"image": image, "predictions": [], "error": error.message})
    output_image: Optional[Path] = args.output_image if rows[0]["predictions"] else None
    if output_image is not None:
        from PIL import Image

        from ..draw import draw_predictions

        figure = draw_predictions(rows[0]["image"], rows[0]["predictions"], checkpoint.name)
        image_format = Image.registered_extensions()[output_image.suffix.lower()]
        atomic_write(output_image, lambda stream: figure.save(stream, image_format))
    payload = {"model": checkpoint.name, "images": rows, "output_image": output_image}
    return Result(payload, render, int(any(row["error"] for row in rows)))


def validate(args: argparse.Namespace) -> None:
    """Raise ArgumentError for invalid arguments, before anything is downloaded."""
    if args.topk < 1:
        raise ArgumentError(f"--topk is {args.topk}", expected="an integer of at least 1", actual=args.topk)
    path = args.output_image
    if path is None:
        return
    if len(args.images) > 1:
        raise ArgumentError("--output-image draws one IMAGE", actual=len(args.images), hint="one command for each")
    from PIL import Image

    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ArgumentError(f"{path} does not have the suffix of an image format", path=path, hint="such as .png")
    if path.exists() and not args.force:
        raise ArgumentError(f"{path} exists already", path=path, hint="--force overwrites it")


def render(payload: Mapping[str, Any]) -> List[str]:
    """Return a table for each image."""
    lines: List[str] = [f"predictions of {payload['model']}:"]
    for row in payload["images"]:
        lines += ["", style(str(row["image"]), "bold")]
        if row["error"]:
            lines.append(style(row["error"], "red"))
            continue
        columns = {
            "probability": [f"{100 * prediction.probability:.1f} %" for prediction in row["predictions"]],
            "class": [prediction.label for prediction in row["predictions"]],
            "synset": [prediction.synset or "" for prediction in row["predictions"]],
            "index": [str(prediction.index) for prediction in row["predictions"]],
        }
        columns = {head: cells for head, cells in columns.items() if any(cells)}
        lines += table(list(columns), list(zip(*columns.values())), right=["probability", "index"])
    return lines if payload["output_image"] is None else [*lines, "", f"wrote {payload['output_image']}"]
