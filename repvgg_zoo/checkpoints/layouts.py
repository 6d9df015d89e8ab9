"""The layouts: how each publisher names and shapes the tensors of a RepVGG, as tables that are read in both directions.

The native layout has the official repository's keys (``stage1.0.rbr_dense.conv.weight``) and MegEngine's shapes:

- a grouped kernel is (groups, out / groups, in / groups, k, k), any other (out, in, k, k);
- the bias of a convolution is (1, C, 1, 1), a BN tensor (C,), the head's weight (classes, features).

Torch and Paddle store the same numbers, in the same order, as (out, in / groups, k, k) and (C,). Going between the two
is a reshape; only Paddle's head, (features, classes), is transposed.

One rule on colour: weights are never flipped. BaseCls and Asthestarsfalll trained on BGR; their stems stay as they are,
and the registry's preprocessing of the checkpoint says BGR.

Names and shapes were read in the publishers' code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional, Pattern, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

STAGES = ("stage1", "stage2", "stage3", "stage4")
PLUS_STAGES = ("stage1", "stage2", "stage3_first", "stage3_second", "stage4")
AUXILIARY = ("stage1_aux", "stage2_aux", "stage3_first_aux")
BN_TENSORS = ("weight", "bias", "running_mean", "running_var")

# Counters, and kernels that are remade whenever they are needed: they say nothing about the network.
IGNORED = frozenset({"num_batches_tracked", "id_tensor", "bn_identity", "total_ops", "total_params"})


@dataclass(frozen=True)
class Layout:
    """One publisher's names. Each table maps a native name to theirs.

    ``places`` has the blocks' prefixes, in which ``#`` stands for the block's index; ``modules`` what is inside of a
    block; ``heads`` what is outside of all blocks; ``tensors`` the last part of a key.
    """

    name: str
    places: Mapping[str, str]
    modules: Mapping[str, str]
    heads: Mapping[str, str]
    tensors: Mapping[str, str] = field(default_factory=lambda: {name: name for name in BN_TENSORS})
    megengine_shapes: bool = False
    head_transposed: bool = False
    linear_se: bool = False


def layout_called(name: Union[str, Layout]) -> Layout:
    """The layout of this name, a plug-in's if it is ``acme/...``; a Layout is given back as it is.

    Raises ArgumentError for a layout that does not exist, and PluginError.
    """
    if isinstance(name, Layout):
        return name
    if "/" in name:
        from ..registry.plugins import find_layout

        found, layout = find_layout(name)
        if not isinstance(layout, Layout):
            raise found.error(f"brings {name} as a {type(layout).__name__}, where a Layout should be")
        return replace(layout, name=name)
    if name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise ArgumentError(f"no layout is called {name!r}", expected=known, actual=name, hint=f"choose from {known}")
    return LAYOUTS[name]


def native_keys(layout: Layout, keys: Iterable[str]) -> Iterator[Optional[str]]:
    """The native name of each of a publisher's keys, or None if the layout has no such key."""
    tables = [_inverted(table) for table in _tables(layout)]
    return (_translate(key, *tables) for key in keys)


def published_key(layout: Layout, key: str) -> Optional[str]:
    """The publisher's name of a native key, or None if the layout has none for it."""
    return _translate(key, *_tables(layout))


def _tables(layout: Layout) -> Tuple[Mapping[str, str], ...]:
    return layout.places, layout.modules, layout.heads, layout.tensors


def _inverted(table: Mapping[str, str]) -> Dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}


def _translate(
    key: str,
    places: Mapping[str, str],
    modules: Mapping[str, str],
    heads: Mapping[str, str],
    tensors: Mapping[str, str],
) -> Optional[str]:
    owner, _, tensor = key.rpartition(".")
    if tensor not in tensors:
        return None
    if owner in heads:
        return f"{heads[owner]}.{tensors[tensor]}"
    for place, new_place in places.items():
        match = _pattern(place).match(owner)
        if match and owner[match.end() :] in modules:
            index = match.group(1) if match.groups() else ""
            return f"{new_place.replace('#', index)}.{modules[owner[match.end() :]]}.{tensors[tensor]}"
    return None


@lru_cache(maxsize=None)
def _pattern(place: str) -> Pattern[str]:
    return re.compile(re.escape(place).replace(r"\#", "([0-9]{1,3})") + r"\.")


# Shapes ------------------------------------------------------------------------------------------------------


def native_array(layout: Layout, key: str, array: NDArray[Any], in_channels: Optional[int]) -> NDArray[Any]:
    """A publisher's array in native shape; ``key`` is native, ``in_channels`` what enters the key's block, if known.

    An array that is in native shape already is returned as it is, whatever the layout. One that cannot be brought into
    shape is too: loading it into a network then says which shape was wanted.
    """
    if layout.head_transposed and key == "linear.weight" and array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if is_bn(key):
        return array.reshape(-1) if array.ndim == 4 and array.size == max(array.shape) else array
    if key.endswith(".bias") and not key.startswith(tuple(HEADS)):
        return array.reshape(1, -1, 1, 1) if array.ndim == 1 else array
    if ".se." in key or ".post_se." in key:
        return array[:, :, None, None] if array.ndim == 2 else array
    if array.ndim == 4 and in_channels is not None:
        groups = group_count(array.shape, in_channels)
        return array if groups == 1 else array.reshape(groups, array.shape[0] // groups, *array.shape[1:])
    return array


def published_array(layout: Layout, key: str, array: NDArray[Any]) -> NDArray[Any]:
    """A native array in the shape that the publisher stores; ``key`` is native."""
    if layout.megengine_shapes:
        return array
    if key == "linear.weight" and layout.head_transposed:
        return np.ascontiguousarray(array.T)
    if key.endswith(".bias") and array.ndim == 4:
        return array.reshape(-1)
    if layout.linear_se and (".se." in key or ".post_se." in key):
        return array.reshape(array.shape[:2])
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]) if array.ndim == 5 else array


def group_count(shape: Tuple[int, ...], in_channels: int) -> int:
    """Groups of a 4-D kernel (out, in / groups, k, k); 1 if the sizes are not multiples of each other."""
    out, per_group = shape[:2]
    if per_group == 0 or in_channels < per_group or in_channels % per_group:
        return 1
    groups = in_channels // per_group
    return groups if out % groups == 0 else 1


def is_bn(key: str) -> bool:
    owner = key.rpartition(".")[0]
    return owner.endswith((".bn", ".rbr_identity"))


def as_vector(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """Return (1, C, 1, 1) as (C,), which is how MegEngine saves BN; any other shape unchanged."""
    return shape[1:2] if len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1 else shape


def same_shape(one: Tuple[int, ...], other: Tuple[int, ...]) -> bool:
    """Return whether the shapes are equal once (1, C, 1, 1) is written as (C,)."""
    return as_vector(one) == as_vector(other)


# Tables ------------------------------------------------------------------------------------------------------


def _places(stem: str, pattern: str, stages: Iterable[str], names: Optional[Iterable[str]] = None) -> Dict[str, str]:
    """The blocks' places of a RepVGG trunk: native ones, each with its name under ``pattern``."""
    return {
        "stage0": stem,
        **{f"{stage}.#": pattern.format(name) for stage, name in zip(stages, names or stages)},
    }


def _modules(
    dense: str, pointwise: str, identity: str, reparam: str, down: str, up: str, bn: str = "bn"
) -> Dict[str, str]:
    return {
        "rbr_dense.conv": f"{dense}.conv",
        "rbr_dense.bn": f"{dense}.{bn}",
        "rbr_1x1.conv": f"{pointwise}.conv",
        "rbr_1x1.bn": f"{pointwise}.{bn}",
        "rbr_identity": identity,
        "rbr_reparam": reparam,
        "se.down": down,
        "se.up": up,
    }


_OFFICIAL_MODULES = _modules("rbr_dense", "rbr_1x1", "rbr_identity", "rbr_reparam", "se.down", "se.up")
_OFFICIAL_PLACES = _places("stage0", "{}.#", STAGES)
_PLUS_PLACES = {"stage0": "stage0", **{f"{stage}.blocks.#": f"{stage}.blocks.#" for stage in PLUS_STAGES}}
_PLUS_MODULES = {**_OFFICIAL_MODULES, "post_se.down": "post_se.down", "post_se.up": "post_se.up"}
_PLUS_HEADS = {
    "linear": "linear",
    **{f"{head}.{part}": f"{head}.{part}" for head in AUXILIARY for part in ("0.conv", "0.bn", "3")},
}
HEADS = ("linear.", *(f"{head}.3." for head in AUXILIARY))

NATIVE = Layout(
    name="native",
    places={**_OFFICIAL_PLACES, **_PLUS_PLACES},
    modules=_PLUS_MODULES,
    heads=_PLUS_HEADS,
    megengine_shapes=True,
)

# In the order in which a file is tried; a layout that others contain comes before them.
_ALL = (
    Layout(name="official_plus", places=_PLUS_PLACES, modules=_PLUS_MODULES, heads=_PLUS_HEADS),
    Layout(name="official", places=NATIVE.places, modules=_PLUS_MODULES, heads=_PLUS_HEADS),
    NATIVE,
    Layout(
        name="timm",
        places=_places("stem", "stages.{}.#", STAGES, "0123"),
        modules=_modules("conv_kxk", "conv_1x1", "identity", "reparam_conv", "attn.fc1", "attn.fc2"),
        heads={"linear": "head.fc"},
    ),
    Layout(
        name="openmmlab",
        places=_places("backbone.stem", "backbone.stage_{}.#", STAGES, "1234"),
        modules=_modules(
            "branch_3x3",
            "branch_1x1",
            "branch_norm",
            "branch_reparam",
            "se_layer.conv1.conv",
            "se_layer.conv2.conv",
            "norm",
        ),
        heads={"linear": "head.fc"},
    ),
    Layout(
        name="basecls",
        places=_OFFICIAL_PLACES,
        modules={**_OFFICIAL_MODULES, "se.down": "se.f_ex.0", "se.up": "se.f_ex.2"},
        heads={"linear": "head.fc"},
        megengine_shapes=True,
    ),
    Layout(
        name="paddleclas",
        places=_OFFICIAL_PLACES,
        modules=_OFFICIAL_MODULES,
        heads={"linear": "linear"},
        tensors={"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"},
        head_transposed=True,
    ),
    Layout(
        name="asthestarsfalll",
        places=_OFFICIAL_PLACES,
        modules=_modules("dense", "pointwise", "identity", "reparam", "se.down", "se.up"),
        heads={"linear": "linear"},
        megengine_shapes=True,
    ),
    # The SE block is the fused convolution's neighbour here, so "0" and "1" are part of what is inside a block.
    Layout(
        name="zcls",
        places=_places("backbone.stage0", "backbone.{}.#", STAGES),
        modules=_modules("0.rbr_dense", "0.rbr_1x1", "0.rbr_identity", "0", "1.excitation.0", "1.excitation.2"),
        heads={"linear": "head.fc"},
        linear_se=True,
    ),
)
LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _ALL})
