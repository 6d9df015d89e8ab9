"""The model card for MegEngine/Hub, in Chinese and English, from the registry and ``model_card.md.in``.

``python -m tools.model_card > hub/models/repvgg-zoo_vision_repvgg.md``. MegEngine/Hub requires front matter, then a
single block of code, then a section for each language, of which Chinese is mandatory.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Dict, List, Sequence, Tuple

from repvgg_zoo.cli.describe import BACKENDS
from repvgg_zoo.registry.load import shipped_registry
from repvgg_zoo.registry.names import natural_key
from repvgg_zoo.registry.specs import IMAGENET, CheckpointSpec, ModelSpec, Preprocessing

from .repository import repository

REPOSITORY = repository()
TEMPLATE = Path(__file__).with_name("model_card.md.in")
FIRST = "RepVGG_A0"


def model_card(models: Sequence[ModelSpec]) -> str:
    """Return the model card of all variants with ImageNet weights."""
    defaults = [(model, model.checkpoint(model.default)) for model in models if model.default is not None]
    defaults = [(model, checkpoint) for model, checkpoint in defaults if checkpoint.dataset == IMAGENET]
    defaults.sort(key=lambda pair: natural_key(pair[0].name))
    unverified = [model.name for model, checkpoint in defaults if checkpoint.file.integrity == "none"]
    others = [model.name for model, _ in defaults if model.name not in (FIRST, *unverified)]
    load = f'# model = megengine.hub.load("{REPOSITORY}:main", "%s", pretrained=True)'
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        repository=REPOSITORY,
        first=FIRST,
        others="\n".join(load % name for name in others),
        unverified=_names(unverified),
        preprocessing=_preprocessing(defaults),
        rows="\n".join(_row(model, checkpoint) for model, checkpoint in defaults),
    )


def _row(model: ModelSpec, checkpoint: CheckpointSpec) -> str:
    """Return a row of the table: accuracy as the publisher states it, parameters of the deploy form."""
    accuracy = ("-" if value is None else f"{value:g}" for value in (checkpoint.top1, checkpoint.top5))
    return f"| {' | '.join((model.name, *accuracy, f'{model.params.deploy / 1e6:.2f} M', checkpoint.tag))} |"


def _preprocessing(defaults: Sequence[Tuple[ModelSpec, CheckpointSpec]]) -> str:
    """Return a line for each preprocessing, with the models that use it."""
    models: Dict[Preprocessing, List[str]] = {}
    for model, checkpoint in defaults:
        models.setdefault(checkpoint.preprocessing, []).append(model.name)
    lines = []
    for config, names in models.items():
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
        lines.append(
            f"- {_names(names)}: resize {config.resize} ({BACKENDS[config.backend]}, {config.interpolation}), "
            f"crop {config.image_size}, {config.color_order}, mean [{mean}], std [{std}]"
        )
    return "\n".join(lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(model_card(shipped_registry().models), end="")
