"""What a file says about its weights: variant, classes, preprocessing, BN eps, and where they came from.

It travels as one JSON text under METADATA_KEY: in the ``__metadata__`` of a safetensors file, and in a pickle as an
attribute of the OrderedDict with the arrays, as torch's ``_metadata`` does. So every key of the dict is an array, and
programs that know nothing of it load the file as before.

The text of a file is foreign: it is bounded, and each value has the type and range that the registry asks of it.
"""

from __future__ import annotations

import json
import math
import re
import typing
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from .._json import parse_json
from ..registry.specs import Architecture, CheckpointSpec, ModelSpec, Options, Preprocessing
from ..registry.validation import MAX_BN_EPS, MAX_CLASSES, check_spec, fields_of, is_spec
from .formats.file_buffer import METADATA_KEY

# Parsing takes up to 25 bytes a character; the names of ImageNet-21k have 400,000.
MAX_METADATA_CHARS = 1 << 20
MAX_TEXT_CHARS = 1000
MAX_BN_LAYERS = 2000  # RepVGGplus_L2pse, the largest network, has 124

# The field of the JSON text that only the file of a quantized network has.
QUANTIZATION = "quantization"

DEFAULT_IMAGE_SIZE = 224  # of a file that fits no variant
DEFAULT_BN_EPS = 1e-5  # of every publisher, and the default of MegEngine, torch and Paddle


@dataclass(frozen=True)
class CheckpointMetadata:
    """What is known about a checkpoint beside its arrays; None or empty where it is not known.

    ``variant`` is a name of the registry; ``architecture`` is set where it differs from the variant's. ``class_names``
    are in the order of the logits; for a published ``dataset`` such as ImageNet-1k they are left out. ``bn_eps`` has
    the eps of each BN layer (``"stage0.rbr_dense.bn"``) that differs from 1e-5. ``source`` and ``source_sha256`` are
    the published checkpoint that the weights were loaded from, and the digest of its file. ``preprocessing_source``
    says in words where ``preprocessing`` is from; it is not saved.
    """

    variant: Optional[str] = None
    architecture: Optional[Architecture] = None
    dataset: Optional[str] = None
    class_names: Tuple[str, ...] = ()
    preprocessing: Optional[Preprocessing] = None
    bn_eps: Mapping[str, float] = field(default_factory=dict)
    source: Optional[str] = None
    source_sha256: Optional[str] = None
    preprocessing_source: Optional[str] = field(default=None, compare=False)

    def without_classes(self) -> CheckpointMetadata:
        """Return the metadata of a network whose head is another one."""
        return replace(self, dataset=None, class_names=())


def to_text(metadata: CheckpointMetadata) -> str:
    """Return the metadata as JSON in ASCII; raise ValueError for what ``from_text`` would not read back."""
    values = {item.name: _to_plain(getattr(metadata, item.name)) for item in fields(metadata) if item.name in _READERS}
    try:
        text = json.dumps({name: value for name, value in values.items() if value}, allow_nan=False)
    except TypeError as error:
        raise ValueError(str(error)) from None
    from_text(text)
    return text


def from_text(text: str) -> CheckpointMetadata:
    """Return the metadata of a JSON text; fields that this version does not know are left out.

    Raises ValueError for anything else than such a text, with what is wrong.
    """
    values = parse_text(text)
    return CheckpointMetadata(**{name: read(name, values[name]) for name, read in _READERS.items() if name in values})


def parse_text(text: str) -> Dict[str, Any]:
    """Return all values of a JSON text, unchecked; raise ValueError for anything else than an object."""
    if len(text) > MAX_METADATA_CHARS:
        raise ValueError(f"it has {len(text)} characters")
    values = parse_json(text.encode("utf-8", "surrogatepass"))
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__}, not an object")
    return values


def metadata_of_spec(spec: CheckpointSpec) -> CheckpointMetadata:
    """Return what the registry says about a published checkpoint; its file may say more about eps."""
    return CheckpointMetadata(
        variant=spec.variant,
        dataset=spec.dataset,
        class_names=spec.labels,
        preprocessing=spec.preprocessing,
        source=spec.name,
        preprocessing_source=f"the registry, for {spec.name}",
    )


def default_image_size(metadata: CheckpointMetadata, spec: Optional[ModelSpec]) -> Optional[int]:
    """Return the image size of the preprocessing, or else that of the variant, or None if neither is known."""
    if metadata.preprocessing is not None:
        return metadata.preprocessing.image_size
    return None if spec is None else spec.architecture.image_size


def bn_layers(keys: typing.Iterable[str]) -> Tuple[str, ...]:
    """Return the names of the BN layers in the keys of a state dict."""
    return tuple(key[: -len(".running_var")] for key in keys if key.endswith(".running_var"))


def uniform_bn_eps(keys: typing.Iterable[str], eps: float) -> Dict[str, float]:
    """Return ``bn_eps`` for a network of which all BN layers have the same eps."""
    return {} if eps == DEFAULT_BN_EPS else dict.fromkeys(bn_layers(keys), eps)


def _to_plain(value: Any) -> Any:
    """Return specs as dicts, with their options as one too."""
    if hasattr(value, "_asdict"):
        plain = {name: _to_plain(item) for name, item in value._asdict().items() if item is not None}
        return {name: dict(item) if name == "options" else item for name, item in plain.items()}
    return dict(value) if isinstance(value, Mapping) else value


# Reading: each function returns a value of its type, or raises ValueError ------------------------------------


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_CHARS:
        raise ValueError(f"{name} is {_shorten(value)}, not a text of 1 to {MAX_TEXT_CHARS} characters")
    value.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair
    return value


def _digest(name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"{name} is {_shorten(value)}, not 64 lowercase hex digits")
    return value


def _texts(name: str, value: Any) -> Tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_CLASSES:
        raise ValueError(f"{name} is {_shorten(value)}, not a list of texts")
    return tuple(_text(f"{name}[{index}]", item) for index, item in enumerate(value))


def _bn_eps(name: str, value: Any) -> Dict[str, float]:
    if not isinstance(value, dict) or len(value) > MAX_BN_LAYERS:
        raise ValueError(f"{name} is {_shorten(value)}, not an object with the eps of each BN layer")
    for layer, eps in value.items():
        _text(f"a layer of {name}", layer)
        if type(eps) not in (int, float) or not 0 < eps <= MAX_BN_EPS:
            raise ValueError(f"{name} of {layer} is {_shorten(eps)}, not above 0 and at most {MAX_BN_EPS:g}")
    return {layer: float(eps) for layer, eps in value.items()}


def _spec(kind: Any) -> Callable[[str, Any], Any]:
    return lambda name, value: _value(name, value, kind)


def _value(name: str, value: Any, kind: Any) -> Any:
    """Return a value of JSON as ``kind``, the type of a spec's field or a spec class itself."""
    if is_spec(kind):
        return _read_spec(name, value, kind)
    if kind == Options:
        return tuple(_read_options(name, value))
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        if not isinstance(value, list) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise ValueError(f"{name} is {_shorten(value)}, not a list of its length")
        return tuple(_value(f"{name}[{index}]", item, arguments[0]) for index, item in enumerate(value))
    if kind is str:
        return _text(name, value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    raise ValueError(f"{name} is {_shorten(value)}, not a valid {kind.__name__}")


def _read_spec(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shorten(value)}, not an object")
    values = {}
    for key, spec_field in fields_of(kind).items():
        if key in value:
            values[key] = _value(f"{name}.{key}", value[key], spec_field.kind)
            if spec_field.validator is not None and not spec_field.validator.is_valid(values[key]):
                raise ValueError(f"{name}.{key} is {_shorten(value[key])}, not {spec_field.validator.expected}")
        elif spec_field.required:
            raise ValueError(f"{name} lacks {key}")
    spec = kind(**values)
    problem = check_spec(spec)
    if problem is not None:
        raise ValueError(f"{name}.{problem.field}: {problem.message}; expected: {problem.expected}")
    return spec


def _read_options(name: str, value: Any) -> typing.Iterator[Tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shorten(value)}, not an object")
    for key, item in value.items():
        items = item if isinstance(item, list) else [item]
        if not all(type(part) in (str, int, float, bool) for part in items):
            raise ValueError(f"{name}.{key} is {_shorten(item)}, not a plain value or a list of them")
        yield _text(name, key), tuple(item) if isinstance(item, list) else item


def _shorten(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:40] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "variant": _text,
    "architecture": _spec(Architecture),
    "dataset": _text,
    "class_names": _texts,
    "preprocessing": _spec(Preprocessing),
    "bn_eps": _bn_eps,
    "source": _text,
    "source_sha256": _digest,
}

__all__ = ["METADATA_KEY", "CheckpointMetadata", "from_text", "to_text"]
