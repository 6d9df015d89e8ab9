"""The registry's data classes: what a variant is, and what each published checkpoint of it is.

They are frozen, hold plain data, and define the grammar of registry.yaml: the parser follows their annotations, and the
JSON Schema is generated from them. ``spec._replace(field=value)`` returns a changed copy. Annotations are evaluated
here, once: as texts, they would be compiled by NamedTuple and by the parser, which takes milliseconds.
"""

from typing import Callable, NamedTuple, Optional, Tuple, Union

from .._escape import escape
from .._html import html_table

FORMS = ("train", "deploy")
FORMATS = ("safetensors", "megengine", "torch", "paddle")
SE_POSITIONS = ("before_relu", "after_relu")
COLOR_ORDERS = ("RGB", "BGR", "L")
INTERPOLATIONS = ("bilinear", "bicubic")
BACKENDS = ("pillow", "opencv")
ROUNDINGS = ("floor", "round")
INTEGRITY_LEVELS = ("none", "sha256_prefix", "sha256")  # weakest first
IMAGENET = "ImageNet-1k"

# Arguments of a plugin's builder besides the fields that all variants have: (name, value) pairs.
Scalar = Union[str, int, float, bool]
Options = Tuple[Tuple[str, Union[Scalar, Tuple[Scalar, ...]]], ...]


class SESpec(NamedTuple):
    """Squeeze-and-excitation in each block, including the stem."""

    position: str
    reduction: int


class Architecture(NamedTuple):
    """How a variant is built (paper, section 3.4 and table 3).

    ``groups`` applies to the layers with an even index, counted from the stem's 0 (paper, section 3.4). ``builder`` is
    "repvgg", "repvggplus", or a plugin's (``acme/name``), which may take ``options``: a mapping in the registry file,
    (name, value) pairs here.
    """

    num_blocks: Tuple[int, int, int, int]
    width_multiplier: Tuple[float, float, float, float]
    groups: int = 1
    se: Optional[SESpec] = None
    builder: str = "repvgg"
    in_chans: int = 3
    num_classes: int = 1000
    image_size: int = 224
    options: Options = ()


class Cost(NamedTuple):
    """Parameters of each form, or its multiply-accumulates (convolutions and head) for one image of ``image_size``."""

    train: int
    deploy: int


class PaperResults(NamedTuple):
    """Results of a variant in the paper or the official README; ``top1`` in percent."""

    top1: float
    source: str
    epochs: Optional[int] = None
    image_size: int = 224


class Preprocessing(NamedTuple):
    """How an image becomes the network's input; ``mean`` and ``std`` are for values in 0..1, in ``color_order``.

    ``resize_rounding`` is how the publisher rounds the long side's length, ``crop_rounding`` the crop's offset;
    ``round`` rounds halves to even, as Python does.
    """

    image_size: int
    resize: int
    interpolation: str
    backend: str
    color_order: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    resize_rounding: str = "floor"
    crop_rounding: str = "round"


class FileSpec(NamedTuple):
    """A file, its integrity data, and the sources that serve it, best first.

    A source is a URL (``https:``, ``http:``, ``file:``), ``hf://owner/repo@revision/path`` (without a revision: main),
    ``s3://bucket/key``, ``gdrive:<id>``, or a path relative to the registry file.
    Integrity is ``sha256`` (64 hex digits, with ``size`` in bytes), ``sha256_prefix`` (8 or more hex digits that the
    publisher put into the file's name: detects damage, not tampering), or neither.
    """

    name: str
    sources: Tuple[str, ...]
    size: Optional[int] = None
    sha256: Optional[str] = None
    sha256_prefix: Optional[str] = None

    @property
    def integrity(self) -> str:
        """``"sha256"``, ``"sha256_prefix"`` or ``"none"``; INTEGRITY_LEVELS has their order."""
        return "sha256" if self.sha256 else "sha256_prefix" if self.sha256_prefix else "none"


class CheckpointSpec(NamedTuple):
    """Published weights of one variant; ``variant`` and ``tag`` are its keys in the registry.

    ``layout`` names the publisher's keys, ``form`` is train or deploy, ``official_weights`` says whether these are the
    paper authors' weights (whoever converted them). ``top1`` and ``top5`` are percent under ``preprocessing``, on the
    validation set of ``dataset``. ``labels`` are the names of the classes in the order of the logits; those of
    ImageNet-1k may be left out. ``bn_eps`` is the eps of all BN layers where it is not 1e-5, as weights from Keras have
    it. ``provenance`` lists where the stated values were read.
    """

    variant: str
    tag: str
    file: FileSpec
    publisher: str
    format: str
    layout: str
    form: str
    license: str
    preprocessing: Preprocessing
    provenance: Tuple[str, ...]
    official_weights: bool = False
    top1: Optional[float] = None
    top5: Optional[float] = None
    num_classes: int = 1000
    dataset: str = IMAGENET
    labels: Tuple[str, ...] = ()
    aliases: Tuple[str, ...] = ()
    notes: Optional[str] = None
    bn_eps: Optional[float] = None

    @property
    def name(self) -> str:
        """The full name, for example ``"RepVGG_A0.timm"``."""
        return f"{self.variant}.{self.tag}"

    def __repr__(self) -> str:
        accuracy = "" if self.top1 is None else f", top-1 {self.top1:g}"
        return f"<CheckpointSpec {escape(self.name)}: {self.format}, {self.form} form{accuracy}, {self.file.integrity}>"

    def _repr_html_(self) -> str:
        return html_table(self.name, (), zip(CHECKPOINT_COLUMNS, checkpoint_row(self)))


class ModelSpec(NamedTuple):
    """One variant: how it is built, what it costs, its other names, and its published checkpoints.

    ``params`` counts trainable numbers as the official code builds them; ``macs`` counts convolutions and the head
    for one image of ``architecture.image_size``. ``checkpoints`` are in the registry's order; ``default`` is the tag
    that ``pretrained=True`` takes, or None, with the reason in ``no_weights``. If the registry does not set it, it is
    the checkpoint with the strongest integrity among the official weights, or among all if none are official.
    """

    name: str
    architecture: Architecture
    params: Cost
    macs: Cost
    family: str
    aliases: Tuple[str, ...] = ()
    paper: Optional[PaperResults] = None
    checkpoints: Tuple[CheckpointSpec, ...] = ()
    default: Optional[str] = None
    no_weights: Optional[str] = None
    notes: Optional[str] = None

    def checkpoint(self, tag: str) -> CheckpointSpec:
        """Return the checkpoint with this tag; raise KeyError if it does not exist."""
        for checkpoint in self.checkpoints:
            if checkpoint.tag == tag:
                return checkpoint
        raise KeyError(tag)

    def __repr__(self) -> str:
        tags = ", ".join(checkpoint.tag for checkpoint in self.checkpoints) or "none"
        return f"<ModelSpec {escape(self.name)}: {format_costs(self)} in the deploy form; checkpoints: {escape(tags)}>"

    def _repr_html_(self) -> str:
        if not self.checkpoints:
            return html_table(f"{self.name}: {format_costs(self)}", (), [("no weights", self.no_weights)])
        rows = map(checkpoint_row, self.checkpoints)
        return html_table(f"{self.name}: {format_costs(self)}", CHECKPOINT_COLUMNS, rows)


CHECKPOINT_COLUMNS = ("tag", "publisher", "form", "format", "layout", "size", "integrity", "license", "top-1", "top-5")


def map_file_sources(spec: CheckpointSpec, function: Callable[[str], str]) -> CheckpointSpec:
    """Replace the sources without a scheme, which are files beside the registry."""
    if all(":" in source for source in spec.file.sources):
        return spec
    sources = tuple(source if ":" in source else function(source) for source in spec.file.sources)
    return spec._replace(file=spec.file._replace(sources=sources))


def checkpoint_row(checkpoint: CheckpointSpec) -> Tuple[object, ...]:
    """Return what a table shows of a checkpoint, by CHECKPOINT_COLUMNS."""
    size = None if checkpoint.file.size is None else f"{checkpoint.file.size / 1e6:.1f} MB"
    published = (checkpoint.tag, checkpoint.publisher, checkpoint.form, checkpoint.format, checkpoint.layout)
    return (*published, size, checkpoint.file.integrity, checkpoint.license, checkpoint.top1, checkpoint.top5)


def format_costs(model: ModelSpec) -> str:
    """Return parameters and MACs of the deploy form, in short."""
    return f"{model.params.deploy / 1e6:.2f} M parameters and {format_macs(model.macs.deploy)} MACs"


def format_macs(macs: int) -> str:
    """Return a number of MACs, in short.

    >>> from repvgg_zoo.registry.specs import format_macs
    >>> format_macs(1361476096), format_macs(996608)
    ('1.36 G', '1.00 M')
    """
    return f"{macs / 1e9:.2f} G" if macs >= 10**7 else f"{macs / 1e6:.2f} M"


class Registry:
    """The variants of one registry file, or of several together; ``path`` is the file, if there is one."""

    def __init__(self, models: Tuple[ModelSpec, ...], path: Optional[str] = None) -> None:
        self.models = models
        self.path = path
