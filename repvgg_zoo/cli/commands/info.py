"""repvgg-zoo info: a variant, a checkpoint of the registry, or a checkpoint file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping

from ..._text import pluralize
from ...errors import LayoutError
from ...registry.model_or_file import find_model_or_file
from ...registry.specs import CheckpointSpec, ModelSpec
from ..common import count_arrays, try_each
from ..console import Prose, Result, Verbatim, key_values, style, to_jsonable
from ..describe import describe, format_checkpoint

HELP = """
Shows what a variant is, what it costs, its published checkpoints, and how far
the integrity of each file is known. NAME.TAG shows one checkpoint with its file
and its sources. FILE shows what a checkpoint file contains and which variant it
is of, or what an exported .onnx or .mge file says; verify also compares a digest
with the registry's.

With several, --json prints an array. One that is unknown or cannot be read does
not stop the others; its error is reported at the end, and has the exit code.
"""
EXAMPLES = (
    "repvgg-zoo info RepVGG_A0",
    "repvgg-zoo info a0.timm a0.official",
    "repvgg-zoo info RepVGG_N0.digits --json",
    "repvgg-zoo convert RepVGG_N0 own.pkl --force",
    "repvgg-zoo info own.pkl",
)

EXPORTED = (".onnx", ".mge")
MAX_VALUE = 60  # characters of an entry of their metadata; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME|FILE",
        help="a variant, NAME.TAG for a checkpoint, or a checkpoint file; any known spelling of a name",
    )


def run(args: argparse.Namespace) -> Result:
    results, failures = try_each(args.names, info)
    succeeded = [result for result in results if isinstance(result, Result)]
    payload = [result.payload if isinstance(result, Result) else result for result in results]
    return Result(payload if len(args.names) > 1 else payload[0], lambda _: render(succeeded), failures=failures)


def render(results: Iterable[Result]) -> List[str]:
    """Return the descriptions, with an empty line between them."""
    lines: List[Any] = []
    for result in results:
        lines += [*([""] if lines else []), *result.render(result.payload)]
    return lines


def info(name: str) -> Result:
    """Return the data and the text of one argument."""
    target = find_model_or_file(name)
    if isinstance(target, Path):
        if target.suffix.lower() in EXPORTED:
            return Result(exported_to_dict(target), render_exported)
        from ...inference.quantized_file import is_quantized_file

        return quantized_info(target) if is_quantized_file(target) else Result(file_to_dict(target), render_file)
    model, tag = target
    if tag is None:
        return Result(model, render_variant)
    checkpoint = model.checkpoint(tag)
    payload = {"name": checkpoint.name, **to_jsonable(checkpoint), "integrity": checkpoint.file.integrity}
    return Result(payload, lambda _: render_checkpoint(model, checkpoint))


def file_to_dict(path: Path) -> Dict[str, Any]:
    """Return what a checkpoint file contains; ``variant`` is None if the registry has none with these shapes."""
    from ...checkpoints import load_checkpoint
    from ...checkpoints.identify import identify_variant
    from ...checkpoints.publisher import complete_metadata
    from ...checkpoints.state_dict import class_count, input_channels

    checkpoint = load_checkpoint(path)
    arrays, metadata, problem = checkpoint.state_dict, complete_metadata(checkpoint), None
    if metadata.variant is None:
        try:
            identify_variant(checkpoint)
        except LayoutError as error:
            problem = error.message
    return {
        "path": path,
        "size": path.stat().st_size,
        "variant": metadata.variant,
        "problem": problem,
        "format": checkpoint.format,
        "layout": checkpoint.layout,
        "form": checkpoint.form,
        **count_arrays(arrays),
        "num_classes": class_count(arrays),
        "in_chans": input_channels(arrays),
        "skipped": dict(checkpoint.report.skipped),
        "class_names": metadata.class_names,
        "dataset": metadata.dataset,
        "preprocessing": metadata.preprocessing,
        "preprocessing_source": metadata.preprocessing_source,
        "bn_eps": dict(metadata.bn_eps),
        "source": metadata.source,
        "source_sha256": metadata.source_sha256,
    }


def render_file(file: Mapping[str, Any]) -> List[str]:
    """Return the description of a file."""
    skipped = pluralize(len(file["skipped"]), "entry", "entries")
    names, eps, preprocessing = file["class_names"], sorted(set(file["bn_eps"].values())), file["preprocessing"]
    return [
        style(f"{file['path']}: {file['variant'] or 'no variant of the registry'}, {file['form']} form", "bold"),
        "",
        *key_values(
            {
                "size": f"{file['size']:,} bytes",
                "format": f"{file['format']}, layout {file['layout']}",
                "arrays": f"{file['arrays']:,} of {', '.join(file['dtypes'])}, {file['numbers']:,} numbers",
                "classes": "none, it has no head" if file["num_classes"] is None else file["num_classes"],
                "class names": ", ".join(names[:5]) + (", ..." if names[5:] else "") or file["dataset"],
                "preprocessing": preprocessing
                and f"{file['preprocessing_source']}; "
                f"{preprocessing.image_size} x {preprocessing.image_size} {preprocessing.color_order}",
                "BN eps": ", ".join(f"{value:g}" for value in eps[:5]) + (", ..." if eps[5:] else "") or None,
                "trained from": file["source"],
                "channels": file["in_chans"] and f"{file['in_chans']} of the input",
                "skipped": f"{skipped}; --json lists them" if file["skipped"] else None,
                "problem": file["problem"],
            }
        ),
    ]


def exported_to_dict(path: Path) -> Dict[str, Any]:
    """Return what a file for another runtime says about itself."""
    from ...checkpoints.metadata import METADATA_KEY
    from ...exporters.metadata import metadata_of_entries
    from ...exporters.mge_file import read_mge_metadata
    from ...exporters.onnx_file import read_onnx

    is_onnx = path.suffix.lower() == ".onnx"
    summary = read_onnx(path, checksums=False) if is_onnx else None
    entries = read_mge_metadata(path) if summary is None else summary.metadata
    known = metadata_of_entries(entries, path)
    return {
        "path": path,
        "size": path.stat().st_size,
        "format": "onnx" if is_onnx else "mge",
        "opset": summary and summary.opset,
        "producer": summary and summary.producer,
        "inputs": summary and summary.inputs,
        "outputs": summary and summary.outputs,
        "arrays": summary and len(summary.initializers),
        "preprocessing": known and known.preprocessing,
        "metadata": {key: value for key, value in entries.items() if key != METADATA_KEY},
    }


def render_exported(file: Mapping[str, Any]) -> List[str]:
    """Return the description of such a file: its inputs and outputs, then what it says."""
    metadata = file["metadata"].items()
    entries = {key: value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}..." for key, value in metadata}
    tensors = {
        f"{kind} {tensor.name}": f"{tensor.dtype} ({', '.join(map(str, tensor.shape))})"
        for kind in ("input", "output")
        for tensor in file[f"{kind}s"] or ()
    }
    return [
        style(f"{file['path']}: {entries.get('variant', 'no variant of the registry')}", "bold"),
        "",
        *key_values(
            {
                "size": f"{file['size']:,} bytes",
                "format": f"ONNX, opset {file['opset']}, by {file['producer']}" if file["opset"] else "MegEngine",
                **tensors,
                **entries,
            }
        ),
    ]


def quantized_info(path: Path) -> Result:
    """Return the data and the text of the file of a quantized network."""
    from ...inference.quantization_report import to_plain
    from ...inference.quantized_network import QuantizedNetwork

    network = QuantizedNetwork.load(path)
    metadata = network.metadata
    payload = {
        "path": path,
        "size": path.stat().st_size,
        "variant": metadata.variant,
        "form": "quantized",
        "num_classes": network.num_classes,
        "in_chans": network.in_chans,
        "image_size": network.image_size,
        "report": to_plain(network.report),
        "class_names": metadata.class_names,
        "dataset": metadata.dataset,
        "preprocessing": metadata.preprocessing,
        "source": metadata.source,
    }
    lines = [
        style(f"{path}: {metadata.variant or 'no variant of the registry'}, quantized", "bold"),
        "",
        *key_values(
            {
                "size": f"{payload['size']:,} bytes",
                "classes": "none, it has no head" if network.num_classes is None else network.num_classes,
                "channels": f"{network.in_chans} of the input",
                "quantized from": metadata.source,
            }
        ),
        "",
        *str(network.report).split("\n"),
    ]
    return Result(payload, lambda _: lines)


def render_variant(model: ModelSpec) -> List[str]:
    """Return the description of the variant, with its first line in bold."""
    first, *rest = describe(model).rstrip("\n").split("\n\n")
    lines: List[str] = [style(first.partition("\n")[0], "bold"), *first.split("\n")[1:]]
    code = rest.index("Example:") if "Example:" in rest else len(rest)
    for paragraph in rest[:code]:
        is_prose = "  " not in paragraph
        text = paragraph.replace("\n", " ") if is_prose else paragraph
        lines += ["", *map(Prose, text.split("\n"))]
    return [*lines, "", *map(Verbatim, "\n\n".join(rest[code:]).split("\n"))]


def render_checkpoint(model: ModelSpec, checkpoint: CheckpointSpec) -> List[str]:
    """Return the description of one checkpoint, then its file, sources, and where the registry's data are from."""
    file = checkpoint.file
    properties: Mapping[str, Any] = {
        "format": f"{checkpoint.format}, layout {checkpoint.layout}, {checkpoint.form} form",
        "classes": checkpoint.num_classes,
        "aliases": ", ".join(checkpoint.aliases) or None,
        "file": file.name,
        "size": None if file.size is None else f"{file.size:,} bytes",
        "sha256": file.sha256 or (f"{file.sha256_prefix}..." if file.sha256_prefix else "not published"),
    }
    role = "the default of" if checkpoint.tag == model.default else "a checkpoint of"
    return [
        style(f"{checkpoint.name}, {role} {model.name}", "bold"),
        "",
        *(Prose(line[2:]) for line in format_checkpoint(checkpoint)),
        "",
        *key_values(properties),
        "sources, in this order:",
        *(f"  {source}" for source in file.sources),
        "provenance:",
        *(f"  {source}" for source in checkpoint.provenance),
    ]
