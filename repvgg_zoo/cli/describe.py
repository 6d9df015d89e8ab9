"""page: all that the registry knows of a variant, as text for a reader; megengine.hub.help shows it."""

from __future__ import annotations

from typing import List

from ..registry.specs import Architecture, CheckpointSpec, FileSpec, ModelSpec, Preprocessing

BACKENDS = {"pillow": "Pillow", "opencv": "OpenCV"}


def page(model: ModelSpec) -> str:
    """What the variant is, what it costs, who published weights of it and how far they are proved, and an example.

    >>> import repvgg_zoo
    >>> print(page(repvgg_zoo.model_info("RepVGG_N0")).splitlines()[0])
    RepVGG_N0: an image classifier of the family RepVGG-N (ours, not the paper's)
    """
    parts = [
        f"{model.name}: an image classifier of the family {model.family}",
        architecture(model.architecture),
        costs(model),
        checkpoints(model),
        ARGUMENTS,
        example(model),
    ]
    return "\n\n".join([*parts[:2], model.notes, *parts[2:]] if model.notes else parts) + "\n"


def architecture(built: Architecture) -> str:
    """How it is built, in sentences."""
    blocks = ", ".join(map(str, built.num_blocks[:3]))
    widths = ", ".join(f"{width:g}" for width in built.width_multiplier[:3])
    lines = [
        f"A stem and four stages of {blocks} and {built.num_blocks[3]} blocks, {widths} and "
        f"{built.width_multiplier[3]:g} times",
        "as wide as 64, 128, 256 and 512 channels. While it trains, a block has a 3x3 convolution, a 1x1",
        "convolution and an identity; for inference they become one 3x3 convolution (deploy=True).",
    ]
    if built.groups > 1:
        lines.append(f"Every second layer before the last stage is a convolution of {built.groups} groups.")
    if built.se is not None:
        place = "before" if built.se.position == "before_relu" else "after"
        lines.append(f"Each block has squeeze-and-excitation {place} its ReLU, reduced {built.se.reduction} times.")
    if "/" in built.builder:
        given = ", ".join(f"{name} {value}" for name, value in built.options)
        lines.append(f"It is built by {built.builder}{f', with {given}' if given else ''}.")
    lines.append(f"Input: (N, {built.in_chans}, H, W) of any H and W. Output: (N, {built.num_classes}).")
    return "\n".join(lines)


def costs(model: ModelSpec) -> str:
    """Parameters and MACs of both forms, and the paper's accuracy."""
    size = model.architecture.image_size
    lines = [
        f"{'':11} {'train form':>15} {'deploy form':>15}",
        f"{'parameters':11} {model.params.train:15,} {model.params.deploy:15,}",
        f"{'MACs':11} {model.macs.train:15,} {model.macs.deploy:15,}  one image of {size} x {size}",
    ]
    if model.paper is not None:
        paper = model.paper
        epochs = "" if paper.epochs is None else f" after {paper.epochs} epochs"
        lines.append(f"the authors' top-1: {paper.top1:.2f} % at {paper.image_size} px{epochs} ({paper.source})")
    return "\n".join(lines)


def checkpoints(model: ModelSpec) -> str:
    """Each checkpoint: publisher, accuracy, integrity, license, preprocessing."""
    if model.default is None:
        return f"Checkpoints: none. {model.no_weights}"
    default = model.checkpoint(model.default)
    others = ', pretrained="tag" another' if len(model.checkpoints) > 1 else ""
    lines = [f'Checkpoints: pretrained=True takes "{default.tag}"{others}.']
    if default.file.integrity == "none":
        lines.append("It has no digest, so it is refused until you set REPVGG_ZOO_ALLOW_UNVERIFIED=1.")
    for checkpoint in model.checkpoints:
        lines.extend(["", *described(checkpoint)])
    return "\n".join(lines)


def described(checkpoint: CheckpointSpec) -> List[str]:
    """The lines about one checkpoint."""
    size = checkpoint.preprocessing.image_size
    figures = (("top-1", checkpoint.top1), ("top-5", checkpoint.top5))
    stated = ", ".join(f"{name} {value:.2f} %" for name, value in figures if value is not None)
    accuracy = f"{stated} at {size} px on {checkpoint.dataset}" if stated else "not stated by its publisher"
    lines = [
        f"  {checkpoint.tag} ({checkpoint.publisher})",
        f"    accuracy       {accuracy}",
        f"    integrity      {integrity(checkpoint.file)}",
        f"    license        {checkpoint.license}",
        f"    preprocessing  {preprocessing(checkpoint.preprocessing)}",
    ]
    if checkpoint.official_weights:
        lines.insert(1, "    weights        the paper authors'")
    return [*lines, f"    notes          {checkpoint.notes}"] if checkpoint.notes else lines


def integrity(file: FileSpec) -> str:
    """How far the file is proved, neither more nor less."""
    if file.sha256 is not None:
        return f"sha256 {file.sha256[:16]}..., known in full: finds damage and tampering"
    if file.sha256_prefix is not None:
        count = len(file.sha256_prefix)
        return f"sha256 {file.sha256_prefix}..., of which only {count} digits are known: finds damage, not tampering"
    return "no digest is published: refused unless you allow it, then recorded and checked ever after"


def preprocessing(facts: Preprocessing) -> str:
    """How a picture becomes the input."""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (facts.mean, facts.std))
    order = "grey" if facts.color_order == "L" else facts.color_order
    return (
        f"short side to {facts.resize} px ({BACKENDS[facts.backend]}, {facts.interpolation}), center crop of "
        f"{facts.image_size} px, {order}, mean {mean}, std {std} of 0..1"
    )


ARGUMENTS = """\
Arguments: pretrained (True or a tag), checkpoint (a file of your own), deploy, num_classes (another than the
checkpoint's keeps the trunk and starts a new head), in_chans, features_only with out_indices (a dict of feature
maps), progress, and fields of the architecture such as width_multiplier."""


def example(model: ModelSpec) -> str:
    """Lines that run, where owner/repvgg_zoo:main is what megengine.hub was given."""
    if model.default is None:
        return EXAMPLE_UNTRAINED.format(
            name=model.name, channels=model.architecture.in_chans, size=model.architecture.image_size
        )
    return EXAMPLE.format(name=model.name)


EXAMPLE = """\
Example:

    import megengine, megengine.hub

    model = megengine.hub.load("owner/repvgg_zoo:main", "{name}", pretrained=True)
    import repvgg_zoo  # the hub's copy, from now on

    picture = repvgg_zoo.preprocess(model)("picture.jpg")  # as this checkpoint's publisher does it
    print(model(megengine.Tensor(picture[None])).numpy().argmax())
    deployed = repvgg_zoo.to_deploy(model)  # one convolution in each block"""

EXAMPLE_UNTRAINED = """\
Example:

    import megengine.functional, megengine.hub

    model = megengine.hub.load("owner/repvgg_zoo:main", "{name}")
    logits = model(megengine.functional.zeros((2, {channels}, {size}, {size})))"""
