"""A variant's architecture: the drawing of its stages, and what each of them costs."""

from __future__ import annotations

import re
from typing import Dict, List, NamedTuple, Tuple

from repvgg_zoo.registry.architecture import BlockSpec, block_specs, stage_channels
from repvgg_zoo.registry.cost import architecture_cost
from repvgg_zoo.registry.specs import Architecture, Cost, ModelSpec

from .html import element, label, table, void

ROW = 52  # pixels from one stage to the next
BLOCKS_AT = 36.0  # percent of the width
LARGEST = 34  # pixels of the block with the most channels


class Stage(NamedTuple):
    """A stage; ``size`` is its output's height and width, ``params`` and ``macs`` those of all its blocks."""

    name: str
    blocks: Tuple[BlockSpec, ...]
    channels: int
    size: int
    params: Cost
    macs: Cost


def stages_of(model: ModelSpec) -> List[Stage]:
    """Return the stem and the four stages."""
    architecture = model.architecture
    cost = architecture_cost(architecture, (architecture.image_size, architecture.image_size))
    layers = {layer.name: layer for layer in cost.layers}
    groups: Dict[str, List[BlockSpec]] = {}
    for block in block_specs(architecture):
        groups.setdefault(re.match(r"stage\d", block.key).group(), []).append(block)  # type: ignore[union-attr]
    result = []
    size = architecture.image_size
    for name, blocks in groups.items():
        for block in blocks:
            size = -(-size // block.stride)
        params, macs = (
            Cost(*(sum(getattr(getattr(layers[block.key], what), form) for block in blocks) for form in Cost._fields))
            for what in ("params", "macs")
        )
        result.append(Stage(name, tuple(blocks), blocks[-1].out_channels, size, params, macs))
    return result


def drawing(model: ModelSpec) -> str:
    """Return an SVG with a row for each stage and a box for each block; its height is the number of channels."""
    stages = stages_of(model)
    architecture = model.architecture
    most = max(stage_channels(architecture.width_multiplier))
    body = [
        *words(0, label("input"), f"{architecture.in_chans} × {architecture.image_size} × {architecture.image_size}")
    ]
    for row, stage in enumerate(stages, start=1):
        name = label("stem") if row == 1 else label("stage %s", row - 1)
        body += words(row, name, f"{stage.channels} × {stage.size} × {stage.size}")
        step = min(6.0, (100 - BLOCKS_AT) / max(len(one.blocks) for one in stages))
        for index, block in enumerate(stage.blocks):
            height = max(5.0, LARGEST * (block.out_channels / most) ** 0.5)
            kinds = [name for name, has in (("stride", block.stride > 1), ("grouped", block.groups > 1)) if has]
            box = {"x": f"{BLOCKS_AT + index * step:.2f}%", "width": f"{step * 0.8:.2f}%"}
            box.update({"y": f"{row * ROW + ROW / 2 - height / 2:.1f}", "height": f"{height:.1f}"})
            body.append(void("rect", **box, rx=2, class_=" ".join(["block", *kinds])))
    pooled = stages[-1].channels
    body += words(len(stages) + 1, label("head"), label("pooling, linear"))
    middle = (len(stages) + 1) * ROW + ROW / 2 + 5
    body.append(element("text", f"{pooled} → {architecture.num_classes}", x=f"{BLOCKS_AT}%", y=middle))
    height = (len(stages) + 2) * ROW
    svg = element("svg", *body, role="img", aria_label=label("The stages of %s", model.name), height=height)
    return element("figure", svg, element("figcaption", legend(architecture)), class_="catalog-architecture")


def words(row: int, first: str, second: str) -> List[str]:
    middle = row * ROW + ROW / 2
    return [
        element("text", first, x=0, y=middle - 3, class_="name"),
        element("text", second, x=0, y=middle + 14),
    ]


def legend(architecture: Architecture) -> str:
    """Return what the boxes mean, of those that this variant has."""
    items = [("stride", label("block of stride 2")), ("", label("block of stride 1"))]
    if architecture.groups > 1:
        items.append(("grouped", label("its 3x3 convolution has %s groups", architecture.groups)))
    keys = [
        element("span", element("svg", void("rect", width=12, height=12, rx=2, class_=f"block {kind}".strip()),
                                width=12, height=12, aria_hidden="true"), " ", text)
        for kind, text in items
    ]  # fmt: skip
    notes = [label("A box's height stands for its channels; sizes are channels × height × width.")]
    if architecture.se is not None:
        side = "before" if architecture.se.position == "before_relu" else "after"
        text = f"Each block has squeeze-and-excitation {side} its ReLU, with a reduction of %s."
        notes.append(label(text, architecture.se.reduction))
    return element("p", *keys, class_="catalog-legend") + element("p", " ".join(notes))


def stage_table(model: ModelSpec) -> str:
    """Return blocks, output, parameters and MACs of each stage and of the head."""
    stages = stages_of(model)
    heads = ("Stage", "Blocks", "Output", "Params, train form", "Params, deploy form", "Share", "MACs, deploy form, M")
    rows = []
    for row, stage in enumerate(stages):
        name = label("stem") if row == 0 else label("stage %s", row)
        size = f"{stage.channels} × {stage.size} × {stage.size}"
        rows.append([name, str(len(stage.blocks)), size, *costs_of(stage.params, stage.macs, model)])
    params, macs = (
        Cost(*(getattr(total, form) - sum(getattr(getattr(stage, what), form) for stage in stages)
               for form in Cost._fields))
        for what, total in (("params", model.params), ("macs", model.macs))
    )  # fmt: skip
    head = label("head") if model.architecture.builder != "repvggplus" else label("heads, three of them for training")
    rows.append([head, "", str(model.architecture.num_classes), *costs_of(params, macs, model)])
    rows.append([label("all"), str(sum(len(stage.blocks) for stage in stages)), "",
                 *costs_of(model.params, model.macs, model)])  # fmt: skip
    return table([label(head) for head in heads], rows, numeric=(1, 2, 3, 4, 5, 6), class_="catalog-stages")


def costs_of(params: Cost, macs: Cost, model: ModelSpec) -> List[str]:
    share = params.deploy / model.params.deploy
    return [f"{params.train:,}", f"{params.deploy:,}", f"{share:.1%}", f"{macs.deploy / 1e6:,.1f}"]
