"""repvgg-zoo convert: write a checkpoint in another layout, format or form, and report what was done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from ..._text import pluralize
from ...errors import ArgumentError, EquivalenceError
from ...hub.progress import format_size
from ...registry.model_or_file import find_model_or_file
from ...registry.names import find_checkpoint
from ...registry.specs import CheckpointSpec
from ..common import add_fetch_options, count_arrays, fetch
from ..console import Result

if TYPE_CHECKING:
    from ...checkpoints import Checkpoint

HELP = """
Reads a checkpoint of any known format and layout and writes it in another one.
SOURCE is a file, or a name of the registry, which is fetched. With --deploy the
three branches of each block are fused into one convolution, and the error of
each block is checked and reported. Other values and all dtypes are kept. Needs
NumPy only.

Reads safetensors, and pickles of MegEngine, PyTorch and Paddle without running
any code in them.
"""
EXAMPLES = (
    "repvgg-zoo convert RepVGG_N0 n0.pkl",
    "repvgg-zoo convert n0.pkl n0-deploy.safetensors --deploy",
    "repvgg-zoo convert RepVGG_N0.digits n0-timm.safetensors --layout timm --check",
    "repvgg-zoo convert n0.pkl n0-deploy.safetensors --deploy --force --json",
    "repvgg-zoo convert RepVGG_N0 n0.pth --layout timm",
)
MAX_SKIPPED_LINES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...checkpoints.save import FORMAT_SUFFIXES, WRITABLE_LAYOUTS

    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file, or NAME or NAME.TAG of the registry")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    parser.add_argument(
        "--layout", choices=WRITABLE_LAYOUTS, help="key names and shapes (default: official for .pth, else canonical)"
    )
    parser.add_argument(
        "--format", choices=tuple(FORMAT_SUFFIXES), help="default: by OUT's suffix, .safetensors, .pkl or .pth"
    )
    parser.add_argument("--deploy", action="store_true", help="re-parameterize: write the deploy form")
    parser.add_argument("--from-layout", metavar="LAYOUT", help="SOURCE's layout (default: detected from its keys)")
    parser.add_argument("--state", metavar="KEY", help="which of several state dicts in SOURCE, such as ema")
    parser.add_argument("--prefix", metavar="PREFIX", help="which of several networks in SOURCE, such as backbone.")
    parser.add_argument("--check", action="store_true", help="read OUT again and compare it bit for bit")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_fetch_options(parser)


def run(args: argparse.Namespace) -> Result:
    from ...checkpoints import load_checkpoint, save_checkpoint
    from ...checkpoints.save import default_layout, output_format
    from ...weights import with_spec

    if args.out.exists() and not args.force:
        raise ArgumentError(f"{args.out} exists already", path=args.out, hint="--force overwrites it")
    path, layout, spec = source_file(args)
    checkpoint = load_checkpoint(path, layout=layout, state=args.state, prefix=args.prefix)
    if spec is not None:
        checkpoint = with_spec(checkpoint, spec, spec.file.sha256)
    read = to_dict(path, checkpoint.format, checkpoint.layout, checkpoint.form, checkpoint.state_dict)
    read["skipped"] = [{"key": key, "why": why} for key, why in checkpoint.report.skipped]
    read["reshaped"], read["transposed"] = len(checkpoint.report.reshaped), len(checkpoint.report.transposed)
    fusion = None
    if args.deploy and checkpoint.form == "train":
        checkpoint, fusion = fuse(checkpoint)
    out_format = output_format(args.out, args.format)
    out_layout = args.layout or default_layout(out_format)
    save_checkpoint(args.out, checkpoint, layout=out_layout, format=out_format)
    arrays = checkpoint.state_dict
    written = to_dict(args.out, out_format, out_layout, checkpoint.form, arrays)
    if args.check:
        check(args.out, out_layout, arrays)
    return Result({"read": read, "fused": fusion, "wrote": written, "checked": args.check}, render)


def source_file(args: argparse.Namespace) -> Tuple[Path, Optional[str], Optional[CheckpointSpec]]:
    """Return the source's path, its layout or None to detect it, and what the registry says about it."""
    target = find_model_or_file(args.source)
    if isinstance(target, Path):
        return target, args.from_layout, None
    checkpoint = find_checkpoint(*target)
    return fetch(checkpoint.file, args), args.from_layout or checkpoint.layout, checkpoint


def fuse(checkpoint: Checkpoint) -> Tuple[Checkpoint, Dict[str, Any]]:
    """Return the deploy form and the error of each block; raise EquivalenceError above the bound."""
    from ...reparam import fusion

    fused = fusion.fuse(checkpoint)
    errors = fusion.fusion_errors(checkpoint.state_dict, fused.state_dict, checkpoint.metadata.bn_eps)
    worst = max(errors, key=lambda block: errors[block])
    bound = fusion.block_bound(fused.state_dict)
    if not errors[worst] <= bound:
        raise EquivalenceError(
            f"fusing block {worst} changes its output by {errors[worst]:.1e} of its scale; nothing was written",
            path=checkpoint.path,
            expected=f"at most {bound:g}",
            actual=errors[worst],
            hint="these weights are extreme or damaged; convert without --deploy to look at them",
        )
    return fused, {"blocks": errors, "worst_block": worst, "worst_error": errors[worst], "bound": bound}


def check(path: Path, layout: str, arrays: Mapping[str, Any]) -> None:
    """Read the written file and compare it with the arrays; raise EquivalenceError for any difference."""
    import numpy as np

    from ...checkpoints import load_checkpoint

    written = load_checkpoint(path, layout=layout).state_dict
    different = [
        key
        for key in sorted({*arrays, *written})
        if key not in arrays
        or key not in written
        or arrays[key].dtype != written[key].dtype
        or not np.array_equal(arrays[key].reshape(-1), written[key].reshape(-1))
    ]
    if different:
        raise EquivalenceError(
            f"{path} differs from what was written to it: {', '.join(different[:5])}",
            path=path,
            actual=different,
            hint="the disk may be damaged; do not use this file",
        )


def to_dict(path: Path, format: str, layout: str, form: str, arrays: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the properties of a checkpoint file as data."""
    return {
        "path": path,
        "size": path.stat().st_size,
        "format": format,
        "layout": layout,
        "form": form,
        **count_arrays(arrays),
    }


def render(payload: Mapping[str, Any]) -> List[str]:
    """Return the report, step by step."""
    read, fused, skipped = payload["read"], payload["fused"], payload["read"]["skipped"]
    lines = render_file("read ", read)
    lines += [f"       skipped {item['key']}: {item['why']}" for item in skipped[:MAX_SKIPPED_LINES]]
    if len(skipped) > MAX_SKIPPED_LINES:
        lines.append(f"       skipped {len(skipped) - MAX_SKIPPED_LINES} more; --json lists them")
    if fused is not None:
        lines.append(
            f"fused  {pluralize(len(fused['blocks']), 'block')}, worst {fused['worst_block']}: changed by "
            f"{fused['worst_error']:.1e} of its scale (bound {fused['bound']:g})"
        )
    lines += render_file("wrote", payload["wrote"])
    return [*lines, "check  every array of the file is equal bit for bit"] if payload["checked"] else lines


def render_file(verb: str, file: Mapping[str, Any]) -> List[str]:
    """Return two lines about a file."""
    return [
        f"{verb}  {file['path']}, {format_size(file['size'])}",
        f"       {file['format']}, layout {file['layout']}, {file['form']} form, "
        f"{file['arrays']} arrays of {', '.join(file['dtypes'])}, {file['numbers']:,} numbers",
    ]
