"""repvgg-zoo export: write a network for other runtimes, and report how the file was checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...errors import ArgumentError
from ...registry.model_or_file import find_model_or_file
from ..common import add_fetch_options, fetch_model
from ..console import Result
from ..megengine_setup import default_to_cpu

HELP = """
Writes a network as ONNX (OUT ends in .onnx) or for MegEngine Lite (.mge).
SOURCE is a name of the registry, which is fetched, or a checkpoint file. ONNX
needs neither MegEngine nor the onnx package.

The file says its variant, classes, preprocessing and license, which info shows.
Before it gets its name it is read again; where ONNX Runtime or OpenVINO is
installed, it is run there and the outputs are compared with our own.
"""
EXAMPLES = (
    "repvgg-zoo export RepVGG_N0.digits n0.onnx",
    "repvgg-zoo info n0.onnx",
    "repvgg-zoo export RepVGG_N0 n0-uint8.onnx --input uint8 --softmax --batch 1",
    "repvgg-zoo export RepVGG_N0 maps.onnx --features-only --image-size dynamic",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="NAME or NAME.TAG of the registry, or a checkpoint file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write; its suffix is .onnx or .mge")
    parser.add_argument("--batch", type=int, metavar="N", help="images at once (default: any number)")
    parser.add_argument(
        "--image-size", type=image_size, metavar="SIZE", help='a number, HxW, or "dynamic" (default: the checkpoint\'s)'
    )
    parser.add_argument(
        "--input",
        choices=("float32", "uint8"),
        default="float32",
        help="uint8: pixels in RGB order, normalized in the model (default: float32)",
    )
    parser.add_argument("--softmax", action="store_true", help="probabilities instead of logits")
    parser.add_argument("--train-form", action="store_true", help="write the branches and batch normalizations")
    parser.add_argument("--features-only", action="store_true", help="the feature map of each stage, without the head")
    parser.add_argument("--for-x86", action="store_true", help=".mge: lay the weights out for x86 processors")
    parser.add_argument("--float16", action="store_true", help=".mge: store the weights in half precision")
    parser.add_argument("--target", choices=("tensorrt",), help="int8 activations are signed, as TensorRT needs them")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_fetch_options(parser)


def image_size(text: str) -> Any:
    """Return the argument of --image-size."""
    if text == "dynamic":
        return text
    height, separator, width = text.partition("x")
    return (int(height), int(width)) if separator else int(height)


def run(args: argparse.Namespace) -> Result:
    default_to_cpu()
    from ...exporters.api import export

    if args.out.exists() and not args.force:
        raise ArgumentError(f"{args.out} exists already", path=args.out, hint="--force overwrites it")
    target = find_model_or_file(args.source)
    report = export(
        fetch_model(target, args),
        args.out,
        batch=args.batch,
        image_size=args.image_size,
        input=args.input,
        softmax=args.softmax,
        deploy=not args.train_form,
        features_only=args.features_only,
        for_x86=args.for_x86,
        float16=args.float16,
        target=args.target,
    )
    return Result(report, lambda _: str(report).split("\n"))
