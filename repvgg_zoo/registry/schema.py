"""The registry's JSON Schema, for editors: `python -m repvgg_zoo.registry.schema > docs/registry.schema.json`."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any, Dict, Mapping, Union

from .reader import PLACED, SCHEMA
from .rules import RULES
from .spec import CheckpointSpec, ModelSpec, Options

SCALARS: Mapping[type, Dict[str, Any]] = {
    str: {"type": "string", "minLength": 1},
    int: {"type": "integer"},
    float: {"type": "number"},
}


def json_schema() -> Dict[str, Any]:
    """JSON Schema (draft 2020-12) of a registry file, from the same records that the reader decodes into."""
    model = _record(ModelSpec, leave_out=("name", "checkpoints"))
    # A publisher's defaults may supply any field of a checkpoint, so a schema can require none of one.
    partial = _nothing_required(_record(CheckpointSpec, leave_out=PLACED))
    model["properties"]["checkpoints"] = {"type": "object", "additionalProperties": partial}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "repvgg_zoo registry",
        "type": "object",
        "additionalProperties": False,
        "required": ["schema", "variants"],
        "properties": {
            "schema": {"const": SCHEMA},
            "publishers": {"type": "object", "additionalProperties": partial},
            "variants": {"type": "object", "additionalProperties": model},
        },
    }


def _record(kind: Any, leave_out: Any = ()) -> Dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.name not in leave_out]
    properties = {}
    for field in fields:
        properties[field.name] = _type(hints[field.name])
        if (kind, field.name) in RULES:
            properties[field.name]["description"] = "Must be " + RULES[kind, field.name][1] + "."
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "additionalProperties": False,
        "required": [field.name for field in fields if field.default is dataclasses.MISSING],
        "properties": properties,
    }


def _nothing_required(schema: Dict[str, Any]) -> Dict[str, Any]:
    fields = {name: _nothing_required(field) for name, field in schema.get("properties", {}).items()}
    kept = {key: value for key, value in schema.items() if key != "required"}
    return {**kept, "properties": fields} if fields else kept


def _type(hint: Any) -> Dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Union:
        return {"anyOf": [_type(arguments[0]), {"type": "null"}]}
    if hint == Options:
        scalar = {"type": ["string", "number", "boolean"]}
        return {"type": "object", "additionalProperties": {"anyOf": [scalar, {"type": "array", "items": scalar}]}}
    if origin is tuple:
        items: Dict[str, Any] = {"type": "array", "items": _type(arguments[0])}
        if arguments[-1] is not Ellipsis:
            items.update(minItems=len(arguments), maxItems=len(arguments))
        return items
    if dataclasses.is_dataclass(hint):
        return _record(hint)
    return {"type": "boolean"} if hint is bool else dict(SCALARS[hint])


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
