"""create: from a name to a network with weights, the only module that uses registry, hub, checkpoints and models."""

from __future__ import annotations

import difflib
import inspect
import itertools
import os
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Callable, List, Mapping, Optional, Sequence, Union, cast

import megengine.module as M

from ._arguments import check_flag, check_float, check_int, check_items
from ._cpu import lower_sync_thread_priority
from ._log import get_logger
from ._tensors import TensorCopies, copy_in_background, load_state_dict
from .adapt import adapt
from .checkpoints import Checkpoint, CheckpointMetadata, load_checkpoint
from .checkpoints.layouts import CLASSIFIERS, get_layout
from .checkpoints.load import checkpoint_from_arrays
from .checkpoints.network_metadata import architecture_of, attach_metadata, check_bn_eps, set_bn_eps, with_bn_eps
from .checkpoints.publisher import complete_metadata, default_preprocessing, find_variant
from .checkpoints.state_dict import class_count, input_channels
from .errors import ArgumentError, PathLike, StateError
from .hub import fetch_verified, read_settings
from .models import Network
from .models.build import build_network
from .models.layers import reset_parameters
from .models.stages import MAX_OUTPUT_STRIDE, stage_geometries
from .registry.api import find_model
from .registry.architecture import refuse_too_large, stage_channels
from .registry.names import find_checkpoint
from .registry.plugins import plugin_layouts
from .registry.specs import SE_POSITIONS, Architecture, CheckpointSpec, ModelSpec, SESpec
from .reparam.fusion import to_form
from .weights import load_weights

FREE_WEIGHTS = 1 << 24  # that a head or a stem may have more than the file, as one built for another variant has
NEW_HEAD_HINT = (
    "the weights have no head: pass num_classes= for a new one, num_classes=0 for pooled features, or "
    "features_only=True"
)
OVERRIDE_FIELDS = ("num_blocks", "width_multiplier", "groups", "se")

logger = get_logger(__name__)


def create(
    name: str,
    *,
    pretrained: Union[bool, str] = False,
    checkpoint: Union[PathLike, Checkpoint, Mapping[str, Any], None] = None,
    deploy: bool = False,
    num_classes: Optional[int] = None,
    in_chans: Optional[int] = None,
    features_only: bool = False,
    out_indices: Optional[Sequence[int]] = None,
    output_stride: int = MAX_OUTPUT_STRIDE,
    bn_eps: Optional[float] = None,
    progress: Optional[bool] = None,
    **overrides: Any,
) -> Network:
    """Build the network called ``name``, with random, published or your own weights.

    ``pretrained=True`` fetches the variant's default checkpoint, a string the one with that tag (as does a name such as
    ``"RepVGG_A0.timm"`` with ``pretrained=True``), ``checkpoint`` reads a file on disk in any known format and
    layout, or takes a Checkpoint or a dict of arrays. Weights of a train form are re-parameterized when
    ``deploy=True``. With a ``num_classes`` or ``in_chans`` other than the checkpoint's, the trunk is loaded, the stem
    adapted, and the head newly initialized; what was not loaded is logged. ``num_classes=0`` builds no head and returns
    the pooled features (N, channels). ``features_only`` builds no head and returns a dict of feature maps, those of
    ``out_indices`` if passed. ``output_stride`` of 16 or 8 instead of 32 gives larger maps for dense prediction, with
    the same weights: strides of the last stages become dilation. ``bn_eps`` is the eps of all BN layers, for weights
    from elsewhere that were trained with another one than 1e-5: no file but ours says so. Further keyword arguments
    replace fields of the variant's architecture: ``num_blocks``, ``width_multiplier``, ``groups`` and ``se`` (an SESpec
    or None).

    A network with loaded weights is in eval mode, one with random weights in training mode. Its attributes ``spec`` and
    ``checkpoint`` are the ModelSpec, and the CheckpointSpec that its weights are from, or None; ``metadata`` (a
    CheckpointMetadata) says which preprocessing and classes belong to its weights. What ``save_checkpoint`` wrote into
    a file about the network in it, such as another ``width_multiplier``, is taken from there.

    A variant of a plugin may be built by the plugin, whose options are then further keyword arguments.

    Raises UnknownModelError, NoWeightsError, ArgumentError, FormError for a train form from deploy weights, StateError
    when weights do not fit, PluginError when a plugin fails, and what fetching and reading raise.
    """
    num_classes = None if num_classes is None else check_int("num_classes", num_classes, minimum=0)
    in_chans = None if in_chans is None else check_int("in_chans", in_chans, minimum=1)
    progress = None if progress is None else check_flag("progress", progress)
    deploy, features_only = check_flag("deploy", deploy), check_flag("features_only", features_only)
    if out_indices is not None:
        out_indices = tuple(check_int("out_indices", i, minimum=0) for i in check_items("out_indices", out_indices))
    stage_geometries(output_stride)  # which checks it
    bn_eps = None if bn_eps is None else check_bn_eps(bn_eps)
    spec, tag = find_model(name)
    selected = _select_checkpoint(spec, tag, pretrained, checkpoint)
    architecture = _apply_overrides(spec, overrides)
    options = {
        "features_only": features_only,
        "out_indices": out_indices,
        "output_stride": output_stride,
        "deploy": deploy,
    }
    weights = _load(spec, selected, checkpoint, deploy, bn_eps, progress)
    if weights is None:
        network = build_network(
            architecture,
            num_classes=architecture.num_classes if num_classes is None else num_classes,
            in_chans=in_chans or architecture.in_chans,
            **options,
        )
        preprocessing, source = default_preprocessing(spec)
        metadata = CheckpointMetadata(spec.name, preprocessing=preprocessing, preprocessing_source=source)
    else:
        architecture = architecture if overrides else architecture_of(weights, spec)
        metadata = weights.metadata if selected is not None else complete_metadata(weights, spec)
        stem_width, *_, features = stage_channels(architecture.width_multiplier)
        classes = architecture.num_classes if selected is None else selected.num_classes
        in_file = class_count(weights.state_dict), input_channels(weights.state_dict)
        _check_size(weights, "the head", 0 if num_classes is not None else (in_file[0] or 0) * features)
        _check_size(weights, "the stem", 0 if in_chans or not in_file[1] else 9 * in_file[1] * stem_width)
        # Weights are copied while the network is built; with out_indices, it may have only a part of them.
        with copy_in_background(weights.state_dict.values() if out_indices is None else ()) as copies:
            network = build_network(
                architecture,
                num_classes=(in_file[0] or classes) if num_classes is None else num_classes,
                in_chans=in_chans or in_file[1] or architecture.in_chans,
                init_weights=False,
                **options,
            )
            try:
                load_pretrained(network, weights, new_head=num_classes is not None, copies=copies)
            except StateError as error:
                variant = find_variant(weights)
                if variant is not None and variant.name != spec.name:
                    error.hint = f"these are weights of {variant.name}; {error.hint}"
                raise
        network.eval()
    set_bn_eps(network, bn_eps, metadata.bn_eps)
    attach_metadata(network, metadata, weights, None if architecture == spec.architecture else architecture)
    network.spec = spec
    network.checkpoint = selected
    lower_sync_thread_priority()
    return cast(Network, network)


def _select_checkpoint(
    spec: ModelSpec, tag: Optional[str], pretrained: Union[bool, str], file: Any
) -> Optional[CheckpointSpec]:
    """Return the registry's checkpoint that the arguments select, or None."""
    if not isinstance(pretrained, (bool, str)):
        raise ArgumentError(
            f"pretrained={pretrained!r} is not valid",
            expected="True, False or a tag",
            actual=pretrained,
            hint="a file, a Checkpoint or arrays of yours are passed as checkpoint=",
        )
    if file is not None and pretrained:
        raise ArgumentError(
            "pretrained and checkpoint are two sources of weights", hint="keep one of them", actual=str(file)[:80]
        )
    if not pretrained:
        return None
    return find_checkpoint(spec, pretrained if isinstance(pretrained, str) else tag)


def _load(
    spec: ModelSpec,
    selected: Optional[CheckpointSpec],
    own: Union[PathLike, Checkpoint, Mapping[str, Any], None],
    deploy: bool,
    bn_eps: Optional[float],
    progress: Optional[bool],
) -> Optional[Checkpoint]:
    """Return the user's own weights, or a fetched checkpoint's, in the form that is needed; None without either."""
    if selected is not None:
        fetched = fetch_verified(selected.file, progress=progress)
        described = selected if bn_eps is None else selected._replace(bn_eps=bn_eps)
        weights = load_weights(fetched, described, deploy=deploy, cache_dir=read_settings().cache_dir, lazy=True)
    elif own is None:
        return None
    elif isinstance(own, Checkpoint):
        weights = own
    elif isinstance(own, Mapping):
        layouts = [get_layout(name) for name in plugin_layouts(spec.name)]
        weights = checkpoint_from_arrays(own, layouts)
    elif isinstance(own, (str, os.PathLike)):
        weights = load_checkpoint(own, extra_layouts=plugin_layouts(spec.name))
    else:
        raise ArgumentError(
            f"checkpoint={type(own).__name__} is not valid",
            expected="a path, a Checkpoint, or a dict of arrays",
            actual=own,
            hint="pass a path, a Checkpoint, or a dict of arrays",
        )
    if bn_eps is not None and selected is None:
        weights = with_bn_eps(weights, bn_eps)
    return to_form(weights, "deploy" if deploy else "train")


def _check_size(weights: Checkpoint, part: str, size: int) -> None:
    """Raise StateError if a part that a file's shapes ask for is much larger than the file: it cannot be loaded."""
    in_file = sum(array.size for array in weights.state_dict.values())
    if size > in_file + FREE_WEIGHTS:
        raise StateError(
            f"the weights do not fit the network, which was not built: {part} would have {size} weights, and there are"
            f" {in_file} in {weights.path}",
            expected=size,
            actual=in_file,
            hint="build the variant, form and number of classes that the file was saved from",
        )


def load_pretrained(
    network: M.Module, checkpoint: Checkpoint, *, new_head: bool = False, copies: Optional[TensorCopies] = None
) -> None:
    """Load a checkpoint into a network of its form: the stem adapted, a head of another size reset, the rest strictly.

    Parts that the network does not have at all (its head with ``features_only``, stages beyond ``out_indices``) are
    skipped. The classifiers are the linear layers that the network lists in ``heads``, by default those of RepVGG and
    RepVGGplus. With ``new_head``, those that the checkpoint does not have are newly initialized. ``copies`` is as in
    ``load_state_dict``. Raises StateError, with the network untouched, when anything else does not fit.
    """

    def has_part(key: str) -> bool:
        return getattr(network, key.split(".")[0], None) is not None

    state_dict = {key: array for key, array in checkpoint.state_dict.items() if has_part(key)}
    classifiers = getattr(network, "heads", CLASSIFIERS)
    adapted, reset = adapt(
        replace(checkpoint, state_dict=state_dict),
        in_chans=network.in_chans,
        num_classes=network.num_classes,
        classifiers=classifiers,
    )
    absent = [name for name in _absent_heads(state_dict, classifiers) if has_part(name)]
    modules = dict(network.named_modules()) if absent or reset else {}
    absent = [name for name in absent if name in modules]
    reset += absent if new_head else []
    allowed = [f"{name}.{tensor}" for name in reset for tensor, _ in modules[name].named_tensors()]
    try:
        load_state_dict(network, adapted.state_dict, allow_missing=allowed, copies=copies)
    except StateError as error:
        if error.missing and all(key.startswith(tuple(f"{name}." for name in absent)) for key in error.missing):
            error.hint = NEW_HEAD_HINT
        raise
    for module in itertools.chain.from_iterable(modules[name].modules() for name in reset):
        if type(module) in (M.Linear, M.Conv2d):  # as ours are
            reset_parameters(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    if absent and new_head:
        logger.warning("newly initialized, as the weights have none: %s", ", ".join(absent))


def _absent_heads(state_dict: Mapping[str, Any], classifiers: Sequence[str]) -> List[str]:
    """Return the modules of which a state dict has nothing: classifiers, or all that belongs to an auxiliary one."""
    owners = {key.split(".")[0] for key in state_dict} | {key.rpartition(".")[0] for key in state_dict}
    tops = [name if name.split(".")[0] in owners else name.split(".")[0] for name in classifiers]
    return [name for name in dict.fromkeys(tops) if name not in owners]


def _apply_overrides(spec: ModelSpec, overrides: Mapping[str, Any]) -> Architecture:
    options = dict(spec.architecture.options)
    known = [*OVERRIDE_FIELDS, *options]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*known, *inspect.signature(create).parameters], 1)
        raise ArgumentError(
            f"create() has no argument {', '.join(unknown)}",
            expected=known,
            actual=unknown,
            hint=f"did you mean {close[0]}?" if close else f"fields that can be replaced: {', '.join(known)}",
        )
    overrides = {name: CHECKS[name](value) if name in CHECKS else value for name, value in overrides.items()}
    fields = {name: value for name, value in overrides.items() if name not in options}
    options.update((name, value) for name, value in overrides.items() if name in options)
    architecture = spec.architecture._replace(options=tuple(options.items()), **fields)
    if fields:
        refuse_too_large(architecture)
    return architecture


def _check_se(se: Any) -> Optional[SESpec]:
    if se is None:
        return None
    if not isinstance(se, SESpec) or se.position not in SE_POSITIONS:
        expected = f"None or an SESpec with position {' or '.join(SE_POSITIONS)}"
        raise ArgumentError(f"se={se!r} is not valid", expected=expected, actual=se, hint=f"pass {expected}")
    return se._replace(reduction=check_int("se.reduction", se.reduction, minimum=1))


CHECKS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "num_blocks": lambda value: tuple(
            check_int("num_blocks", depth, minimum=1) for depth in check_items("num_blocks", value, length=4)
        ),
        "width_multiplier": lambda value: tuple(
            check_float("width_multiplier", factor, above=0)
            for factor in check_items("width_multiplier", value, length=4)
        ),
        "groups": lambda value: check_int("groups", value, minimum=1),
        "se": _check_se,
    }
)
