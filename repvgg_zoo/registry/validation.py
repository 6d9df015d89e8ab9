"""The fields of the registry's specs: their types, and the checks that a type cannot express, alone and together."""

from __future__ import annotations

import functools
import re
import typing
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence, Tuple

from .._urls import HF_URL, S3_URL
from .architecture import MAX_BLOCKS, MAX_WEIGHTS, MAX_WIDTH, is_too_large
from .specs import (
    BACKENDS,
    COLOR_ORDERS,
    FORMATS,
    FORMS,
    INTEGRITY_LEVELS,
    INTERPOLATIONS,
    ROUNDINGS,
    SE_POSITIONS,
    Architecture,
    CheckpointSpec,
    Cost,
    FileSpec,
    ModelSpec,
    Options,
    PaperResults,
    Preprocessing,
    SESpec,
)


class Validator(NamedTuple):
    """A check of one field's value; ``expected`` describes valid values in error messages and in the JSON Schema."""

    is_valid: Callable[[Any], bool]
    expected: str


class Field(NamedTuple):
    """A field of a spec: the type of its values, without Optional, and their validator, if any."""

    kind: Any
    optional: bool
    required: bool
    validator: Optional[Validator]


class Problem(NamedTuple):
    """What is wrong with a spec as a whole, and the field to report it at."""

    field: str
    message: str
    expected: str


@functools.lru_cache(maxsize=None)
def fields_of(spec_class: Any) -> Mapping[str, Field]:
    """Return the fields of a spec class, in their order."""
    hints = typing.get_type_hints(spec_class)
    result = {}
    for name in spec_class._fields:
        arguments = typing.get_args(hints[name])
        optional = type(None) in arguments
        result[name] = Field(
            kind=arguments[0] if optional else hints[name],
            optional=optional,
            required=name not in spec_class._field_defaults,
            validator=VALIDATORS.get((spec_class, name)),
        )
    return result


@functools.lru_cache(maxsize=None)
def required_fields_of(spec_class: Any) -> Tuple[str, ...]:
    """Return the names of the fields that have no default, in their order."""
    return tuple(name for name, field in fields_of(spec_class).items() if field.required)


def is_spec(kind: Any) -> bool:
    """Return whether ``kind``, the type of a field, is a spec class."""
    return hasattr(kind, "_field_defaults")


def check_spec(spec: Any) -> Optional[Problem]:
    """Return the first problem of fields that do not fit together, or None."""
    if isinstance(spec, FileSpec) and spec.sha256 and spec.sha256_prefix:
        return Problem("sha256_prefix", "both a full digest and a prefix are set", "sha256 alone")
    if isinstance(spec, Architecture) and spec.options and "/" not in spec.builder:
        message = f"the builder {spec.builder} has no options"
        return Problem("options", message, "options of a plugin's builder (acme/name)")
    if isinstance(spec, Architecture) and is_too_large(spec):
        return Problem("num_blocks", "the network is too large", f"at most {MAX_WEIGHTS} weights in 3x3 kernels")
    if isinstance(spec, Preprocessing):
        channels = len(spec.color_order)
        for name, count in (("mean", len(spec.mean)), ("std", len(spec.std))):
            if count != channels:
                return Problem(name, f"{count} values for {spec.color_order} images", f"{channels} values")
        if spec.resize < spec.image_size:
            return Problem("resize", f"{spec.resize} is less than image_size", f"at least {spec.image_size}")
    if isinstance(spec, CheckpointSpec) and len(spec.labels) not in (0, spec.num_classes):
        return Problem("labels", f"{len(spec.labels)} labels for {spec.num_classes} classes", "one for each class")
    if isinstance(spec, ModelSpec):
        tags = [checkpoint.tag for checkpoint in spec.checkpoints]
        if spec.default is not None and spec.default not in tags:
            return Problem("default", f"no checkpoint has the tag {spec.default!r}", f"one of {tags}")
        if bool(spec.checkpoints) == bool(spec.no_weights):
            return Problem("no_weights", "a variant has checkpoints or says why it has none", "one of the two")
    return None


def default_tag(checkpoints: Sequence[CheckpointSpec]) -> str:
    """Return the tag with the strongest integrity among the official weights, or among all; ties go to the first."""
    return max(checkpoints, key=lambda c: (c.official_weights, INTEGRITY_LEVELS.index(c.file.integrity))).tag


def _matches(*patterns: str) -> Callable[[str], bool]:
    # Patterns are compiled when they are first needed, each of which takes as long as reading some entries.
    return lambda value: any(re.fullmatch(pattern, value) for pattern in patterns)


def _one_of(choices: Sequence[str]) -> Validator:
    return Validator(lambda value: value in choices, "one of " + ", ".join(choices))


def _up_to(limit: float) -> Validator:
    return Validator(lambda value: 0 < value <= limit, f"a positive number, at most {limit}")


def _list_of(limit: int) -> Validator:
    return Validator(lambda values: len(values) <= limit, f"at most {limit} items")


POSITIVE = Validator(lambda value: value > 0, "a positive number")
ALL_POSITIVE = Validator(lambda values: all(value > 0 for value in values), "positive numbers")
PERCENT = Validator(lambda value: 0 < value <= 100, "percent, above 0 and at most 100")
# Credentials before the host are refused; an "@" after it is part of a path, such as package@version.
SOURCES = (
    r"https?://[^\\\s@/?#]+([/?#]\S*)?",
    r"gdrive:[\w-]{10,}",
    r"(?!/|~)(?!.*(^|/)\.\.(/|$))[^:\\\s]+",
    r"file:///\S+",
    HF_URL,
    S3_URL,
)
# Names are sorted by the numbers in them; a number of thousands of digits takes long, or is refused by Python.
NAME = r"([A-Za-z0-9][A-Za-z0-9_-]{0,59}/)?[A-Za-z0-9][A-Za-z0-9_-]{0,59}"
MAX_SIDE = 4096  # of a network's input and what an image is resized to, in pixels
MAX_CHANNELS = 4096
MAX_CLASSES = 1_000_000
MAX_LIST_ITEMS = 100
MAX_BN_EPS = 1.0  # 1e-5 everywhere in torch, Paddle and MegEngine; Keras has 1e-3

# Parameters of create() and fields of Architecture: an option of this name could not be passed to create().
RESERVED_OPTIONS = (
    *("name", "pretrained", "checkpoint", "deploy", "num_classes", "in_chans", "features_only", "out_indices"),
    *("output_stride", "bn_eps", "progress", "init_weights"),
    *("num_blocks", "width_multiplier", "groups", "se", "builder", "image_size", "options"),
)


def _are_valid_options(options: Options) -> bool:
    return all(re.fullmatch(r"[a-z][a-z0-9_]*", name) and name not in RESERVED_OPTIONS for name, _ in options)


_is_source = _matches(*SOURCES)
VALIDATORS: Mapping[Tuple[type, str], Validator] = {
    (ModelSpec, "name"): Validator(_matches(NAME), "letters, digits, - and _, with an optional namespace/"),
    (CheckpointSpec, "tag"): Validator(_matches(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}"), "letters, digits, - and _"),
    (SESpec, "position"): _one_of(SE_POSITIONS),
    (SESpec, "reduction"): _up_to(MAX_CHANNELS),
    (Architecture, "num_blocks"): Validator(
        lambda values: all(0 < value <= MAX_BLOCKS for value in values), f"positive numbers, at most {MAX_BLOCKS}"
    ),
    (Architecture, "width_multiplier"): Validator(
        lambda values: all(0 < value <= MAX_WIDTH for value in values), f"positive numbers, at most {MAX_WIDTH:g}"
    ),
    (Architecture, "groups"): _up_to(MAX_CHANNELS),
    (Architecture, "in_chans"): _up_to(MAX_CHANNELS),
    (Architecture, "num_classes"): _up_to(MAX_CLASSES),
    (Architecture, "image_size"): _up_to(MAX_SIDE),
    (Architecture, "options"): Validator(
        _are_valid_options,
        "names of small letters, digits and _, other than the arguments of create() and the architecture's fields",
    ),
    (Cost, "train"): POSITIVE,
    (Cost, "deploy"): POSITIVE,
    (PaperResults, "top1"): PERCENT,
    (Preprocessing, "image_size"): _up_to(MAX_SIDE),
    (Preprocessing, "resize"): _up_to(MAX_SIDE),
    (Preprocessing, "interpolation"): _one_of(INTERPOLATIONS),
    (Preprocessing, "backend"): _one_of(BACKENDS),
    (Preprocessing, "color_order"): _one_of(COLOR_ORDERS),
    (Preprocessing, "std"): ALL_POSITIVE,
    (Preprocessing, "resize_rounding"): _one_of(ROUNDINGS),
    (Preprocessing, "crop_rounding"): _one_of(ROUNDINGS),
    (FileSpec, "name"): Validator(_matches(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"), "a file name without a folder"),
    (FileSpec, "size"): POSITIVE,
    (FileSpec, "sha256"): Validator(_matches(r"[0-9a-f]{64}"), "64 lowercase hex digits"),
    (FileSpec, "sha256_prefix"): Validator(_matches(r"[0-9a-f]{8,63}"), "8 to 63 lowercase hex digits"),
    (FileSpec, "sources"): Validator(
        lambda sources: 0 < len(sources) <= MAX_LIST_ITEMS and all(map(_is_source, sources)),
        "URLs (https:, http:, file:) without credentials, hf://owner/repo@revision/path, s3://bucket/key, gdrive:<id>, "
        "or paths below the registry's folder",
    ),
    (CheckpointSpec, "format"): _one_of(FORMATS),
    (CheckpointSpec, "form"): _one_of(FORMS),
    (CheckpointSpec, "top1"): PERCENT,
    (CheckpointSpec, "top5"): PERCENT,
    (CheckpointSpec, "num_classes"): _up_to(MAX_CLASSES),
    (CheckpointSpec, "bn_eps"): _up_to(MAX_BN_EPS),
    (CheckpointSpec, "aliases"): _list_of(MAX_LIST_ITEMS),
    (CheckpointSpec, "provenance"): _list_of(MAX_LIST_ITEMS),
    (ModelSpec, "aliases"): _list_of(MAX_LIST_ITEMS),
}
