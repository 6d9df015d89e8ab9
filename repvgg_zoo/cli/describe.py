"""A variant as text, for ``repvgg-zoo info`` and ``megengine.hub.help``."""

from __future__ import annotations

from typing import List, Tuple

from .._escape import escape
from ..registry.specs import Architecture, CheckpointSpec, FileSpec, ModelSpec, Preprocessing

BACKENDS = {"pillow": "Pillow", "opencv": "OpenCV"}


def describe(model: ModelSpec) -> str:
    """Return what a variant is, what it costs, its published checkpoints with their integrity, and an example.

    >>> import repvgg_zoo
    >>> print(describe(repvgg_zoo.model_info("RepVGG_N0")).splitlines()[0])
    RepVGG_N0: an image classifier of the family RepVGG-N (not from the paper)
    """
    parts = [
        f"{model.name}: an image classifier of the family {model.family}",
        format_architecture(model.architecture),
        model.notes,
        format_costs(model),
        format_checkpoints(model),
        ARGUMENTS,
        format_example(model),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return "\n".join(map(escape, text.split("\n")))


def format_architecture(architecture: Architecture) -> str:
    """Return how a variant is built, in sentences."""
    blocks = ", ".join(map(str, architecture.num_blocks[:3]))
    widths = ", ".join(f"{width:g}" for width in architecture.width_multiplier[:3])
    lines = [
        f"A stem and four stages of {blocks} and {architecture.num_blocks[3]} blocks with {widths} and "
        f"{architecture.width_multiplier[3]:g} times",
        "64, 128, 256 and 512 channels. In train form a block has a 3x3 convolution, a 1x1 convolution",
        "and an identity branch; the deploy form (deploy=True) has one 3x3 convolution instead.",
    ]
    if architecture.groups > 1:
        lines.append(f"Every second layer before the last stage is a convolution of {architecture.groups} groups.")
    if architecture.se is not None:
        side = "before" if architecture.se.position == "before_relu" else "after"
        lines.append(
            f"Each block has squeeze-and-excitation {side} its ReLU, with a reduction of {architecture.se.reduction}."
        )
    if "/" in architecture.builder:
        options = ", ".join(f"{name} {value}" for name, value in architecture.options)
        lines.append(f"It is built by {architecture.builder}{f', with {options}' if options else ''}.")
    lines.append(f"Input: (N, {architecture.in_chans}, H, W), any H and W. Output: (N, {architecture.num_classes}).")
    return "\n".join(lines)


def format_costs(model: ModelSpec) -> str:
    """Return parameters and MACs of both forms, and the paper's accuracy."""
    size = model.architecture.image_size
    lines = [
        f"{'':11} {'train form':>15} {'deploy form':>15}",
        f"{'parameters':11} {model.params.train:15,} {model.params.deploy:15,}",
        f"{'MACs':11} {model.macs.train:15,} {model.macs.deploy:15,}  one image of {size} x {size}",
    ]
    if model.paper is not None:
        paper = model.paper
        epochs = "" if paper.epochs is None else f" after {paper.epochs} epochs"
        lines.append(f"top-1 of the authors: {paper.top1:.2f} % at {paper.image_size} px{epochs} ({paper.source})")
    return "\n".join(lines)


def format_checkpoints(model: ModelSpec) -> str:
    """Return the publisher, accuracy, integrity, license and preprocessing of each checkpoint."""
    if model.default is None:
        return f"Checkpoints: none. {model.no_weights}"
    default = model.checkpoint(model.default)
    others = ', pretrained="tag" another' if len(model.checkpoints) > 1 else ""
    lines = [f'Checkpoints: pretrained=True takes "{default.tag}"{others}.']
    if default.file.integrity == "none":
        lines.append("It has no digest, so it is refused until you set REPVGG_ZOO_ALLOW_UNVERIFIED=1.")
    for checkpoint in model.checkpoints:
        lines.extend(["", *format_checkpoint(checkpoint)])
    return "\n".join(lines)


def format_checkpoint(checkpoint: CheckpointSpec) -> List[str]:
    """Return the lines about one checkpoint."""
    results = (("top-1", checkpoint.top1), ("top-5", checkpoint.top5))
    accuracy = ", ".join(f"{name} {value:.2f} %" for name, value in results if value is not None)
    if accuracy:
        accuracy += f" at {checkpoint.preprocessing.image_size} px on {checkpoint.dataset}"
    lines = [
        f"  {checkpoint.tag} ({checkpoint.publisher})",
        f"    accuracy       {accuracy or 'not published'}",
        f"    integrity      {format_integrity(checkpoint.file)}",
        f"    license        {checkpoint.license}",
        f"    preprocessing  {format_preprocessing(checkpoint.preprocessing)}",
    ]
    if checkpoint.official_weights:
        lines.insert(1, "    weights        the paper authors'")
    return [*lines, f"    notes          {checkpoint.notes}"] if checkpoint.notes else lines


def format_integrity(file: FileSpec) -> str:
    """Return what verifying the file can detect."""
    if file.sha256 is not None:
        return f"sha256 {file.sha256[:16]}..., full digest: detects damage and tampering"
    if file.sha256_prefix is not None:
        count = len(file.sha256_prefix)
        return f"sha256 {file.sha256_prefix}..., only {count} digits published: detects damage, not tampering"
    return "no digest published: refused unless you allow it, then recorded and verified from then on"


PREPROCESSING = (
    "short side to %s px (%s, %s), center crop of %s px, %s, values in 0..1, mean %s, std %s"  # the docs translate it
)


def format_preprocessing(config: Preprocessing) -> str:
    """Return how an image becomes the network's input."""
    return PREPROCESSING % preprocessing_values(config)


def preprocessing_values(config: Preprocessing) -> Tuple[str, ...]:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    order = "grayscale" if config.color_order == "L" else config.color_order
    size, resize = str(config.image_size), str(config.resize)
    return (resize, BACKENDS[config.backend], config.interpolation, size, order, mean, std)


ARGUMENTS = """\
Arguments: pretrained (True or a tag), checkpoint (a file of your own), deploy, num_classes (if it differs from the
checkpoint's, the head is new), in_chans, features_only with out_indices (a dict of feature maps), progress, and fields
of the architecture such as width_multiplier."""


def format_example(model: ModelSpec) -> str:
    """Return code that runs if megengine.hub loaded owner/repvgg_zoo:main."""
    if model.default is None:
        return EXAMPLE_UNTRAINED.format(
            name=model.name, channels=model.architecture.in_chans, size=model.architecture.image_size
        )
    return EXAMPLE.format(name=model.name)


EXAMPLE = """\
Example:

    import megengine, megengine.hub

    model = megengine.hub.load("owner/repvgg_zoo:main", "{name}", pretrained=True)
    import repvgg_zoo  # from now on the hub's copy

    image = repvgg_zoo.preprocess(model)("image.jpg")  # as this checkpoint's publisher does
    print(model(megengine.Tensor(image[None])).numpy().argmax())
    deployed = repvgg_zoo.to_deploy(model)  # one convolution in each block"""

EXAMPLE_UNTRAINED = """\
Example:

    import megengine.functional, megengine.hub

    model = megengine.hub.load("owner/repvgg_zoo:main", "{name}")
    logits = model(megengine.functional.zeros((2, {channels}, {size}, {size})))"""
