"""Several registries as one: no two may claim the same name, and no digest gets lost."""

from __future__ import annotations

import functools
from typing import Any, Dict, Tuple

from ..errors import RegistryError
from .names import lookup_keys
from .specs import INTEGRITY_LEVELS, CheckpointSpec, FileSpec, Registry

Registries = Tuple[Registry, ...]


@functools.lru_cache(maxsize=32)
def merge_registries(registries: Registries) -> Registry:
    """Return several registries as one; raise RegistryError if two claim the same name, or a digest gets lost."""
    if len(registries) == 1:
        return registries[0]
    owners: Dict[str, Tuple[str, Registry]] = {}
    for registry in registries:
        for model in registry.models:
            for key, owner in lookup_keys(model):
                first_owner, first_registry = owners.setdefault(key, (owner, registry))
                if first_registry is not registry or first_owner != owner:
                    raise name_error(
                        registry,
                        f"{key!r} for {owner}, which is {first_owner}'s in {first_registry.path or 'a mapping'}",
                        expected="a unique name",
                        actual=key,
                        hint="put your variants into a namespace, for example acme/RepVGG_X; "
                        "register(..., exist_ok=True) replaces those of other registries",
                    )
    refuse_weaker_files(registries)
    return Registry(models=tuple(model for registry in registries for model in registry.models))


def refuse_weaker_files(registries: Registries) -> None:
    """Raise RegistryError if a registry describes a file of an earlier one with less of its digest."""
    strongest: Dict[str, Tuple[CheckpointSpec, Registry]] = {}
    for registry in registries:
        for checkpoint in (checkpoint for model in registry.models for checkpoint in model.checkpoints):
            for source in checkpoint.file.sources:
                known, owner = strongest.get(source, (checkpoint, registry))
                if _level(checkpoint.file) >= _level(known.file):
                    strongest[source] = checkpoint, registry
                elif owner is not registry:
                    raise RegistryError(
                        f"{registry.path or 'the mapping'}: {checkpoint.name} is the file of {known.name} in "
                        f"{owner.path or 'a mapping'}, but its {known.file.integrity} is missing",
                        path=registry.path,
                        expected=known.file.integrity,
                        actual=checkpoint.file.integrity,
                        hint="copy sha256 and size from there; a digest that is known must not get lost",
                    )


def _level(file: FileSpec) -> int:
    return INTEGRITY_LEVELS.index(file.integrity)


def add_registry(registries: Registries, registry: Registry) -> Registries:
    """Add ``registry``, unless all its models are known already; raise RegistryError if a name is taken."""
    models = {model.name: model for model in merge_registries(registries).models}
    if all(models.get(model.name) == model for model in registry.models):
        return registries
    merge_registries((*registries, registry))
    return (*registries, registry)


def name_error(registry: Registry, claim: str, **data: Any) -> RegistryError:
    return RegistryError(f"{registry.path or 'the mapping'} claims the name {claim}", path=registry.path, **data)
