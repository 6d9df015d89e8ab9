"""repvgg-zoo convert: a checkpoint to another layout, format or form, with a report of what was done."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from ...errors import ArgumentError, EquivalenceError
from ...hub.progress import format_size
from ..console import count, show
from .fetch import add_fetching, fetched

if TYPE_CHECKING:
    from ...checkpoints import Checkpoint

HELP = """
Reads a checkpoint of any known format and layout and writes it in another one.
SOURCE is a file, or a name of the registry, which is fetched. With --deploy the
three branches of each block become one convolution, and the report says how
exact that is. Needs NumPy only; values and dtypes are kept otherwise.

Read: safetensors, MegEngine, PyTorch and Paddle pickles; none can run code.
"""
EXAMPLES = (
    "repvgg-zoo convert RepVGG_N0 n0.pkl",
    "repvgg-zoo convert n0.pkl n0-deploy.safetensors --deploy",
    "repvgg-zoo convert RepVGG_N0.digits n0-timm.safetensors --layout timm --check",
    "repvgg-zoo convert n0.pkl n0-deploy.safetensors --deploy --force --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ...checkpoints.save import FORMAT_SUFFIXES, WRITABLE_LAYOUTS

    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file, or NAME or NAME.TAG of the registry")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    parser.add_argument(
        "--layout", choices=WRITABLE_LAYOUTS, default="canonical", help="whose keys and shapes (default: canonical)"
    )
    parser.add_argument(
        "--format", choices=list(FORMAT_SUFFIXES), help="default: by OUT's suffix, .safetensors or .pkl"
    )
    parser.add_argument("--deploy", action="store_true", help="re-parameterise: write the deploy form")
    parser.add_argument("--from-layout", metavar="LAYOUT", help="SOURCE's layout; recognised from its keys otherwise")
    parser.add_argument("--check", action="store_true", help="read OUT back and compare it bit for bit")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    add_fetching(parser)


def run(args: argparse.Namespace) -> int:
    from ...checkpoints import load_checkpoint, save_checkpoint
    from ...checkpoints.save import output_format

    if args.out.exists() and not args.force:
        raise ArgumentError(f"{args.out} exists already", path=args.out, hint="--force overwrites it")
    source, layout = resolved(args)
    checkpoint = load_checkpoint(source, layout=layout)
    read = described(source, checkpoint.format, checkpoint.layout, checkpoint.form, checkpoint.state_dict)
    read["skipped"] = [{"key": key, "why": why} for key, why in checkpoint.report.skipped]
    read["reshaped"], read["transposed"] = len(checkpoint.report.reshaped), len(checkpoint.report.transposed)
    fusion = fuse(checkpoint) if args.deploy and checkpoint.form == "train" else None
    arrays = checkpoint.state_dict if fusion is None else fusion.arrays
    form = "deploy" if args.deploy else checkpoint.form
    save_checkpoint(args.out, arrays, layout=args.layout, format=args.format)
    format = output_format(args.out, args.format)
    wrote = described(args.out, format, args.layout, form, arrays)
    if args.check:
        check(args.out, args.layout, arrays)
    facts = {"read": read, "fused": fusion and fusion.facts, "wrote": wrote, "checked": args.check}
    show(args, facts, lines(facts))
    return 0


def resolved(args: argparse.Namespace) -> Tuple[Path, Optional[str]]:
    """The source's path and its layout, if that is known without looking."""
    from .verify import is_path

    if is_path(args.source):
        return Path(args.source), args.from_layout
    from ...registry.api import find_default_checkpoint

    checkpoint = find_default_checkpoint(args.source)
    return fetched(checkpoint.file, args), args.from_layout or checkpoint.layout


@dataclass(frozen=True)
class Fusion:
    """The arrays of the deploy form, and how exact they are."""

    arrays: Mapping[str, Any]
    facts: Dict[str, Any]


def fuse(checkpoint: Checkpoint) -> Fusion:
    """Re-parameterises; raises EquivalenceError if a block changes its output by more than rounding does."""
    from ...reparam.fusion import block_bound, fuse_state_dict, fusion_errors

    arrays = fuse_state_dict(checkpoint.state_dict)
    errors = fusion_errors(checkpoint.state_dict, arrays)
    worst = max(errors, key=lambda block: errors[block])
    bound = block_bound(arrays)
    if not errors[worst] <= bound:
        raise EquivalenceError(
            f"block {worst} changes its output by {errors[worst]:.1e} of its scale when fused; nothing was written",
            path=checkpoint.path,
            expected=f"at most {bound:g}",
            actual=errors[worst],
            hint="these weights are extreme or damaged; convert without --deploy to look at them",
        )
    return Fusion(arrays, {"blocks": errors, "worst_block": worst, "worst_error": errors[worst], "bound": bound})


def check(path: Path, layout: str, arrays: Mapping[str, Any]) -> None:
    """Reads the written file and holds it against what was meant; raises EquivalenceError for any difference."""
    import numpy as np

    from ...checkpoints import load_checkpoint

    again = load_checkpoint(path, layout=layout).state_dict
    different = [
        key
        for key in sorted({*arrays, *again})
        if key not in arrays
        or key not in again
        or arrays[key].dtype != again[key].dtype
        or not np.array_equal(arrays[key].reshape(-1), again[key].reshape(-1))
    ]
    if different:
        raise EquivalenceError(
            f"{path} does not read back as it was written: {', '.join(different[:5])}",
            path=path,
            actual=different,
            hint="the disk may be damaged; do not use this file",
        )


def described(path: Path, format: str, layout: str, form: str, arrays: Mapping[str, Any]) -> Dict[str, Any]:
    """What a file holds."""
    return {
        "path": path,
        "size": path.stat().st_size,
        "format": format,
        "layout": layout,
        "form": form,
        "arrays": len(arrays),
        "numbers": sum(int(array.size) for array in arrays.values()),
        "dtypes": sorted({array.dtype.name for array in arrays.values()}),
    }


def lines(facts: Mapping[str, Any]) -> List[str]:
    """The report, in the order in which things were done."""
    read, fused, wrote = facts["read"], facts["fused"], facts["wrote"]
    shown = [*file_lines("read ", read)]
    shown += [f"       left out {one['key']}: {one['why']}" for one in read["skipped"][:10]]
    if len(read["skipped"]) > 10:
        shown.append(f"       and {len(read['skipped']) - 10} more left out; --json lists them")
    if fused is not None:
        shown.append(
            f"fused  {count(len(fused['blocks']), 'block')}, worst {fused['worst_block']}: changed by "
            f"{fused['worst_error']:.1e} of its scale (bound {fused['bound']:g})"
        )
    shown += file_lines("wrote", wrote)
    return [*shown, "check  read back, every array bit for bit the same"] if facts["checked"] else shown


def file_lines(verb: str, facts: Mapping[str, Any]) -> List[str]:
    """Two lines about a file."""
    return [
        f"{verb}  {facts['path']}, {format_size(facts['size'])}",
        f"       {facts['format']}, layout {facts['layout']}, {facts['form']} form, "
        f"{facts['arrays']} arrays of {', '.join(facts['dtypes'])}, {facts['numbers']:,} numbers",
    ]
