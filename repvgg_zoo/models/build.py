"""build_network: from an architecture to a network of ours, or to what a plugin's builder returns."""

from __future__ import annotations

import inspect
from types import MappingProxyType
from typing import Any, Callable, Mapping, Optional, Sequence

import megengine.module as M

from ..errors import ArgumentError, RegistryError, ZooError
from ..registry.plugins import find_builder, format_exception
from ..registry.specs import Architecture
from .repvgg import RepVGG
from .repvggplus import RepVGGplus
from .stages import MAX_OUTPUT_STRIDE


def build_network(architecture: Architecture, **options: Any) -> M.Module:
    """Return the network of an architecture; raise RegistryError for an unknown builder, and PluginError."""
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
    output_stride: int = MAX_OUTPUT_STRIDE,
    init_weights: bool = True,
    **options: Any,
) -> M.Module:
    """Return what a plugin builds; raise PluginError for what its code raises and for anything but a network."""
    plugin, build = find_builder(architecture.builder)
    options["init_weights"] = init_weights
    try:
        if features_only or out_indices is not None:
            if not _takes(build, "features_only"):
                raise ArgumentError(
                    f"the builder {architecture.builder} returns no feature maps",
                    hint="leave out features_only and out_indices",
                )
            options.update(features_only=features_only, out_indices=out_indices)
        if output_stride != MAX_OUTPUT_STRIDE:
            if not _takes(build, "output_stride"):
                raise ArgumentError(
                    f"the builder {architecture.builder} takes no output_stride",
                    expected=MAX_OUTPUT_STRIDE,
                    actual=output_stride,
                    hint="leave out output_stride",
                )
            options["output_stride"] = output_stride
        network = build(architecture, **options)
    except ZooError:
        raise
    except (Exception, SystemExit) as error:  # whatever the plugin's code does, except the user's interrupt
        raise plugin.error(
            f"fails to build with {architecture.builder}: {format_exception(error)}",
            None if _takes_options(build, options) else f"it is called as build(architecture, {', '.join(options)})",
        ) from error
    problem = _problem(network, options)
    if problem is not None:
        raise plugin.error(f"built a {type(network).__name__} with {architecture.builder}, {problem}")
    return network


def _problem(network: Any, options: Mapping[str, Any]) -> Optional[str]:
    """Return what is wrong with a plugin's network, which has to say its channels, classes and heads, or None."""
    if not isinstance(network, M.Module):
        return "which is not a MegEngine module"
    missing = [name for name in ("in_chans", "num_classes") if not hasattr(network, name)]
    if missing:
        return f"without {' and '.join(missing)}"
    for name in ("in_chans", "num_classes"):
        if getattr(network, name) != options[name]:
            return f"whose {name} is {getattr(network, name)!r}, not {options[name]}"
    has_head = options["num_classes"] > 0 and not options.get("features_only")
    heads = getattr(network, "heads", ()) if has_head else ()
    modules = dict(network.named_modules())
    if isinstance(heads, str) or not all(isinstance(head, str) and head in modules for head in heads):
        return f"whose heads are {heads!r}, which are not names of its modules"
    return None


def _takes_options(build: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(build).bind(None, **options)
    except TypeError:
        return False
    except ValueError:  # a function of C has no signature
        return True
    return True


def _takes(build: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(build).parameters
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _build_repvgg(architecture: Architecture, **options: Any) -> M.Module:
    return RepVGG(
        architecture.num_blocks,
        architecture.width_multiplier,
        groups=architecture.groups,
        se=architecture.se,
        **options,
    )


def _build_repvggplus(architecture: Architecture, **options: Any) -> M.Module:
    return RepVGGplus(architecture.num_blocks, architecture.width_multiplier, se=architecture.se, **options)


BUILDERS: Mapping[str, Callable[..., M.Module]] = MappingProxyType(
    {"repvgg": _build_repvgg, "repvggplus": _build_repvggplus}
)
