"""The fields of the registry's records: their types, and the rules that no type can say, alone and together."""

from __future__ import annotations

import functools
import re
import typing
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from .record import names_and_defaults
from .specs import (
    BACKENDS,
    COLOR_ORDERS,
    FORMATS,
    FORMS,
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

Rule = Tuple[Callable[[Any], bool], str]


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


def _one_of(choices: Sequence[str]) -> Rule:
    return (lambda value: value in choices, "one of " + ", ".join(choices))


POSITIVE: Rule = (lambda value: value > 0, "a positive number")
ALL_POSITIVE: Rule = (lambda values: all(value > 0 for value in values), "positive numbers")
PERCENT: Rule = (lambda value: 0 < value <= 100, "per cent, above 0 and at most 100")
SOURCE = r"https?://[^\s@]+|file:///\S+|gdrive:[\w-]{10,}|(?!/|~)(?!.*(^|/)\.\.(/|$))[^:\\\s]+"
NAME = r"([A-Za-z0-9][A-Za-z0-9_-]*/)?[A-Za-z0-9][A-Za-z0-9_-]*"

# What create() itself takes: an option of this name could not be given to it.
ARGUMENTS = (
    *("name", "pretrained", "checkpoint", "deploy", "num_classes", "in_chans", "features_only", "out_indices"),
    *("progress", "init_weights", "num_blocks", "width_multiplier", "groups", "se", "builder", "image_size", "options"),
)


def _fit_to_be_arguments(options: Options) -> bool:
    return all(re.fullmatch(r"[a-z][a-z0-9_]*", name) and name not in ARGUMENTS for name, _ in options)


RULES: Mapping[Tuple[type, str], Rule] = {
    (ModelSpec, "name"): (_matches(NAME), "letters, digits, - and _, with an optional namespace/"),
    (CheckpointSpec, "tag"): (_matches(r"[A-Za-z0-9][A-Za-z0-9_-]*"), "letters, digits, - and _"),
    (SESpec, "position"): _one_of(SE_POSITIONS),
    (SESpec, "reduction"): POSITIVE,
    (Architecture, "num_blocks"): ALL_POSITIVE,
    (Architecture, "width_multiplier"): ALL_POSITIVE,
    (Architecture, "groups"): POSITIVE,
    (Architecture, "in_chans"): POSITIVE,
    (Architecture, "num_classes"): POSITIVE,
    (Architecture, "image_size"): POSITIVE,
    (Architecture, "options"): (
        _fit_to_be_arguments,
        "names of small letters, digits and _, other than the arguments of create() and the architecture's fields",
    ),
    (Cost, "train"): POSITIVE,
    (Cost, "deploy"): POSITIVE,
    (PaperResults, "top1"): PERCENT,
    (Preprocessing, "image_size"): POSITIVE,
    (Preprocessing, "resize"): POSITIVE,
    (Preprocessing, "interpolation"): _one_of(INTERPOLATIONS),
    (Preprocessing, "backend"): _one_of(BACKENDS),
    (Preprocessing, "color_order"): _one_of(COLOR_ORDERS),
    (Preprocessing, "std"): ALL_POSITIVE,
    (Preprocessing, "resize_rounding"): _one_of(ROUNDINGS),
    (Preprocessing, "crop_rounding"): _one_of(ROUNDINGS),
    (FileSpec, "name"): (_matches(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"), "a file name without a folder"),
    (FileSpec, "size"): POSITIVE,
    (FileSpec, "sha256"): (_matches(r"[0-9a-f]{64}"), "64 lowercase hex digits"),
    (FileSpec, "sha256_prefix"): (_matches(r"[0-9a-f]{8,63}"), "8 to 63 lowercase hex digits"),
    (FileSpec, "sources"): (
        lambda sources: bool(sources) and all(map(_matches(SOURCE), sources)),
        "URLs (https:, http:, file:) without credentials, gdrive:<id>, or paths below the registry's folder",
    ),
    (CheckpointSpec, "format"): _one_of(FORMATS),
    (CheckpointSpec, "form"): _one_of(FORMS),
    (CheckpointSpec, "top1"): PERCENT,
    (CheckpointSpec, "top5"): PERCENT,
    (CheckpointSpec, "num_classes"): POSITIVE,
}


class Field(NamedTuple):
    """A field of a record: the type of its values, without Optional, and the rule that they follow, if any."""

    kind: Any
    optional: bool
    required: bool
    rule: Optional[Rule]


@functools.lru_cache(maxsize=None)
def fields_of(record: Any) -> Mapping[str, Field]:
    """The fields of a record's class, in their order."""
    found: Dict[str, Field] = {}
    hints = typing.get_type_hints(record)
    names, defaults = names_and_defaults(record)
    for name in names:
        kind = hints[name]
        optional = type(None) in typing.get_args(kind)
        rule = RULES.get((record, name))
        found[name] = Field(typing.get_args(kind)[0] if optional else kind, optional, name not in defaults, rule)
    return found


def check_record(record: Any) -> Optional[Tuple[str, str, str]]:
    """(field, what is wrong, what was expected) of fields that do not go together, or None."""
    if isinstance(record, FileSpec) and record.sha256 and record.sha256_prefix:
        return "sha256_prefix", "both a whole digest and a prefix are given", "sha256 alone"
    if isinstance(record, Architecture) and record.options and "/" not in record.builder:
        return "options", f"the builder {record.builder} has no options", "options of a plug-in's builder (acme/name)"
    if isinstance(record, Preprocessing):
        channels = len(record.color_order)
        for name in ("mean", "std"):
            if len(getattr(record, name)) != channels:
                return (
                    name,
                    f"{len(getattr(record, name))} values for {record.color_order} images",
                    f"{channels} values",
                )
        if record.resize < record.image_size:
            return "resize", f"{record.resize} is less than image_size", f"at least {record.image_size}"
    if isinstance(record, CheckpointSpec) and len(record.labels) not in (0, record.num_classes):
        return "labels", f"{len(record.labels)} labels for {record.num_classes} classes", "one for each class"
    if isinstance(record, ModelSpec):
        tags = [checkpoint.tag for checkpoint in record.checkpoints]
        if record.default is not None and record.default not in tags:
            return "default", f"no checkpoint has the tag {record.default!r}", f"one of {tags}"
        if bool(record.checkpoints) == bool(record.no_weights):
            return "no_weights", "a variant has checkpoints or says why it has none", "one of the two"
    return None


def default_tag(checkpoints: Sequence[CheckpointSpec]) -> str:
    """The tag with the strongest integrity among the official weights, or among all; the first of equals."""
    strength = {"sha256": 0, "sha256_prefix": 1, "none": 2}
    return min(checkpoints, key=lambda c: (not c.official_weights, strength[c.file.integrity])).tag
