"""Names: the grammar ``[namespace/]variant[.tag]``, aliases, closest matches, and natural order.

Names are compared without case, ``-`` and ``_``. The family prefix ``RepVGG`` may be left out, and the official
functions' prefix ``create`` may be added.
"""

from __future__ import annotations

import functools
import re
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

from ..errors import NoWeightsError, UnknownModelError
from .specs import CheckpointSpec, ModelSpec, Registry

Target = Tuple[ModelSpec, Optional[str]]


def resolve(registry: Registry, name: str) -> Optional[Target]:
    """Return the variant called ``name`` and the tag in it, if any; None if the registry does not have it.

    Raise UnknownModelError if it has the variant, but not the tag.
    """
    index = name_index(registry)
    for candidate in candidate_names(name):
        if candidate in index:
            return index[candidate]
        variant, dot, tag = candidate.rpartition(".")
        if dot and variant in index:
            model = index[variant][0]
            return model, find_checkpoint(model, tag).tag
    return None


def find_checkpoint(model: ModelSpec, tag: Optional[str] = None) -> CheckpointSpec:
    """Return the checkpoint with this tag, or the default one.

    Raise NoWeightsError for a variant without weights, UnknownModelError for a tag that it does not have.
    """
    if model.default is None:
        raise NoWeightsError(
            f"{model.name} has no pretrained weights: {model.no_weights}",
            hint="create it without pretrained, or load your own file with checkpoint=",
        )
    if tag is None:
        return model.checkpoint(model.default)
    tags = {normalize_name(checkpoint.tag): checkpoint for checkpoint in model.checkpoints}
    if normalize_name(tag) not in tags:
        names = [checkpoint.tag for checkpoint in model.checkpoints]
        close = _close_matches(tag, names, 3) or names
        raise UnknownModelError(
            f"{model.name} has no checkpoint {tag!r}",
            name=f"{model.name}.{tag}",
            suggestions=[f"{model.name}.{name}" for name in close],
            hint=f"its checkpoints: {', '.join(names)}",
        )
    return tags[normalize_name(tag)]


def lookup_keys(model: ModelSpec) -> Iterator[Tuple[str, str]]:
    """Yield every normalized name of this variant and its checkpoints, with the full name of its owner."""
    for name in (model.name, *model.aliases):
        yield normalize_name(name), model.name
        short = strip_family_prefix(normalize_name(name))
        if short and not short.endswith("/"):
            yield short, model.name
    for checkpoint in model.checkpoints:
        for alias in checkpoint.aliases:
            yield normalize_name(alias), checkpoint.name


@functools.lru_cache(maxsize=32)
def name_index(registry: Registry) -> Mapping[str, Target]:
    """Return every normalized name of a registry with the variant and tag that it stands for."""
    index: Dict[str, Target] = {}
    for model in registry.models:
        for key, owner in lookup_keys(model):
            index[key] = (model, None if owner == model.name else owner[len(model.name) + 1 :])
    return index


def suggestions(registry: Registry, name: str) -> List[str]:
    """Return up to three canonical names that are similar to ``name``, closest first."""
    index = name_index(registry)
    variant = normalize_name(name).partition(".")[0]
    close = _close_matches(variant, list(index), 6, cutoff=0.5)
    return list(dict.fromkeys(index[key][0].name for key in close))[:3]


def normalize_name(name: str) -> str:
    """Return the form of a name that is compared."""
    return str(name).casefold().replace("-", "").replace("_", "").strip()


def strip_family_prefix(name: str) -> str:
    """Remove ``repvgg`` from a normalized name, except from its namespace."""
    namespace, slash, variant = name.rpartition("/")
    return f"{namespace}{slash}{variant.replace('repvgg', '', 1)}"


def natural_key(name: str) -> List[Tuple[int, int, str]]:
    """Return a sort key that puts B1 before B1g2 before B2, and 2 before 10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold()) if part
    ]


def candidate_names(name: str) -> Tuple[str, ...]:
    """Return the normalized name, also without the official functions' prefix ``create`` if it has one."""
    normalized = normalize_name(name)
    return (normalized, normalized[len("create") :]) if normalized.startswith("create") else (normalized,)


def _close_matches(word: str, words: List[str], count: int, cutoff: float = 0.6) -> List[str]:
    import difflib  # here, because known names do not need it

    return difflib.get_close_matches(word, words, count, cutoff)
