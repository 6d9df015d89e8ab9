"""The registries that this process added with ``register``: the only state that the package keeps."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any, FrozenSet, List, Mapping, NamedTuple, Sequence, Tuple, Union

from .._arguments import check_flag
from ..errors import ArgumentError
from .load import RegistrySource, absolute_path, load_source, shipped_registry
from .merge import Registries, add_registry, merge_registries, refuse_weaker_files
from .names import name_index, normalize_name, strip_family_prefix
from .specs import Registry


class Registered(NamedTuple):
    """A registry that was added, and whether its variants replace those of the same names in earlier ones."""

    registry: Registry
    exist_ok: bool


_registered: List[Registered] = []
_lock = threading.Lock()  # makes check and change one step


def register(path_or_mapping: RegistrySource, *, exist_ok: bool = False) -> None:
    """Add a registry, a YAML file or a mapping of the same form, for the rest of this process.

    All functions then find its variants. Registering again replaces what ``register`` itself added: an edited file
    replaces its earlier content, and a mapping the variants of the same names in earlier mappings. A variant of the
    same name in the shipped registry or in another file is replaced only with ``exist_ok``. Raise ArgumentError for
    anything but a path or a mapping, and RegistryError for a registry that is not valid or claims a name that another
    one has; nothing is changed then.
    """
    added = Registered(load_source(path_or_mapping), check_flag("exist_ok", exist_ok))
    with _lock:
        if _identity(added) in map(_identity, _registered):
            return
        others = _without_earlier_version(added.registry)
        known = _with_registered(others)
        if not added.exist_ok and add_registry(known, added.registry) is known:  # another one has all of it
            _registered[:] = others
            return
        refuse_weaker_files((shipped_registry(), *(item.registry for item in (*others, added))))
        merge_registries(_with_registered([*others, added]))
        _registered[:] = [*others, added]


def unregister(path_or_mapping_or_name: RegistrySource) -> None:
    """Remove a registry that ``register`` added, by its path or the mapping, or one variant of it, by its name.

    The file may have changed or been deleted; of a mapping, the names of its variants count. A variant of the shipped
    registry that was replaced is found again. Raise ArgumentError if ``register`` did not add it.

    >>> import repvgg_zoo
    >>> repvgg_zoo.unregister("missing.yaml")
    Traceback (most recent call last):
        ...
    repvgg_zoo.errors.ArgumentError: missing.yaml is not registered
      hint: pass the path or mapping that register() was called with, or the name of a variant in it
    """
    source = path_or_mapping_or_name
    with _lock:
        remaining = _without_mapping(source) if isinstance(source, Mapping) else _without_path_or_name(source)
        if remaining == _registered:
            raise ArgumentError(
                f"{'the mapping' if isinstance(source, Mapping) else source} is not registered",
                expected=[item.registry.path or "a mapping" for item in _registered],
                actual=source,
                hint="pass the path or mapping that register() was called with, or the name of a variant in it",
            )
        _registered[:] = remaining


def base_registries() -> Registries:
    """Return the shipped registry and the registered ones, without the variants that these replace."""
    return _with_registered(_registered)


def _with_registered(registered: Sequence[Registered]) -> Registries:
    registries: Registries = (shipped_registry(),)
    for item in registered:
        if item.exist_ok:
            names = _variant_names(item.registry)
            registries = tuple(_without_variants(registry, names) for registry in registries)
        registries = (*registries, item.registry)
    return registries


def _without_earlier_version(registry: Registry) -> List[Registered]:
    """Return what stays registered when ``registry`` is added again."""
    if registry.path is not None:
        return [item for item in _registered if item.registry.path != registry.path]
    return _without_names(_variant_names(registry), [item for item in _registered if item.registry.path is None])


def _without_mapping(mapping: Mapping[str, Any]) -> List[Registered]:
    return _without_earlier_version(load_source(mapping))


def _without_path_or_name(source: Union[str, os.PathLike[str]]) -> List[Registered]:
    path = str(absolute_path(source))
    remaining = [item for item in _registered if item.registry.path != path]
    if len(remaining) < len(_registered):
        return remaining
    name = normalize_name(str(source))
    targets = [name_index(item.registry).get(name) for item in _registered]
    names = frozenset(_key(model.name) for model, tag in filter(None, targets) if tag is None)
    return _without_names(names, _registered)


def _without_names(names: FrozenSet[str], searched: Sequence[Registered]) -> List[Registered]:
    """Return the registered registries without some variants of those that are searched."""
    remaining: List[Registered] = []
    for item in _registered:
        registry = _without_variants(item.registry, names) if item in searched else item.registry
        if registry.models:
            remaining.append(item if registry is item.registry else item._replace(registry=registry))
    return remaining


@functools.lru_cache(maxsize=32)
def _without_variants(registry: Registry, names: FrozenSet[str]) -> Registry:
    models = tuple(model for model in registry.models if _key(model.name) not in names)
    return registry if len(models) == len(registry.models) else Registry(models=models, path=registry.path)


def _variant_names(registry: Registry) -> FrozenSet[str]:
    return frozenset(_key(model.name) for model in registry.models)


def _key(name: str) -> str:
    return strip_family_prefix(normalize_name(name))


def _identity(item: Registered) -> Tuple[Any, ...]:
    return item.registry.path, item.registry.models, item.exist_ok
