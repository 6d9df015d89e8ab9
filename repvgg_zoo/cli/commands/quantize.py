"""repvgg-zoo quantize: a checkpoint in int8, calibrated on images, and how accurate each of its blocks is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Mapping

from ...errors import ArgumentError
from ...hub.progress import format_size
from ...registry.model_or_file import find_model_or_file
from ..common import add_fetch_options, fetch_model
from ..console import Result
from ..megengine_setup import default_to_cpu

HELP = """
Quantizes a checkpoint to int8 and writes it as safetensors, about a quarter of
the size. SOURCE is a file, or a name of the registry, which is fetched. Ranges
are calibrated on three quarters of the images, some 100 or more such as the
network will see; the accuracy is measured on the others.

A block whose own signal-to-noise ratio is below --min-block-snr stays float,
and then the worst ones until the ratio of the logits reaches --min-snr. Exit
code 6 if that leaves no block to quantize.
"""
EXAMPLES = (
    "repvgg-zoo quantize RepVGG_N0 n0-int8.safetensors --images photos",
    "repvgg-zoo quantize n0 n0-int8.safetensors --images photos --force --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...inference.quantize import DEFAULT_MAX_IMAGES, DEFAULT_SNR, MAX_BITS, MIN_BITS

    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file, or NAME or NAME.TAG of the registry")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write, *.safetensors")
    parser.add_argument(
        "--images", nargs="+", type=Path, required=True, metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument(
        "--min-snr", type=float, default=DEFAULT_SNR, metavar="DB", help="of the logits (default: %(default)g dB)"
    )
    parser.add_argument(
        "--min-block-snr", type=float, default=DEFAULT_SNR, metavar="DB", help="of each block (default: %(default)g dB)"
    )
    parser.add_argument(
        "--max-images", type=int, default=DEFAULT_MAX_IMAGES, metavar="N", help="use at most N (default: %(default)s)"
    )
    parser.add_argument(
        "--weight-bits",
        type=int,
        default=MAX_BITS,
        metavar="N",
        help=f"{MIN_BITS} to {MAX_BITS} (default: %(default)s); fewer is an experiment",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    if args.out.exists() and not args.force:
        raise ArgumentError(f"{args.out} exists already", path=args.out, hint="--force overwrites it")
    target = find_model_or_file(args.source)
    from ...image.folder import find_images
    from ...inference.quantization_report import to_plain
    from ...inference.quantize import quantize
    from ...inference.quantized_file import check_target

    check_target(args.out)
    images = find_images(path.expanduser() for path in args.images)
    model = fetch_model(target, args)
    default_to_cpu()
    network = quantize(
        model,
        images,
        weight_bits=args.weight_bits,
        min_snr=args.min_snr,
        min_block_snr=args.min_block_snr,
        max_images=args.max_images,
        threads=args.threads,
    )
    network.save(args.out)
    payload = {
        "model": str(model),
        "out": args.out,
        "size": args.out.stat().st_size,
        "report": to_plain(network.report),
    }
    return Result(payload, lambda payload: render(payload, str(network.report)))


def render(payload: Mapping[str, Any], report: str) -> List[str]:
    """Return the report, and the file that was written."""
    lines = [f"{payload['model']}:", *report.split("\n")]
    return [*lines, "", f"wrote {payload['out']}, {format_size(payload['size'])}"]
