"""repvgg-zoo finetune: a checkpoint for the classes of a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, Dict, Tuple

from ...registry.model_or_file import find_model_or_file
from ...training.recipe import BN_MODES, DEFAULT_LR, MODES, STAGES, Recipe
from ..common import add_fetch_options, fetch_model
from ..console import Result, print_error
from ..megengine_setup import default_to_cpu

HELP = """
Trains a checkpoint for the classes of your images: first a new head on the
pooled features of all images and then, unless --mode probe, all weights from
there. SOURCE is a file, or a name of the registry, which is fetched. DATA is a
folder with a folder of images for each class.

OUT gets best.safetensors and last.safetensors, which say their classes and
preprocessing, so that all other commands take them; report.json; and curves.png
if matplotlib is installed. The same command goes on with a run that was
interrupted. Exit code 6 if training diverges.
"""
EXAMPLES = (
    "repvgg-zoo finetune RepVGG_N0 digits head --mode probe",
    "repvgg-zoo finetune RepVGG_N0 digits run --epochs 2 --val-share 0.2",
)
DEFAULTS = Recipe()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file, or NAME or NAME.TAG of the registry")
    parser.add_argument("data", metavar="DATA", help="a folder with a folder for each class, or tar files")
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder of the run, which is created")
    parser.add_argument("--val", metavar="DATA", help="images for validation (default: a tenth of each class)")
    parser.add_argument("--val-share", type=float, metavar="X", help="the share of DATA that is held out instead")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="the labels of DATA, a folder without classes")
    parser.add_argument("--mode", choices=MODES, default=DEFAULTS.mode, help="default: %(default)s")
    parser.add_argument(
        "--bn", choices=BN_MODES, help=f"statistics of batch normalization (default: {DEFAULTS.bn}, which is faster)"
    )
    parser.add_argument("--freeze-until", choices=STAGES, help="the last stage that is not trained")
    _add_numbers(parser)
    parser.add_argument("--custom-l2", action="store_true", default=None, help="the official code's weight decay")
    parser.add_argument(
        "--flip", action="store_true", default=None, help="mirror images (default: if classes allow it)"
    )
    parser.add_argument("--no-flip", action="store_false", dest="flip", help="do not mirror images")
    parser.add_argument("--skip-errors", action="store_true", help="pass over images that cannot be read")
    parser.add_argument("--no-resume", action="store_true", help="refuse a folder that holds a run")
    parser.add_argument("--curves", action="store_true", default=None, help="fail if matplotlib is not installed")
    parser.add_argument("--no-amp", action="store_false", dest="amp", default=None, help="on a GPU: float32 throughout")
    add_fetch_options(parser)


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    frozen, train = DEFAULT_LR["frozen"], DEFAULT_LR["train"]
    numbers: Dict[str, Tuple[Callable[[str], float], str, str]] = {
        "epochs": (int, "N", "passes over the images"),
        "lr": (
            float,
            "X",
            f"the highest learning rate (default: {frozen:g}; {train:g} with --bn train)",
        ),
        "batch-size": (int, "N", "images of a step"),
        "warmup-epochs": (float, "X", "epochs in which the learning rate rises"),
        "momentum": (float, "X", "of SGD"),
        "weight-decay": (float, "X", "of kernels"),
        "label-smoothing": (float, "X", "from 0 to below 1"),
        "min-crop": (float, "X", "the smallest share of an image's area in a crop"),
        "ema": (float, "X", "the decay of averaged weights; 0 for none"),
        "seed": (int, "N", "of all that is random"),
    }
    for name, (kind, metavar, text) in numbers.items():
        default = getattr(DEFAULTS, name.replace("-", "_"))
        text = text if name == "lr" else f"{text} (default: {default:g})"
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--image-size", type=int, metavar="N", help="default: that of the checkpoint")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--devices", type=int, metavar="N", help="GPUs (default: all)")


def run(args: argparse.Namespace) -> Result:
    from ...errors import ArgumentError

    if args.val is not None and args.val_share is not None:
        raise ArgumentError("--val and --val-share exclude each other", hint="keep one of them")
    target = find_model_or_file(args.source)
    from ...training.finetuning import finetune

    model = fetch_model(target, args)
    default_to_cpu()
    names = ("mode", "bn", "freeze_until", "custom_l2", "flip", "image_size", "threads", "devices", "amp", "curves")
    numbers = ("epochs", "lr", "batch_size", "warmup_epochs", "momentum", "weight_decay", "label_smoothing", "min_crop")
    options = {name: getattr(args, name) for name in (*names, *numbers, "ema", "seed")}
    report = finetune(
        model,
        args.data,
        output=args.output,
        val=args.val if args.val_share is None else args.val_share,
        labels=args.labels,
        on_error="skip" if args.skip_errors else "error",
        resume=not args.no_resume,
        on_epoch=lambda epoch: print_error(str(epoch)),
        **options,
    )
    return Result(report.to_dict(), lambda payload: str(report).split("\n"))
