"""The registry's JSON Schema, for editors: `python -m tools.json_schema > docs/registry.schema.json`."""

from __future__ import annotations

import json
import typing
from typing import Any, Dict, Mapping

from repvgg_zoo.registry.parser import KEYED_FIELDS, SCHEMA
from repvgg_zoo.registry.specs import CheckpointSpec, ModelSpec, Options
from repvgg_zoo.registry.validation import fields_of, is_spec

SCALARS: Mapping[type, Dict[str, Any]] = {
    str: {"type": "string", "minLength": 1},
    int: {"type": "integer"},
    float: {"type": "number"},
}


def json_schema() -> Dict[str, Any]:
    """JSON Schema (draft 2020-12) of a registry file, from the same specs that the parser reads into."""
    model = _record(ModelSpec, leave_out=("name", "checkpoints"))
    # A publisher's defaults may supply any field of a checkpoint, so a schema can require none of one.
    partial = _nothing_required(_record(CheckpointSpec, leave_out=KEYED_FIELDS))
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
    fields = {name: field for name, field in fields_of(kind).items() if name not in leave_out}
    properties: Dict[str, Dict[str, Any]] = {}
    for name, field in fields.items():
        properties[name] = {"anyOf": [_type(field.kind), {"type": "null"}]} if field.optional else _type(field.kind)
        if field.validator is not None:
            properties[name]["description"] = "Must be " + field.validator.expected + "."
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "additionalProperties": False,
        "required": [name for name, field in fields.items() if field.required],
        "properties": properties,
    }


def _nothing_required(schema: Dict[str, Any]) -> Dict[str, Any]:
    fields = {name: _nothing_required(field) for name, field in schema.get("properties", {}).items()}
    kept = {key: value for key, value in schema.items() if key != "required"}
    return {**kept, "properties": fields} if fields else kept


def _type(hint: Any) -> Dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == Options:
        scalar = {"type": ["string", "number", "boolean"]}
        return {"type": "object", "additionalProperties": {"anyOf": [scalar, {"type": "array", "items": scalar}]}}
    if origin is tuple:
        items: Dict[str, Any] = {"type": "array", "items": _type(arguments[0])}
        if arguments[-1] is not Ellipsis:
            items.update(minItems=len(arguments), maxItems=len(arguments))
        return items
    if is_spec(hint):
        return _record(hint)
    return {"type": "boolean"} if hint is bool else dict(SCALARS[hint])


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
