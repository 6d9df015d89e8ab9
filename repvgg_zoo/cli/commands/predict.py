"""repvgg-zoo predict: the classes of images, as tables, as JSON, or drawn beside the image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ..._atomic import atomic_write
from ..._text import pluralize
from ...errors import ArgumentError, LayoutError, MissingFileError, ZooError
from ...registry.model_or_file import find_model_or_file
from ...registry.names import find_checkpoint
from ...registry.specs import CheckpointSpec
from ..common import add_fetch_options, fetch
from ..console import Result, style, table
from ..megengine_setup import default_to_cpu
from ..run_options import add_run_options, check_no_run_options, run_job, run_result

if TYPE_CHECKING:
    from ...checkpoints import Checkpoint
    from ...inference.quantized_network import QuantizedNetwork

HELP = """
Predicts the most probable classes of each image. IMAGE may be a folder, whose
images are predicted in the order of their paths, those of its subfolders too.
Images are preprocessed as the checkpoint says, or as its publisher does it, and
rotated by their EXIF orientation. A checkpoint of the registry is fetched if it
is not in the cache, once an image was read.

Exit code 1 if an image could not be read, 5 if one does not exist; the others
are still predicted.

With --output, for any number of images on many cores or machines: a CSV or
Parquet file for each shard of the images is written into FOLDER, and the same
command again continues a run that was interrupted. IMAGE may then also be a tar
file, or a URL.
"""
EXAMPLES = (
    "repvgg-zoo predict digit.png --model RepVGG_N0",
    "repvgg-zoo predict digit.png other.jpg --model RepVGG_N0.digits --topk 3",
    "repvgg-zoo predict digit.png --model n0 --output-image result.png",
    "repvgg-zoo convert RepVGG_N0 own.pkl --force",
    "repvgg-zoo predict . --model own.pkl --json",
    "repvgg-zoo predict digits --model n0 --output predictions --workers 2",
)
DEFAULT_MODEL = "RepVGG_A0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, WebP, GIF, BMP or TIFF, or a folder")
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        default=DEFAULT_MODEL,
        help="a variant (its default checkpoint), NAME.TAG, or a checkpoint file (default: %(default)s)",
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="number of classes (default: %(default)s)")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names: one a line, a JSON list, or JSON {index: name}"
    )
    parser.add_argument("--output-image", type=Path, metavar="OUT", help="draw IMAGE and its classes into this file")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--output", metavar="FOLDER", help="write a file for each shard of the images into it")
    add_run_options(parser)
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    target = find_model_or_file(args.model)
    model = target if isinstance(target, Path) else find_checkpoint(*target)
    validate(args)
    if args.output is not None:
        report = run_job("predict", args.model, args.images, args, topk=args.topk, class_names=args.labels)
        return run_result(report)
    from ...image.folder import find_images
    from ...image.label_file import read_label_file

    labels = None if args.labels is None else read_label_file(args.labels.expanduser())
    images = find_images(Path(image).expanduser() for image in args.images)
    rows, preprocessing_source = predict_all(images, model, labels, args)
    output_image: Optional[Path] = args.output_image if rows[0]["predictions"] else None
    name = str(model) if isinstance(model, Path) else model.name
    if output_image is not None:
        from PIL import Image

        from ..draw import draw_predictions

        figure = draw_predictions(rows[0]["image"], rows[0]["predictions"], name)
        image_format = Image.registered_extensions()[output_image.suffix.lower()]
        atomic_write(output_image, lambda stream: figure.save(stream, image_format))
    errors = [row.pop("exception") for row in rows]
    payload: Dict[str, Any] = {
        "model": name,
        "preprocessing_source": preprocessing_source,
        "images": rows,
        "unreadable": sum(error is not None for error in errors),
        "output_image": output_image,
    }
    is_missing = any(isinstance(error, MissingFileError) for error in errors)
    return Result(payload, lambda _: render(payload, isinstance(model, Path)), 5 if is_missing else int(any(errors)))


def predict_all(
    images: Sequence[Path],
    model: Union[Path, CheckpointSpec],
    labels: Optional[Sequence[str]],
    args: argparse.Namespace,
) -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """Return a row for each image, and where the preprocessing is from.

    Nothing is fetched unless one of the images can be read.
    """
    from ...image.io import load_image

    if isinstance(model, CheckpointSpec):
        check_labels(labels, model.num_classes, args)
    rows: List[Dict[str, Any]] = []
    for image in images:
        try:
            load_image(image, "RGB")
            break
        except ArgumentError as error:
            rows.append(to_row(image, error=error))
    else:
        return rows, None
    if isinstance(model, CheckpointSpec):
        fetch(model.file, args)  # with this command's options; compile then finds it in the cache
        network_source: Union[str, Checkpoint, QuantizedNetwork] = model.name
    else:
        network_source, num_classes = load_file(model)
        check_labels(labels, num_classes, args)
    default_to_cpu()
    from ...image.predict import predict
    from ...inference.api import compile

    with compile(network_source) as network:
        for image in images[len(rows) :]:
            try:
                rows.append(to_row(image, predict(network, image, topk=args.topk, labels=labels)))
            except ArgumentError as error:
                rows.append(to_row(image, error=error))
        return rows, network.metadata.preprocessing_source


def load_file(path: Path) -> Tuple[Union[Checkpoint, QuantizedNetwork], int]:
    """Return what is in a classifier's file, and how many classes it has."""
    from ...checkpoints.state_dict import class_count
    from ...image.preprocess import open_model
    from ...inference.quantized_network import QuantizedNetwork

    weights = open_model(path)
    if isinstance(weights, QuantizedNetwork):
        num_classes = weights.num_classes
    else:
        num_classes = class_count(weights.state_dict)
    if num_classes is None:
        raise LayoutError(
            f"{path} has no head, so it predicts no classes", path=path, hint="pass the file of a classifier"
        )
    return weights, num_classes


def check_labels(labels: Optional[Sequence[str]], num_classes: int, args: argparse.Namespace) -> None:
    """Raise ArgumentError if there are labels, and not one for each class."""
    if labels is not None and len(labels) != num_classes:
        raise ArgumentError(
            f"{args.labels} has {len(labels)} names, and {args.model} has {num_classes} classes",
            path=args.labels,
            expected=num_classes,
            actual=len(labels),
            hint="write a name for each class, in the order of the logits",
        )


def to_row(image: Path, predictions: Sequence[Any] = (), error: Optional[ZooError] = None) -> Dict[str, Any]:
    """Return the record of an image."""
    message = None if error is None else error.message
    return {"image": image, "predictions": predictions, "error": message, "exception": error}


def validate(args: argparse.Namespace) -> None:
    """Raise ArgumentError for invalid arguments, before anything is downloaded."""
    if args.topk < 1:
        raise ArgumentError(f"--topk is {args.topk}", expected="an integer of at least 1", actual=args.topk)
    path = args.output_image
    if args.output is not None and path is not None:
        raise ArgumentError("--output-image is not for --output", actual=str(path), hint="leave one of them out")
    if args.output is None:
        check_no_run_options(args)
    if path is None:
        return
    if len(args.images) > 1 or Path(args.images[0]).is_dir():
        raise ArgumentError("--output-image draws one IMAGE", actual=len(args.images), hint="one command for each")
    from PIL import Image

    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ArgumentError(f"{path} does not have the suffix of an image format", path=path, hint="such as .png")
    if path.exists() and not args.force:
        raise ArgumentError(f"{path} exists already", path=path, hint="--force overwrites it")


def render(payload: Mapping[str, Any], is_file: bool) -> List[str]:
    """Return a table for each image; for a file, first where its preprocessing is from."""
    lines: List[str] = [f"predictions of {payload['model']}:"]
    if is_file and payload["preprocessing_source"] is not None:
        lines.append(f"preprocessing: {payload['preprocessing_source']}")
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
    if payload["unreadable"] and len(payload["images"]) > 1:
        names = pluralize(len(payload["images"]), "image")
        lines += ["", style(f"{payload['unreadable']} of {names} could not be read", "red")]
    return lines if payload["output_image"] is None else [*lines, "", f"wrote {payload['output_image']}"]
