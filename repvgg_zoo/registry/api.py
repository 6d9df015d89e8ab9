"""Listing models and looking them up by name, over the shipped registry and all others.

A name is looked up in the shipped registry and the registered ones, then in the files that ``REPVGG_ZOO_REGISTRY``
names, then in the plugin of its namespace; an earlier source never waits for a later one, or fails with it.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .._resources import registry_path
from .._settings import PLUGINS_ENV, plugin_mode, registry_files
from ..errors import ArgumentError, PluginError, RegistryError, UnknownModelError, ZooError
from .names import (
    candidate_names,
    find_checkpoint,
    lookup_keys,
    natural_key,
    normalize_name,
    resolve,
    strip_family_prefix,
    suggestions,
)
from .plugins import (
    Plugin,
    PluginEntryPoint,
    find_plugins,
    in_namespace,
    load_plugin,
    require_single,
    warn_or_raise,
)
from .specs import INTEGRITY_LEVELS, CheckpointSpec, FileSpec, ModelSpec, Registry

Patterns = Union[None, str, Iterable[str]]
RegistrySource = Union[str, "os.PathLike[str]", Mapping[str, Any]]
Registries = Tuple[Registry, ...]


def list_models(
    filter: Patterns = None,
    *,
    exclude: Patterns = None,
    pretrained: Union[bool, str, None] = None,
    min_top1: Optional[float] = None,
    max_params: Optional[int] = None,
    max_macs: Optional[int] = None,
) -> List[str]:
    """Return the canonical names of all variants that pass every filter, in natural order.

    ``filter`` and ``exclude`` are wildcards, one or several (``"B1*"``, ``["*g2", "*g4"]``), compared without case,
    ``-``, ``_`` and with or without ``RepVGG``. ``pretrained=True`` keeps variants with weights, ``False`` those
    without, a string those with a checkpoint of that tag. ``min_top1`` is percent, of the default checkpoint or else
    of the paper; ``max_params`` and ``max_macs`` count the deploy form. Needs no MegEngine.

    Includes plugins and the registry files of ``REPVGG_ZOO_REGISTRY``. A broken one is left out with a warning, or
    raises its error if ``REPVGG_ZOO_PLUGINS=strict``.

    >>> import repvgg_zoo
    >>> repvgg_zoo.list_models("B1*")
    ['RepVGG_B1', 'RepVGG_B1g2', 'RepVGG_B1g4']
    """
    included, excluded = _patterns(filter), _patterns(exclude)
    tests: List[Callable[[ModelSpec], bool]] = []
    if filter is not None:
        tests.append(lambda model: _matches(model.name, included))
    if exclude is not None:
        tests.append(lambda model: not _matches(model.name, excluded))
    if isinstance(pretrained, str):
        tag = normalize_name(pretrained)
        tests.append(lambda model: any(fnmatch.fnmatchcase(normalize_name(c.tag), tag) for c in model.checkpoints))
    elif pretrained is not None:
        tests.append(lambda model: (model.default is not None) == pretrained)
    if min_top1 is not None:
        tests.append(lambda model: (top1(model) or 0.0) >= min_top1)
    if max_params is not None:
        tests.append(lambda model: model.params.deploy <= max_params)
    if max_macs is not None:
        tests.append(lambda model: model.macs.deploy <= max_macs)
    names = (model.name for model in full_registry().models if all(test(model) for test in tests))
    return sorted(names, key=natural_key)


def model_info(name: str) -> ModelSpec:
    """Return a variant's spec: architecture, parameters, MACs, checkpoints, aliases. Needs no MegEngine.

    Raise UnknownModelError, whose ``suggestions`` are the closest names, or PluginError for a name in the namespace of
    a plugin that cannot be used.

    >>> import repvgg_zoo
    >>> repvgg_zoo.model_info("repvgg-a0").params
    Cost(train=9108968, deploy=8309384)
    """
    return find_model(name)[0]


def find_model(name: str) -> Tuple[ModelSpec, Optional[str]]:
    """Return the variant called ``name`` and the tag in it, if any; raise UnknownModelError or PluginError."""
    if not isinstance(name, str):
        raise ArgumentError(
            f"{type(name).__name__} is not a model's name",
            expected="text",
            actual=name,
            hint='pass a name such as "RepVGG_A0"; repvgg_zoo.list_models() lists them',
        )
    registries = _base()
    target = resolve(merge_registries(registries), name)
    if target is not None:
        return target
    registries, failures = _with_files(registries)
    target = resolve(merge_registries(registries), name)
    if target is not None:
        return target
    plugins = find_plugins()
    for namespace in (candidate.partition("/")[0] for candidate in candidate_names(name) if "/" in candidate):
        if namespace in plugins:
            registries = _with_plugin(registries, plugins[namespace])
            target = resolve(merge_registries(registries), name)
            if target is not None:
                return target
    raise _unknown_model(name, merge_registries(registries), plugins, failures)


def find_default_checkpoint(name: str) -> CheckpointSpec:
    """Return the checkpoint called ``name``, or the default one of a variant.

    Raise UnknownModelError, or NoWeightsError for a variant without checkpoints.
    """
    return find_checkpoint(*find_model(name))


def top1(model: ModelSpec) -> Optional[float]:
    """Return the top-1 accuracy in percent of the default checkpoint, or else of the paper."""
    if model.default is not None and model.checkpoint(model.default).top1 is not None:
        return model.checkpoint(model.default).top1
    return None if model.paper is None else model.paper.top1


def register(path_or_mapping: RegistrySource) -> None:
    """Add a registry, a YAML file or a mapping of the same form, for the rest of this process.

    All functions then find its variants. Registering the same registry again changes nothing. Raise RegistryError for
    a registry that is not valid or claims a name that another one has; nothing is added then.
    """
    registry = _load(path_or_mapping)
    with _lock:
        registries = _base()
        if _merge(registries, registry) is not registries:
            _registered.append(registry)


def unregister(path_or_mapping: RegistrySource) -> None:
    """Remove a registry that ``register`` added, given by the same path or an equal mapping.

    The file may have changed or been deleted. Raise ArgumentError if ``register`` did not add it.

    >>> import repvgg_zoo
    >>> repvgg_zoo.unregister("missing.yaml")
    Traceback (most recent call last):
        ...
    repvgg_zoo.errors.ArgumentError: missing.yaml is not registered
      hint: pass the path or mapping that register() was called with
    """
    if isinstance(path_or_mapping, Mapping):
        name, path, models = "the mapping", None, _load(path_or_mapping).models
    else:
        name, path, models = str(path_or_mapping), str(_absolute(path_or_mapping)), None
    with _lock:
        for registry in _registered:
            if registry.path == path and models in (None, registry.models):
                _registered.remove(registry)
                return
    raise ArgumentError(f"{name} is not registered", hint="pass the path or mapping that register() was called with")


def shipped_registry() -> Registry:
    """Return the registry that is part of this package."""
    return _load_file(registry_path())


def full_registry() -> Registry:
    """Return all registries as one; a broken one is left out with a warning, or raises if plugins are strict."""
    registry, failures = load_all_registries()
    for error in failures:
        warn_or_raise(error)
    return registry


def load_all_registries() -> Tuple[Registry, List[ZooError]]:
    """Return all registries as one, and the errors of the files and plugins that cannot be used."""
    registries, file_errors = _with_files(_base())
    failures: List[ZooError] = [*file_errors]
    for claimants in find_plugins().values():
        try:
            registries = _with_plugin(registries, claimants)
        except PluginError as error:
            failures.append(error)
    return merge_registries(registries), failures


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
                    raise _name_error(
                        registry,
                        f"{key!r} for {owner}, which is {first_owner}'s in {first_registry.path or 'a mapping'}",
                        expected="a unique name",
                        actual=key,
                        hint="put your variants into a namespace, for example acme/RepVGG_X",
                    )
    _refuse_weaker_files(registries)
    return Registry(models=tuple(model for registry in registries for model in registry.models))


def _refuse_weaker_files(registries: Registries) -> None:
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


# Registration is the only state that a process keeps; the lock makes check and append one step.
_registered: List[Registry] = []
_lock = threading.Lock()


def _base() -> Registries:
    return (shipped_registry(), *_registered)


def _merge(registries: Registries, registry: Registry) -> Registries:
    """Add ``registry``, unless all its models are known already; raise RegistryError if a name is taken."""
    models = {model.name: model for model in merge_registries(registries).models}
    if all(models.get(model.name) == model for model in registry.models):
        return registries
    merge_registries((*registries, registry))
    return (*registries, registry)


def _with_files(registries: Registries) -> Tuple[Registries, List[RegistryError]]:
    """Add the files of ``REPVGG_ZOO_REGISTRY``; return the errors of those that cannot be used."""
    failures: List[RegistryError] = []
    for path in registry_files():
        try:
            registries = _merge(registries, _load_file(path))
        except RegistryError as error:
            failures.append(error)
    return registries, failures


def _with_plugin(registries: Registries, claimants: Tuple[PluginEntryPoint, ...]) -> Registries:
    """Add the registry of a plugin; raise PluginError if it cannot be used."""
    point = require_single(claimants)
    plugin = load_plugin(point)
    try:
        registry = _plugin_registry(plugin)
        for model in registry.models:
            for key, owner in lookup_keys(model):
                if not in_namespace(point, key):
                    raise _name_error(
                        registry,
                        f"{key!r} for {owner}",
                        expected=f"{point.namespace}/...",
                        actual=key,
                        hint=f"every name and alias of this plugin starts with {point.namespace}/",
                    )
        return _merge(registries, registry)
    except RegistryError as error:
        raise point.error(f"has a registry that cannot be used: {error.message}", error.hint) from error


def _name_error(registry: Registry, claim: str, **data: Any) -> RegistryError:
    return RegistryError(f"{registry.path or 'the mapping'} claims the name {claim}", path=registry.path, **data)


def _unknown_model(
    name: str, registry: Registry, plugins: Mapping[str, Any], failures: Sequence[RegistryError]
) -> UnknownModelError:
    """Return the error for an unknown name, with the closest names and what was not searched."""
    close = suggestions(registry, name)
    hints = [f"did you mean {', '.join(close)}?" if close else "repvgg_zoo.list_models() lists all names"]
    namespace, slash, _ = str(name).partition("/")
    if plugin_mode() == "off":
        hints += [f"plugins were not searched ({PLUGINS_ENV}=off)"] if slash else []
    elif slash and normalize_name(namespace) not in plugins:
        hints.append(f"plugin {namespace} is not installed")
    elif plugins and not slash:
        hints.append(f"plugins have names that start with {', '.join(f'{namespace}/' for namespace in plugins)}")
    hints += [f"left out: {failure.message}" for failure in failures]
    error = UnknownModelError(f"unknown model {name!r}", name=str(name), suggestions=close, hint="; ".join(hints))
    error.__cause__ = failures[0] if failures else None
    return error


# Loading: the parser is imported here, because it takes PyYAML, which importing this package must not -------------


def _load(path_or_mapping: RegistrySource) -> Registry:
    from .parser import load_registry, registry_from_mapping

    if isinstance(path_or_mapping, Mapping):
        return registry_from_mapping(path_or_mapping)
    return load_registry(_absolute(path_or_mapping))


def _load_file(path: Path) -> Registry:
    """Load a registry file, which is parsed again only if it has changed."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return _load(path)  # which raises the error
    return _load_version(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _load_version(path: Path, mtime_ns: int, size: int) -> Registry:
    return _load(path)


def _plugin_registry(plugin: Plugin) -> Registry:
    if isinstance(plugin.registry, Mapping):
        return _load_plugin_mapping(plugin)
    return _load_file(Path(plugin.registry))


@functools.lru_cache(maxsize=32)
def _load_plugin_mapping(plugin: Plugin) -> Registry:
    return _load(plugin.registry)


def _absolute(path: Union[str, os.PathLike[str]]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links


# Filters -----------------------------------------------------------------------------------------------------


def _patterns(patterns: Patterns) -> Tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns or ())


def _matches(name: str, patterns: Tuple[str, ...]) -> bool:
    normalized = normalize_name(name)
    return any(
        fnmatch.fnmatchcase(candidate, form)
        for pattern in patterns
        # A hyphen in brackets is a range, so the pattern is also tried with its hyphens.
        for form in (normalize_name(pattern), pattern.casefold())
        for candidate in (normalized, strip_family_prefix(normalized), name.casefold())
    )
