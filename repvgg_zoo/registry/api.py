"""The zoo as its user sees it: the shipped registry and everybody else's, listed and looked up by name.

A name is looked for in the shipped registry and the registered ones, then in the files that the environment names, then
in the plug-in of its namespace; what comes first never waits for what comes after, or fails with it.
"""

from __future__ import annotations

import fnmatch
import functools
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .._resources import registry_path
from .._settings import PLUGINS_ENV, plugin_mode, registry_files
from ..errors import PluginError, RegistryError, UnknownModelError, ZooError
from .kept import load_kept
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
from .specs import CheckpointSpec, ModelSpec, Registry

Patterns = Union[None, str, Iterable[str]]
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
    """The canonical names of all variants that pass every filter, in natural order.

    ``filter`` and ``exclude`` are wildcards, one or several (``"B1*"``, ``["*g2", "*g4"]``), compared without case,
    ``-``, ``_`` and with or without ``RepVGG``. ``pretrained=True`` keeps variants with weights, ``False`` those
    without, a string those with a checkpoint of that tag. ``min_top1`` is per cent, of the default checkpoint or else
    of the paper; ``max_params`` and ``max_macs`` count the deploy form. Needs no MegEngine.

    Plug-ins and the files that the environment names are listed too; one that is broken is left out with a warning, or
    raises its error where ``REPVGG_ZOO_PLUGINS=strict``.

    >>> import repvgg_zoo
    >>> repvgg_zoo.list_models("B1*")
    ['RepVGG_B1', 'RepVGG_B1g2', 'RepVGG_B1g4']
    """
    wanted, unwanted = _patterns(filter), _patterns(exclude)
    tests: List[Callable[[ModelSpec], bool]] = []
    if filter is not None:
        tests.append(lambda model: _matches(model.name, wanted))
    if exclude is not None:
        tests.append(lambda model: not _matches(model.name, unwanted))
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
    kept = (model.name for model in full_registry().models if all(test(model) for test in tests))
    return sorted(kept, key=natural_key)


def model_info(name: str) -> ModelSpec:
    """What is known of a variant: architecture, parameters, MACs, checkpoints, aliases. Needs no MegEngine.

    Raises UnknownModelError, whose ``suggestions`` are the closest names, and PluginError for a name in the namespace
    of a plug-in that cannot be used.

    >>> import repvgg_zoo
    >>> repvgg_zoo.model_info("repvgg-a0").params
    Cost(train=9108968, deploy=8309384)
    """
    return find_model(name)[0]


def find_model(name: str) -> Tuple[ModelSpec, Optional[str]]:
    """The variant called ``name`` and the tag in it, if any; raises UnknownModelError or PluginError."""
    known = _base()
    target = resolve(merge_registries(known), name)
    if target is not None:
        return target
    known, failures = _with_files(known)
    target = resolve(merge_registries(known), name)
    if target is not None:
        return target
    plugins = find_plugins()
    for namespace in (spelling.partition("/")[0] for spelling in candidate_names(name) if "/" in spelling):
        if namespace in plugins:
            known = _with_plugin(known, plugins[namespace])
            target = resolve(merge_registries(known), name)
            if target is not None:
                return target
    raise _unknown(name, merge_registries(known), plugins, failures)


def find_default_checkpoint(name: str) -> CheckpointSpec:
    """The checkpoint called ``name``, the default one without a tag; raises UnknownModelError or NoWeightsError."""
    return find_checkpoint(*find_model(name))


def top1(model: ModelSpec) -> Optional[float]:
    """Top-1 in per cent of the default checkpoint, or else of the paper."""
    if model.default is not None and model.checkpoint(model.default).top1 is not None:
        return model.checkpoint(model.default).top1
    return None if model.paper is None else model.paper.top1


def register(path_or_mapping: Union[str, Path, Mapping[str, Any]]) -> None:
    """Adds a registry of your own, a YAML file or a mapping of the same form, for the rest of this process.

    Its variants are then found by every function. Registering the same thing again changes nothing. Raises
    RegistryError for a registry that is not valid or claims a name that another one has; nothing is added then.
    """
    from .parser import load_registry, registry_from_mapping

    if isinstance(path_or_mapping, Mapping):
        added = registry_from_mapping(path_or_mapping)
    else:
        added = load_registry(path_or_mapping)
    with _lock:
        own = _base()
        if _merge(own, added) is not own:
            _registered.append(added)


def shipped_registry() -> Registry:
    """The registry that this package brings."""
    return _from_file(registry_path(), load_kept)


def full_registry() -> Registry:
    """All that can be found: ours, the registered ones, the environment's files and every plug-in that works."""
    registry, failures = load_all_registries()
    for error in failures:
        warn_or_raise(error)
    return registry


def load_all_registries() -> Tuple[Registry, List[ZooError]]:
    """The whole registry, and the errors of the files and plug-ins that cannot be used."""
    known, of_files = _with_files(_base())
    failures: List[ZooError] = [*of_files]
    for claimants in find_plugins().values():
        try:
            known = _with_plugin(known, claimants)
        except PluginError as error:
            failures.append(error)
    return merge_registries(known), failures


@functools.lru_cache(maxsize=32)
def merge_registries(registries: Registries) -> Registry:
    """One registry of several; raises RegistryError where two claim one name."""
    if len(registries) == 1:
        return registries[0]
    owners: Dict[str, Tuple[str, Registry]] = {}
    for registry in registries:
        for model in registry.models:
            for claim, owner in lookup_keys(model):
                first, known = owners.setdefault(claim, (owner, registry))
                if known is not registry or first != owner:
                    raise RegistryError(
                        f"{registry.path or 'the mapping'} claims the name {claim!r} for {owner}, which is {first}'s "
                        f"in {known.path or 'a mapping'}",
                        path=registry.path,
                        expected="a name of its own",
                        actual=claim,
                        hint="put your variants into a namespace, for example acme/RepVGG_X",
                    )
    return Registry(models=tuple(model for registry in registries for model in registry.models))


# Registration is the one thing that a process remembers; the lock keeps check and append together.
_registered: List[Registry] = []
_lock = threading.Lock()


def _base() -> Registries:
    return (shipped_registry(), *_registered)


def _merge(known: Registries, added: Registry) -> Registries:
    """With ``added``, unless all of it is known already; raises RegistryError for a name that is taken."""
    models = {model.name: model for model in merge_registries(known).models}
    if all(models.get(model.name) == model for model in added.models):
        return known
    merge_registries((*known, added))
    return (*known, added)


def _with_files(known: Registries) -> Tuple[Registries, List[RegistryError]]:
    """With the files that the environment names, and the errors of those that cannot be used."""
    failures: List[RegistryError] = []
    for path in registry_files():
        try:
            known = _merge(known, _from_file(path))
        except RegistryError as error:
            failures.append(error)
    return known, failures


def _with_plugin(known: Registries, claimants: Tuple[PluginEntryPoint, ...]) -> Registries:
    """With the registry of a plug-in; raises PluginError if it cannot be used."""
    found = require_single(claimants)
    plugin = load_plugin(found)
    try:
        registry = _from_mapping(plugin) if isinstance(plugin.registry, Mapping) else _from_file(Path(plugin.registry))
        for model in registry.models:
            for claim, owner in lookup_keys(model):
                if not in_namespace(found, claim):
                    raise RegistryError(
                        f"{registry.path or 'the mapping'} claims the name {claim!r} for {owner}",
                        path=registry.path,
                        expected=f"{found.namespace}/...",
                        actual=claim,
                        hint=f"every name and alias of this plug-in starts with {found.namespace}/",
                    )
        return _merge(known, registry)
    except RegistryError as error:
        raise found.error(f"has a registry that cannot be used: {error.message}", error.hint) from error


def _unknown(
    name: str, registry: Registry, plugins: Mapping[str, Any], failures: Sequence[RegistryError]
) -> UnknownModelError:
    """The error for a name that nothing answers to: the closest ones, and where it might have been."""
    close = suggestions(registry, name)
    hints = [f"did you mean {', '.join(close)}?" if close else "repvgg_zoo.list_models() shows every name"]
    namespace, slash, _ = str(name).partition("/")
    if plugin_mode() == "off":
        hints += [f"{PLUGINS_ENV}=off, so no plug-in was asked"] if slash else []
    elif slash and normalize_name(namespace) not in plugins:
        hints.append(f"no plug-in {namespace} is installed")
    elif plugins and not slash:
        hints.append(f"plug-ins have names that start with {', '.join(f'{namespace}/' for namespace in plugins)}")
    hints += [f"left out: {failure.message}" for failure in failures]
    error = UnknownModelError(f"no model is called {name!r}", name=str(name), suggestions=close, hint="; ".join(hints))
    error.__cause__ = failures[0] if failures else None
    return error


# The reader is imported where it is needed: it brings PyYAML, without which the shipped registry is listed.
def _parsed(path: Path) -> Registry:
    from .parser import load_registry

    return load_registry(path)


def _from_file(path: Path, load: Callable[[Path], Registry] = _parsed) -> Registry:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return load(path)  # which says what is wrong
    return _once(path, stat.st_mtime_ns, stat.st_size, load)


@functools.lru_cache(maxsize=32)
def _once(path: Path, mtime_ns: int, size: int, load: Callable[[Path], Registry]) -> Registry:
    return load(path)


@functools.lru_cache(maxsize=32)
def _from_mapping(plugin: Plugin) -> Registry:
    from .parser import registry_from_mapping

    return registry_from_mapping(plugin.registry)  # type: ignore[arg-type]


def _patterns(patterns: Patterns) -> Tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns or ())


def _matches(name: str, patterns: Tuple[str, ...]) -> bool:
    whole = normalize_name(name)
    short = strip_family_prefix(whole)
    return any(
        fnmatch.fnmatchcase(spelling, form)
        for pattern in patterns
        # A hyphen inside brackets is a range, so such a pattern is also tried as it stands.
        for form in (normalize_name(pattern), pattern.casefold())
        for spelling in (whole, short, name.casefold())
    )
