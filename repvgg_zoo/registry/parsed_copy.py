"""The shipped registry as it was parsed, in ``registry/parsed_copy.json``, which takes a tenth of the time of its YAML.

The copy has the SHA-256 of what it was made from, registry.yaml and the fields of the specs, and counts only while that
is what is there. ``python -m tools.parsed_copy`` renews it; without it, and for all other registries, the YAML is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

from .._files import open_regular_file
from .specs import (
    Architecture,
    CheckpointSpec,
    Cost,
    FileSpec,
    ModelSpec,
    PaperResults,
    Preprocessing,
    Registry,
    SESpec,
    map_file_sources,
)

COPY = Path(__file__).with_suffix(".json")
SPEC_CLASSES = {
    spec.__name__: spec
    for spec in (Architecture, CheckpointSpec, Cost, FileSpec, ModelSpec, PaperResults, Preprocessing, SESpec)
}


def read_copy(path: Path, copy: Path = COPY) -> Optional[Registry]:
    """Return the registry in ``path`` from its copy, or None if there is no copy or it is of something else."""
    try:
        with open_regular_file(copy) as file:
            digest, models = json.loads(file.read(), object_hook=_spec)
        if digest != _digest(path):
            return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    folder = path.resolve().parent
    return Registry(_map_sources(models, lambda source: str(folder / source)), str(path))


def encode_copy(registry: Registry, path: Path) -> str:
    """Return the text of the copy of a registry that was read from ``path``, with a line for each variant."""
    folder = path.resolve().parent
    models = _map_sources(registry.models, lambda source: os.path.relpath(source, folder).replace(os.sep, "/"))
    lines = ",\n".join(json.dumps(_plain(model), separators=(",", ":")) for model in models)
    return f'["{_digest(path)}",[\n{lines}\n]]\n'


def _digest(path: Path) -> str:
    """Return the SHA-256 of a registry file and of the fields of all specs."""
    fields = [(name, spec._fields) for name, spec in SPEC_CLASSES.items()]
    with open_regular_file(path) as file:
        return hashlib.sha256(f"{fields}\n".encode() + file.read()).hexdigest()


def _map_sources(models: Tuple[ModelSpec, ...], function: Callable[[str], str]) -> Tuple[ModelSpec, ...]:
    return tuple(
        model._replace(checkpoints=tuple(map_file_sources(spec, function) for spec in model.checkpoints))
        for model in models
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        items = list(map(_plain, value))
        return {type(value).__name__: items} if hasattr(value, "_fields") else items
    return value


def _spec(plain: Any) -> Any:
    ((name, values),) = plain.items()
    return SPEC_CLASSES[name](*map(_value, values))


def _value(plain: Any) -> Any:
    return tuple(map(_value, plain)) if isinstance(plain, list) else plain
