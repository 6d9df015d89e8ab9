"""Names: the grammar ``[namespace/]variant[.tag]``, aliases, closest matches, and natural order.

Names are compared without case, ``-`` and ``_``; the family's ``RepVGG`` and the official functions' ``create`` may be
left out or put in front.
"""

from __future__ import annotations

import functools
import re
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

from ..errors import NoWeightsError, UnknownModelError
from .specs import CheckpointSpec, ModelSpec, Registry

Target = Tuple[ModelSpec, Optional[str]]


def resolve(registry: Registry, name: str) -> Optional[Target]:
    """The variant called ``name`` and the tag in it, if any; None if the registry has none.

    Raises UnknownModelError where it has the variant, but not the tag.
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
    """The checkpoint of this tag, or the default one.

    Raises NoWeightsError for a variant without weights, UnknownModelError for a tag that it does not have.
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
            hint=f"it has {', '.join(names)}",
        )
    return tags[normalize_name(tag)]


def lookup_keys(model: ModelSpec) -> Iterator[Tuple[str, str]]:
    """Every normalized name that this variant and its checkpoints answer to, with the owner's full name."""
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
    """Every normalized name of a registry and what it stands for."""
    index: Dict[str, Target] = {}
    for model in registry.models:
        for claim, owner in lookup_keys(model):
            index[claim] = (model, None if owner == model.name else owner[len(model.name) + 1 :])
    return index


def suggestions(registry: Registry, name: str) -> List[str]:
    """Up to three canonical names that look like ``name``, closest first."""
    index = name_index(registry)
    variant = normalize_name(name).partition(".")[0]
    close = _close_matches(variant, list(index), 6, cutoff=0.5)
    return list(dict.fromkeys(index[claim][0].name for claim in close))[:3]


def normalize_name(name: str) -> str:
    """The name as it is compared."""
    return str(name).casefold().replace("-", "").replace("_", "").strip()


def strip_family_prefix(name: str) -> str:
    """A name as it is compared, without the family's ``repvgg``; a namespace keeps its own."""
    namespace, slash, variant = name.rpartition("/")
    return f"{namespace}{slash}{variant.replace('repvgg', '', 1)}"


def natural_key(name: str) -> List[Tuple[int, int, str]]:
    """Sorts B1 before B1g2 before B2, and 2 before 10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold()) if part
    ]


def candidate_names(name: str) -> Tuple[str, ...]:
    """The name as it is compared, and without the official functions' ``create``."""
    plain = normalize_name(name)
    return (plain, plain[len("create") :]) if plain.startswith("create") else (plain,)


def _close_matches(word: str, words: List[str], count: int, cutoff: float = 0.6) -> List[str]:
    import difflib  # here, because a name that is known needs none of it

    return difflib.get_close_matches(word, words, count, cutoff)
