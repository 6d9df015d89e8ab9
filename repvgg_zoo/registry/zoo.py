"""The zoo as its user sees it: the shipped registry and the registered ones, listed and looked up by name."""

from __future__ import annotations

import fnmatch
import functools
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from .._data import registry_path
from ..errors import RegistryError
from .names import claims, find_checkpoint, natural_key, normalised, resolve
from .reader import load_registry, registry_from_mapping
from .spec import CheckpointSpec, ModelSpec, Registry

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
    """The canonical names of all variants that pass every filter, in natural order.

    ``filter`` and ``exclude`` are wildcards, one or several (``"B1*"``, ``["*g2", "*g4"]``), compared without case,
    ``-``, ``_`` and with or without ``RepVGG``. ``pretrained=True`` keeps variants with weights, ``False`` those
    without, a string those with a checkpoint of that tag. ``min_top1`` is per cent, of the default checkpoint or else
    of the paper; ``max_params`` and ``max_macs`` count the deploy form. Needs no MegEngine.

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
        tag = normalised(pretrained)
        tests.append(lambda model: any(fnmatch.fnmatchcase(normalised(c.tag), tag) for c in model.checkpoints))
    elif pretrained is not None:
        tests.append(lambda model: (model.default is not None) == pretrained)
    if min_top1 is not None:
        tests.append(lambda model: (top1(model) or 0.0) >= min_top1)
    if max_params is not None:
        tests.append(lambda model: model.params.deploy <= max_params)
    if max_macs is not None:
        tests.append(lambda model: model.macs.deploy <= max_macs)
    kept = (model.name for model in default_registry().models if all(test(model) for test in tests))
    return sorted(kept, key=natural_key)


def model_info(name: str) -> ModelSpec:
    """What is known of a variant: architecture, parameters, MACs, checkpoints, aliases. Needs no MegEngine.

    Raises UnknownModelError, whose ``suggestions`` are the closest names.

    >>> import repvgg_zoo
    >>> repvgg_zoo.model_info("repvgg-a0").params
    Cost(train=9108968, deploy=8309384)
    """
    return find_model(name)[0]


def find_model(name: str) -> Tuple[ModelSpec, Optional[str]]:
    """The variant called ``name`` and the tag in it, if any; raises UnknownModelError."""
    return resolve(default_registry(), name)


def find_weights(name: str) -> CheckpointSpec:
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
    if isinstance(path_or_mapping, Mapping):
        added = registry_from_mapping(path_or_mapping)
    else:
        added = load_registry(path_or_mapping)
    with _lock:
        if not any(added.models == known.models for known in _registered):
            combined((_shipped(), *_registered, added))
            _registered.append(added)


def default_registry() -> Registry:
    """The shipped registry and all registered ones."""
    return combined((_shipped(), *_registered))


@functools.lru_cache(maxsize=8)
def combined(registries: Tuple[Registry, ...]) -> Registry:
    """One registry of several; raises RegistryError where two claim one name."""
    if len(registries) == 1:
        return registries[0]
    owners: Dict[str, Tuple[str, Optional[str]]] = {}
    for registry in registries:
        for model in registry.models:
            for claim, owner in claims(model):
                first, where = owners.setdefault(claim, (owner, registry.path))
                if where != registry.path or first != owner:
                    raise RegistryError(
                        f"{registry.path or 'the mapping'} claims the name {claim!r} for {owner}, which is {first}'s",
                        path=registry.path,
                        expected="a name of its own",
                        actual=claim,
                        hint="put your variants into a namespace, for example acme/RepVGG_X",
                    )
    return Registry(tuple(model for registry in registries for model in registry.models))


# Registration is the one thing that a process remembers; the lock keeps check and append together.
_registered: List[Registry] = []
_lock = threading.Lock()


def _shipped() -> Registry:
    path = registry_path()
    stat = path.stat()
    return _load(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _load(path: str, mtime_ns: int, size: int) -> Registry:
    return load_registry(path)


def _patterns(patterns: Patterns) -> Tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns or ())


def _matches(name: str, patterns: Tuple[str, ...]) -> bool:
    whole = normalised(name)
    short = whole.replace("repvgg", "", 1)
    return any(
        fnmatch.fnmatchcase(spelling, form)
        for pattern in patterns
        # A hyphen inside brackets is a range, so such a pattern is also tried as it stands.
        for form in (normalised(pattern), pattern.casefold())
        for spelling in (whole, short, name.casefold())
    )
