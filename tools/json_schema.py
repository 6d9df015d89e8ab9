"""The registry's JSON Schema, for editors: ``python -m tools.json_schema > docs/registry.schema.json``."""

from __future__ import annotations

import json
import typing
from typing import Any, Container, Dict, Mapping

from repvgg_zoo.registry.parser import KEYED_FIELDS, SCHEMA
from repvgg_zoo.registry.specs import CheckpointSpec, ModelSpec, Options
from repvgg_zoo.registry.validation import fields_of, is_spec

SCALARS: Mapping[type, Dict[str, Any]] = {
    str: {"type": "string", "minLength": 1},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
}


def json_schema() -> Dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a registry file, from the specs that the parser reads into."""
    model = _spec(ModelSpec, exclude=("name", "checkpoints"))
    # A publisher's defaults may supply any field of a checkpoint, so the schema can require none of them.
    partial = _without_required(_spec(CheckpointSpec, exclude=KEYED_FIELDS))
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


def _spec(kind: Any, exclude: Container[str] = ()) -> Dict[str, Any]:
    fields = {name: field for name, field in fields_of(kind).items() if name not in exclude}
    properties: Dict[str, Dict[str, Any]] = {}
    for name, field in fields.items():
        schema = _type(field.kind)
        properties[name] = {"anyOf": [schema, {"type": "null"}]} if field.optional else schema
        if field.validator is not None:
            properties[name]["description"] = f"Must be {field.validator.expected}."
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "additionalProperties": False,
        "required": [name for name, field in fields.items() if field.required],
        "properties": properties,
    }


def _without_required(schema: Dict[str, Any]) -> Dict[str, Any]:
    result = {key: value for key, value in schema.items() if key != "required"}
    if "properties" in schema:
        result["properties"] = {name: _without_required(field) for name, field in schema["properties"].items()}
    return result


def _type(kind: Any) -> Dict[str, Any]:
    if is_spec(kind):
        return _spec(kind)
    if kind == Options:
        scalar = {"type": ["string", "number", "boolean"]}
        return {"type": "object", "additionalProperties": {"anyOf": [scalar, {"type": "array", "items": scalar}]}}
    if typing.get_origin(kind) is tuple:
        first, *rest = typing.get_args(kind)
        array: Dict[str, Any] = {"type": "array", "items": _type(first)}
        return array if Ellipsis in rest else {**array, "minItems": len(rest) + 1, "maxItems": len(rest) + 1}
    return dict(SCALARS[kind])


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
