"""create: from a name to a working network, the only place that sees registry, hub, checkpoints and builders."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Mapping, Optional, Sequence, Union

from megengine.module import Module

from ._cpu import lower_sync_thread_priority
from .adapt import in_form, load_adapted, stem_channels
from .checkpoints import load_checkpoint
from .errors import ArgumentError, RegistryError, ZooError
from .hub import fetch_file, read_settings
from .models import RepVGG, RepVGGplus
from .registry.api import find_model
from .registry.names import find_checkpoint
from .registry.plugins import find_builder, plugin_layouts
from .registry.specs import Architecture, CheckpointSpec, ModelSpec
from .weights import load_weights

PathLike = Union[str, Path]
OVERRIDABLE = ("num_blocks", "width_multiplier", "groups", "se")


def create(
    name: str,
    *,
    pretrained: Union[bool, str] = False,
    checkpoint: Optional[PathLike] = None,
    deploy: bool = False,
    num_classes: Optional[int] = None,
    in_chans: Optional[int] = None,
    features_only: bool = False,
    out_indices: Optional[Sequence[int]] = None,
    progress: Optional[bool] = None,
    **overrides: Any,
) -> Module:
    """Builds the network called ``name``, with random, published or your own weights.

    ``pretrained=True`` fetches the variant's default checkpoint, a string one with that tag (as does a name such as
    ``"RepVGG_A0.timm"`` with ``pretrained=True``), ``checkpoint`` reads a file on disk in any known format and
    layout. Weights of a train form are re-parameterised when ``deploy=True``. A ``num_classes`` or ``in_chans`` other
    than the checkpoint's keeps the trunk, fits the stem, and starts a new head; what was not loaded is logged.
    ``features_only`` builds no head and gives a dict of feature maps, those of ``out_indices`` if given. Further
    keyword arguments replace fields of the variant's architecture, such as ``groups`` or ``width_multiplier``.

    A network with loaded weights is in eval mode, one with random weights in training mode. It carries ``spec`` (the
    ModelSpec) and ``checkpoint`` (the CheckpointSpec it was loaded from, or None).

    A variant of a plug-in may be built by the plug-in, whose options are then further keyword arguments.

    Raises UnknownModelError, NoWeightsError, ArgumentError, FormError for a train form from deploy weights, StateError
    when weights do not fit, PluginError when a plug-in fails, and what fetching and reading raise.
    """
    spec, tag = find_model(name)
    chosen = _chosen(spec, tag, pretrained, checkpoint)
    architecture = _overridden(spec, overrides)
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint, also=plugin_layouts(spec.name))
    elif chosen is not None:
        path = fetch_file(chosen.file, progress=progress)
        loaded = load_weights(path, chosen, deploy=deploy, cache_dir=read_settings().cache_dir)
    else:
        loaded = None

    if loaded is None:
        network = _build(
            architecture,
            num_classes=num_classes or architecture.num_classes,
            in_chans=in_chans or architecture.in_chans,
            features_only=features_only,
            out_indices=out_indices,
            deploy=deploy,
        )
    else:
        arrays = in_form(loaded, deploy)
        head = arrays.get("linear.weight")
        classes = architecture.num_classes if chosen is None else chosen.num_classes
        network = _build(
            architecture,
            num_classes=num_classes or (classes if head is None or head.ndim != 2 else head.shape[0]),
            in_chans=in_chans or stem_channels(arrays) or architecture.in_chans,
            features_only=features_only,
            out_indices=out_indices,
            deploy=deploy,
            init_weights=False,
        )
        load_adapted(network, arrays)
        network.eval()
    network.spec = spec
    network.checkpoint = chosen
    lower_sync_thread_priority()
    return network


def _chosen(
    spec: ModelSpec, tag: Optional[str], pretrained: Union[bool, str], file: Optional[PathLike]
) -> Optional[CheckpointSpec]:
    """The registry's checkpoint that the arguments ask for, or None."""
    if file is not None and pretrained:
        raise ArgumentError(
            "pretrained and checkpoint are two sources of weights", hint="keep one of them", actual=str(file)
        )
    if not pretrained:
        return None
    if isinstance(pretrained, str):
        return find_checkpoint(spec, pretrained)
    return find_checkpoint(spec, tag)


def _overridden(spec: ModelSpec, overrides: Mapping[str, Any]) -> Architecture:
    options = dict(spec.architecture.options)
    known = [*OVERRIDABLE, *options]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ArgumentError(
            f"create() has no argument {', '.join(unknown)}",
            expected=known,
            actual=unknown,
            hint=f"fields of the architecture that can be replaced: {', '.join(known)}",
        )
    fields = {name: value for name, value in overrides.items() if name not in options}
    options.update((name, value) for name, value in overrides.items() if name in options)
    return spec.architecture._replace(options=tuple(options.items()), **fields)


def _build(architecture: Architecture, **options: Any) -> Module:
    if "/" in architecture.builder:
        return _build_with_plugin(architecture, **options)
    build = BUILDERS.get(architecture.builder)
    if build is None:
        raise RegistryError(
            f"unknown builder {architecture.builder!r}", expected=sorted(BUILDERS), actual=architecture.builder
        )
    return build(architecture, **options)


def _build_with_plugin(
    architecture: Architecture,
    *,
    features_only: bool,
    out_indices: Optional[Sequence[int]],
    init_weights: bool = True,
    **options: Any,
) -> Module:
    """What a plug-in builds; whatever its code raises, and whatever else it gives, is a PluginError."""
    found, build = find_builder(architecture.builder)
    options["init_weights"] = init_weights
    try:
        if features_only or out_indices is not None:
            parameters = inspect.signature(build).parameters
            if "features_only" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                raise ArgumentError(
                    f"the builder {architecture.builder} gives no feature maps",
                    hint="leave out features_only and out_indices",
                )
            options.update(features_only=features_only, out_indices=out_indices)
        network = build(architecture, **options)
    except ZooError:
        raise
    except Exception as error:
        raise found.error(f"fails to build with {architecture.builder}: {type(error).__name__}: {error}") from error
    lacking = [name for name in ("in_chans", "num_classes") if not hasattr(network, name)]
    if not isinstance(network, Module) or lacking:
        wrong = f"without {' and '.join(lacking)}" if isinstance(network, Module) else "which is no MegEngine module"
        raise found.error(f"built a {type(network).__name__} with {architecture.builder}, {wrong}")
    return network


def _build_repvgg(architecture: Architecture, **options: Any) -> Module:
    return RepVGG(
        architecture.num_blocks,
        architecture.width_multiplier,
        groups=architecture.groups,
        se=architecture.se,
        **options,
    )


def _build_repvggplus(architecture: Architecture, **options: Any) -> Module:
    return RepVGGplus(architecture.num_blocks, architecture.width_multiplier, se=architecture.se, **options)


BUILDERS: Mapping[str, Callable[..., Module]] = MappingProxyType(
    {"repvgg": _build_repvgg, "repvggplus": _build_repvggplus}
)
