"""Listing models and looking them up by name, over the shipped registry and all others.

A name is looked up in the shipped registry and the registered ones, then in the files that ``REPVGG_ZOO_REGISTRY``
names, then in the plugin of its namespace; an earlier source never waits for a later one, or fails with it.
"""

from __future__ import annotations

import fnmatch
from typing import Any, Callable, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .._arguments import check_flag, check_float, check_items, check_text
from .._html import html_table
from .._settings import PLUGINS_ENV, REGISTRY_ENV, plugin_mode, registry_files
from ..errors import ArgumentError, PluginError, RegistryError, UnknownModelError, ZooError
from .load import load_file, load_plugin_registry
from .merge import Registries, add_registry, merge_registries, name_error
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
from .plugins import PluginEntryPoint, find_plugins, in_namespace, load_plugin, require_single, warn_or_raise
from .registered import base_registries
from .specs import CheckpointSpec, ModelSpec, Registry, format_macs

Patterns = Union[None, str, Iterable[str]]


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
    of the paper; ``max_params`` and ``max_macs`` count the deploy form. A notebook shows the list as a table. Needs no
    MegEngine.

    Includes plugins and the registry files of ``REPVGG_ZOO_REGISTRY``. A broken one is left out with a warning, or
    raises its error if ``REPVGG_ZOO_PLUGINS=strict``. Raise ArgumentError for a filter of another type.

    >>> import repvgg_zoo
    >>> repvgg_zoo.list_models("B1*")
    ['RepVGG_B1', 'RepVGG_B1g2', 'RepVGG_B1g4']
    """
    included, excluded = _patterns("filter", filter), _patterns("exclude", exclude)
    tests: List[Callable[[ModelSpec], bool]] = []
    if filter is not None:
        tests.append(lambda model: _matches(model.name, included))
    if exclude is not None:
        tests.append(lambda model: not _matches(model.name, excluded))
    if isinstance(pretrained, str):
        tag = normalize_name(pretrained)
        tests.append(lambda model: any(fnmatch.fnmatchcase(normalize_name(c.tag), tag) for c in model.checkpoints))
    elif pretrained is not None:
        has_weights = check_flag("pretrained", pretrained)
        tests.append(lambda model: (model.default is not None) == has_weights)
    if min_top1 is not None:
        least = check_float("min_top1", min_top1)
        tests.append(lambda model: (top1(model) or 0.0) >= least)
    if max_params is not None:
        most_params = check_float("max_params", max_params)
        tests.append(lambda model: model.params.deploy <= most_params)
    if max_macs is not None:
        most_macs = check_float("max_macs", max_macs)
        tests.append(lambda model: model.macs.deploy <= most_macs)
    models = (model for model in full_registry().models if all(test(model) for test in tests))
    return ModelNames(sorted(models, key=lambda model: natural_key(model.name)))


class ModelNames(List[str]):
    """Names of variants: a list, which a notebook shows as a table."""

    def __init__(self, models: Iterable[ModelSpec]) -> None:
        self._models = {model.name: model for model in models}
        super().__init__(self._models)

    def _repr_html_(self) -> str:
        header = ("name", "parameters", "MACs", "top-1", "checkpoints")
        models = (self._models[name] for name in self if name in self._models)
        rows = (
            (
                model.name,
                f"{model.params.deploy / 1e6:.2f} M",
                format_macs(model.macs.deploy),
                top1(model),
                ", ".join(checkpoint.tag for checkpoint in model.checkpoints),
            )
            for model in models
        )
        return html_table(f"{len(self)} variants", header, rows)


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
    registries = base_registries()
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


def full_registry() -> Registry:
    """Return all registries as one; a broken one is left out with a warning, or raises if plugins are strict."""
    registry, failures = load_all_registries()
    for error in failures:
        warn_or_raise(error)
    return registry


def load_all_registries() -> Tuple[Registry, List[ZooError]]:
    """Return all registries as one, and the errors of the files and plugins that cannot be used."""
    registries, file_errors = _with_files(base_registries())
    failures: List[ZooError] = [*file_errors]
    for claimants in find_plugins().values():
        try:
            registries = _with_plugin(registries, claimants)
        except PluginError as error:
            failures.append(error)
    return merge_registries(registries), failures


def _with_files(registries: Registries) -> Tuple[Registries, List[RegistryError]]:
    """Add the files of ``REPVGG_ZOO_REGISTRY``; return the errors of those that cannot be used."""
    failures: List[RegistryError] = []
    for path in registry_files():
        try:
            registries = add_registry(registries, load_file(path))
        except RegistryError as error:
            failures.append(error)
    return registries, failures


def _with_plugin(registries: Registries, claimants: Tuple[PluginEntryPoint, ...]) -> Registries:
    """Add the registry of a plugin; raise PluginError if it cannot be used."""
    point = require_single(claimants)
    plugin = load_plugin(point)
    try:
        registry = load_plugin_registry(plugin)
        for model in registry.models:
            for key, owner in lookup_keys(model):
                if not in_namespace(point, key):
                    raise name_error(
                        registry,
                        f"{key!r} for {owner}",
                        expected=f"{point.namespace}/...",
                        actual=key,
                        hint=f"every name and alias of this plugin starts with {point.namespace}/",
                    )
        return add_registry(registries, registry)
    except RegistryError as error:
        raise point.error(f"has a registry that cannot be used: {error.message}", error.hint) from error


def _unknown_model(
    name: str, registry: Registry, plugins: Mapping[str, Any], failures: Sequence[RegistryError]
) -> ZooError:
    """Return the error for an unknown name: that of a file that may have it, or the closest names."""
    close = suggestions(registry, name)
    did_you_mean = f"did you mean {', '.join(close)}?" if close else ""
    if failures:
        first = failures[0]
        return RegistryError(
            "\n".join(failure.message for failure in failures),
            path=first.path,
            line=first.line,
            expected=first.expected,
            actual=first.actual,
            hint=f"correct it, or take it out of {REGISTRY_ENV}; without it, the model {name!r} is unknown"
            + (f" ({did_you_mean})" if close else ""),
        )
    hints = [did_you_mean or "repvgg_zoo.list_models() lists all names"]
    namespace, slash, _ = name.partition("/")
    if plugin_mode() == "off":
        hints += [f"plugins were not searched ({PLUGINS_ENV}=off)"] if slash else []
    elif slash and normalize_name(namespace) not in plugins:
        hints.append(f"plugin {namespace} is not installed")
    elif plugins and not slash:
        hints.append(f"plugins have names that start with {', '.join(f'{namespace}/' for namespace in plugins)}")
    return UnknownModelError(f"unknown model {name!r}", name=name, suggestions=close, hint="; ".join(hints))


# Filters -----------------------------------------------------------------------------------------------------


def _patterns(argument: str, patterns: Patterns) -> Tuple[str, ...]:
    items = () if patterns is None else (patterns,) if isinstance(patterns, str) else check_items(argument, patterns)
    return tuple(check_text(argument, item, "a pattern, or a list of patterns") for item in items)


def _matches(name: str, patterns: Tuple[str, ...]) -> bool:
    normalized = normalize_name(name)
    return any(
        fnmatch.fnmatchcase(candidate, form)
        for pattern in patterns
        # A hyphen in brackets is a range, so the pattern is also tried with its hyphens.
        for form in (normalize_name(pattern), pattern.casefold())
        for candidate in (normalized, strip_family_prefix(normalized), name.casefold())
    )
