"""draft_registry: a registry file, as text, for a checkpoint file of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

from .._arguments import check_text
from .._digest import hash_file
from ..errors import ArgumentError, LayoutError
from ..registry.cost import architecture_cost
from ..registry.parser import SCHEMA
from ..registry.specs import FORMATS, IMAGENET, Architecture, CheckpointSpec, FileSpec, ModelSpec, Preprocessing
from ..registry.validation import fields_of
from .identify import architecture_of_arrays
from .load import load_checkpoint
from .metadata import DEFAULT_IMAGE_SIZE, default_image_size
from .publisher import complete_metadata, find_variant
from .state_dict import Checkpoint

NAMESPACE = "mine"
TAG = "mine"
FILE_NAME = "model"  # where the file's own name has other characters than a registry's
UNKNOWN = "unknown"
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")  # a text that YAML needs no quotes for
BOOLEANS = ("true", "false", "yes", "no", "on", "off", "y", "n", "null")  # YAML 1.1 reads some of them as such
STATE, ASSUMED, FILL_IN = "", "assumed: the file does not say", "fill in"


def draft_registry(path: Path, *, name: Optional[str] = None, tag: str = TAG) -> str:
    """Return a registry file for a checkpoint file, in YAML, which ``check_registry`` finds nothing wrong with.

    Size, digest, form, layout, architecture and costs are those of the file. What it does not say is marked by a
    comment. ``name`` is the variant's, by default that of the registry's variant with these shapes, in a namespace.
    Raise ArgumentError for a name or tag that a registry cannot have, and what ``load_checkpoint`` raises.
    """
    checkpoint = load_checkpoint(path)
    known = find_variant(checkpoint)
    metadata = complete_metadata(checkpoint, known)
    size = default_image_size(metadata, known) or DEFAULT_IMAGE_SIZE
    architecture = architecture_of_arrays(checkpoint.state_dict, size)
    in_namespace = (known.name if known else "RepVGG_X").rpartition("/")[2]
    name = _checked(ModelSpec, "name", name or f"{NAMESPACE}/{in_namespace}")
    classes, file = architecture.num_classes, _file(path)
    entry: Dict[str, Any] = {
        "file": file,
        "publisher": (UNKNOWN, FILL_IN),
        "license": (UNKNOWN, FILL_IN),
        "format": _format(checkpoint),
        "layout": checkpoint.layout,
        "form": checkpoint.form,
    }
    if classes != CheckpointSpec._field_defaults["num_classes"]:
        entry["num_classes"] = classes
    dataset = metadata.dataset or (IMAGENET if classes == CheckpointSpec._field_defaults["num_classes"] else None)
    if dataset != IMAGENET:
        entry["dataset"] = (dataset, STATE) if dataset else (UNKNOWN, FILL_IN)
    if metadata.class_names:
        entry["labels"] = list(metadata.class_names)
    entry["preprocessing"] = _preprocessing(metadata.preprocessing, metadata.preprocessing_source, architecture)
    entry["provenance"] = ([f"the file {file['name']}"], "where the accuracy and the training can be looked up")
    cost = architecture_cost(architecture, (architecture.image_size,) * 2)
    variant = {
        "family": (known.family, STATE) if known else (UNKNOWN, FILL_IN),
        "architecture": _plain(architecture),
        "params": _plain(cost.params),
        "macs": _plain(cost.macs),
        "checkpoints": {_checked(CheckpointSpec, "tag", tag): entry},
    }
    return "\n".join(_lines({"schema": SCHEMA, "variants": {name: variant}})) + "\n"


def _checked(spec: Any, field: str, value: str) -> str:
    validator = fields_of(spec)[field].validator
    assert validator is not None
    if not validator.is_valid(check_text(field, value)):
        raise ArgumentError(
            f"{value!r} is not a valid {field}",
            expected=validator.expected,
            actual=value,
            hint=f"use {validator.expected}",
        )
    return value


def _file(path: Path) -> Dict[str, Any]:
    """Return the entry of the file: its source is its path, as it was passed, or its URL where a registry needs one."""
    fields = fields_of(FileSpec)
    names = (path.name, f"{FILE_NAME}{path.suffix}", FILE_NAME)
    name = next(name for name in names if _is_valid(fields["name"], name))
    source = next(text for text in (str(path), path.resolve().as_uri()) if _is_valid(fields["sources"], (text,)))
    size, digest = path.stat().st_size, hash_file(path)
    sources = ([source], "URLs, best first, where others can get it")
    return {"name": name, "sources": sources, "size": size, "sha256": digest}


def _is_valid(field: Any, value: Any) -> bool:
    return bool(field.validator.is_valid(value))


def _format(checkpoint: Checkpoint) -> str:
    if checkpoint.format not in FORMATS:
        raise LayoutError(
            f"a registry has no files of the format {checkpoint.format}",
            path=checkpoint.path,
            expected=FORMATS,
            actual=checkpoint.format,
            hint="convert it first: repvgg-zoo convert FILE OUT.safetensors",
        )
    return checkpoint.format


def _preprocessing(
    preprocessing: Optional[Preprocessing], source: Optional[str], architecture: Architecture
) -> Tuple[Dict[str, Any], str]:
    """Return the preprocessing with a comment: that of the file, its publisher's, or one that is assumed."""
    if preprocessing is not None:
        return _plain(preprocessing), f"of {source}" if source else STATE
    is_gray = architecture.in_chans == 1
    mean, std = ((0.5,), (0.5,)) if is_gray else IMAGENET_STATISTICS
    size = architecture.image_size
    return _plain(Preprocessing(size, size, "bilinear", "pillow", "L" if is_gray else "RGB", mean, std)), ASSUMED


def _plain(spec: Any) -> Dict[str, Any]:
    """Return a spec as a dict without the fields that have their default."""
    values = spec._asdict()
    return {
        name: _plain(value) if hasattr(value, "_asdict") else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in spec._field_defaults or value != spec._field_defaults[name]
    }


def _lines(entries: Dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield YAML lines; a value may be a pair with a comment, and mappings of plain values are on one line."""
    for key, item in entries.items():
        value, comment = item if isinstance(item, tuple) else (item, "")
        is_block = isinstance(value, dict) and any(isinstance(part, (dict, tuple)) for part in value.values())
        end = f"  # {comment}" if comment else ""
        if is_block:
            yield f"{indent}{key}:{end}"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_scalar(value)}{end}"


def _scalar(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_scalar(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    is_plain = isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in BOOLEANS
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
