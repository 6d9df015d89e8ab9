"""The layouts: how each publisher names and shapes the tensors of a RepVGG, as tables that are read in both directions.

The canonical layout has the official repository's keys (``stage1.0.rbr_dense.conv.weight``) and MegEngine's shapes:

- a grouped kernel is (groups, out / groups, in / groups, k, k), any other (out, in, k, k);
- the bias of a convolution is (1, C, 1, 1), a BN tensor (C,), the head's weight (classes, features).

Torch and Paddle store the same numbers, in the same order, as (out, in / groups, k, k) and (C,). Converting one to the
other is a reshape; only Paddle's head, (features, classes), is transposed.

Color order: weights are never flipped. BaseCls and Asthestarsfalll trained on BGR; their stems stay as they are, and
the registry's preprocessing of the checkpoint says BGR.

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

from .._arguments import check_text
from ..errors import ArgumentError

STAGES = ("stage1", "stage2", "stage3", "stage4")
PLUS_STAGES = ("stage1", "stage2", "stage3_first", "stage3_second", "stage4")
AUXILIARY_HEADS = ("stage1_aux", "stage2_aux", "stage3_first_aux")  # of RepVGGplus, for training only
# The linear layers whose size is the number of classes.
CLASSIFIERS = ("linear", *(f"{head}.3" for head in AUXILIARY_HEADS))
BN_TENSORS = ("weight", "bias", "running_mean", "running_var")

# Counters, and kernels that are computed whenever they are needed: they say nothing about the network.
IGNORED = frozenset({"num_batches_tracked", "id_tensor", "bn_identity", "total_ops", "total_params"})

KERNELS = ("rbr_dense.conv.weight", "rbr_1x1.conv.weight", "rbr_reparam.weight")

# The prefix of a block in a canonical key, and the dot after it. No network has a thousand blocks in a stage; an index
# of a million digits would take minutes to convert.
BLOCK = re.compile(r"(stage0|stage[1-4]\.[0-9]{1,3}|stage(?:1|2|3_first|3_second|4)\.blocks\.[0-9]{1,3})\.")


@dataclass(frozen=True)
class Layout:
    """One publisher's key names and shapes. Each table maps canonical names to the publisher's.

    ``block_prefixes`` are the prefixes of blocks, in which ``#`` is the block's index; ``module_names`` the
    modules inside of a block; ``head_names`` those outside of all blocks; ``tensor_names`` the last part of a key.
    """

    name: str
    block_prefixes: Mapping[str, str]
    module_names: Mapping[str, str]
    head_names: Mapping[str, str]
    tensor_names: Mapping[str, str] = field(default_factory=lambda: {name: name for name in BN_TENSORS})
    megengine_shapes: bool = False
    head_transposed: bool = False
    linear_se: bool = False

    def __post_init__(self) -> None:
        check_text("name", self.name, "the name of a layout")
        for table_name in ("block_prefixes", "module_names", "head_names", "tensor_names"):
            table = getattr(self, table_name)
            names = [*table, *table.values()] if isinstance(table, Mapping) else [None]
            if not all(isinstance(name, str) for name in names):
                raise ArgumentError(
                    f"{table_name} of layout {self.name} is not a table of names",
                    expected="a dict from canonical names to the publisher's",
                    actual=table,
                    hint="pass a dict from canonical names to the publisher's",
                )


def get_layout(name: Union[str, Layout]) -> Layout:
    """Return the layout with this name, a plugin's if it is ``acme/...``; a Layout is returned as it is.

    Raises ArgumentError for a layout that does not exist, and PluginError.
    """
    if isinstance(name, Layout):
        return name
    check_text("layout", name, "the name of a layout, or a Layout")
    if "/" in name:
        from ..registry.plugins import find_layout

        plugin, layout = find_layout(name)
        if not isinstance(layout, Layout):
            raise plugin.error(f"has a {type(layout).__name__} as {name}, not a Layout")
        return replace(layout, name=name)
    if name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise ArgumentError(f"{name!r} is not a known layout", expected=known, actual=name, hint=f"choose from {known}")
    return LAYOUTS[name]


def to_canonical_keys(layout: Layout, keys: Iterable[str]) -> Iterator[Optional[str]]:
    """Return the canonical name of each of a publisher's keys, or None if the layout has no such key."""
    tables = [{publisher: canonical for canonical, publisher in table.items()} for table in _tables(layout)]
    return (_translate(key, *tables) for key in keys)


def to_publisher_key(layout: Layout, key: str) -> Optional[str]:
    """Return the publisher's name of a canonical key, or None if the layout has none for it."""
    return _translate(key, *_tables(layout))


def block_sort_key(block: str) -> Tuple[str, int]:
    """Return a block's stage and its index in it, which sort blocks as data flows through them."""
    stage, *rest = block.split(".")
    return stage, int(rest[-1]) if rest else 0


def has_identity(block: str) -> bool:
    """Return whether the block has an identity branch: all but the first of a stage, which halves the size, have one.

    RepVGGplus's stage 3 is cut into two, of which only the first begins so (official code).
    """
    stage, index = block_sort_key(block)
    return index > 0 or stage == "stage3_second"


def is_bn(key: str) -> bool:
    """Return whether a canonical key is that of a batch normalization's tensor."""
    return key.rpartition(".")[0].endswith((".bn", ".rbr_identity"))


def _tables(layout: Layout) -> Tuple[Mapping[str, str], ...]:
    return layout.block_prefixes, layout.module_names, layout.head_names, layout.tensor_names


def _translate(
    key: str,
    block_prefixes: Mapping[str, str],
    module_names: Mapping[str, str],
    head_names: Mapping[str, str],
    tensor_names: Mapping[str, str],
) -> Optional[str]:
    owner, _, tensor = key.rpartition(".")
    if tensor not in tensor_names:
        return None
    if owner in head_names:
        return f"{head_names[owner]}.{tensor_names[tensor]}"
    for prefix, new_prefix in block_prefixes.items():
        match = _pattern(prefix).match(owner)
        if match and owner[match.end() :] in module_names:
            index = match.group(1) if match.groups() else ""
            module = module_names[owner[match.end() :]]
            return f"{new_prefix.replace('#', index)}.{module}.{tensor_names[tensor]}"
    return None


@lru_cache(maxsize=None)
def _pattern(prefix: str) -> Pattern[str]:
    return re.compile(re.escape(prefix).replace(r"\#", "([0-9]{1,3})") + r"\.")


# Shapes ------------------------------------------------------------------------------------------------------


def to_canonical_array(layout: Layout, key: str, array: NDArray[Any], in_channels: Optional[int]) -> NDArray[Any]:
    """Return a publisher's array in canonical shape.

    ``key`` is canonical; ``in_channels`` is the number of input channels of the key's block, if known. An array that is
    in canonical shape already is returned unchanged in any layout. One that cannot be brought into shape is too:
    loading it into a network then reports the expected shape.
    """
    if layout.head_transposed and key == "linear.weight" and array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if is_bn(key):
        return array.reshape(-1) if array.ndim == 4 and array.size == max(array.shape) else array
    if key.endswith(".bias") and key.rpartition(".")[0] not in CLASSIFIERS:
        return array.reshape(1, -1, 1, 1) if array.ndim == 1 else array
    if ".se." in key or ".post_se." in key:
        return array[:, :, None, None] if array.ndim == 2 else array
    if array.ndim == 4 and in_channels is not None:
        groups = group_count(array.shape, in_channels)
        return array if groups == 1 else array.reshape(groups, array.shape[0] // groups, *array.shape[1:])
    return array


def to_publisher_array(layout: Layout, key: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return a canonical array in the shape that the publisher stores; ``key`` is canonical."""
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
    """Return the groups of a 4-D kernel (out, in / groups, k, k); 1 if the sizes are not multiples of each other."""
    out, per_group = shape[:2]
    if per_group == 0 or in_channels < per_group or in_channels % per_group:
        return 1
    groups = in_channels // per_group
    return groups if out % groups == 0 else 1


def as_vector(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """Return (1, C, 1, 1) as (C,), which is how MegEngine saves BN; any other shape unchanged."""
    return shape[1:2] if len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1 else shape


def same_shape(one: Tuple[int, ...], other: Tuple[int, ...]) -> bool:
    """Return whether the shapes are equal once (1, C, 1, 1) is written as (C,)."""
    return as_vector(one) == as_vector(other)


# Tables ------------------------------------------------------------------------------------------------------


def _prefixes(stem: str, pattern: str, stages: Iterable[str], names: Optional[Iterable[str]] = None) -> Dict[str, str]:
    """Return the block prefixes of a RepVGG trunk: the canonical ones, each with its name under ``pattern``."""
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
_OFFICIAL_PREFIXES = _prefixes("stage0", "{}.#", STAGES)
_PLUS_PREFIXES = {"stage0": "stage0", **{f"{stage}.blocks.#": f"{stage}.blocks.#" for stage in PLUS_STAGES}}
_PLUS_MODULES = {**_OFFICIAL_MODULES, "post_se.down": "post_se.down", "post_se.up": "post_se.up"}
_PLUS_HEADS = {
    "linear": "linear",
    **{f"{head}.{part}": f"{head}.{part}" for head in AUXILIARY_HEADS for part in ("0.conv", "0.bn", "3")},
}
CANONICAL = Layout(
    name="canonical",
    block_prefixes={**_OFFICIAL_PREFIXES, **_PLUS_PREFIXES},
    module_names=_PLUS_MODULES,
    head_names=_PLUS_HEADS,
    megengine_shapes=True,
)

# In the order in which a file is tried; a layout that others contain comes before them.
_ALL = (
    Layout(name="official_plus", block_prefixes=_PLUS_PREFIXES, module_names=_PLUS_MODULES, head_names=_PLUS_HEADS),
    Layout(
        name="official", block_prefixes=CANONICAL.block_prefixes, module_names=_PLUS_MODULES, head_names=_PLUS_HEADS
    ),
    CANONICAL,
    Layout(
        name="timm",
        block_prefixes=_prefixes("stem", "stages.{}.#", STAGES, "0123"),
        module_names=_modules("conv_kxk", "conv_1x1", "identity", "reparam_conv", "attn.fc1", "attn.fc2"),
        head_names={"linear": "head.fc"},
    ),
    Layout(
        name="openmmlab",
        block_prefixes=_prefixes("backbone.stem", "backbone.stage_{}.#", STAGES, "1234"),
        module_names=_modules(
            "branch_3x3",
            "branch_1x1",
            "branch_norm",
            "branch_reparam",
            "se_layer.conv1.conv",
            "se_layer.conv2.conv",
            "norm",
        ),
        head_names={"linear": "head.fc"},
    ),
    Layout(
        name="basecls",
        block_prefixes=_OFFICIAL_PREFIXES,
        module_names={**_OFFICIAL_MODULES, "se.down": "se.f_ex.0", "se.up": "se.f_ex.2"},
        head_names={"linear": "head.fc"},
        megengine_shapes=True,
    ),
    Layout(
        name="paddleclas",
        block_prefixes=_OFFICIAL_PREFIXES,
        module_names=_OFFICIAL_MODULES,
        head_names={"linear": "linear"},
        tensor_names={"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"},
        head_transposed=True,
    ),
    Layout(
        name="asthestarsfalll",
        block_prefixes=_OFFICIAL_PREFIXES,
        module_names=_modules("dense", "pointwise", "identity", "reparam", "se.down", "se.up"),
        head_names={"linear": "linear"},
        megengine_shapes=True,
    ),
    # The SE block is the fused convolution's neighbor here, so "0" and "1" are part of what is inside a block.
    Layout(
        name="zcls",
        block_prefixes=_prefixes("backbone.stage0", "backbone.{}.#", STAGES),
        module_names=_modules("0.rbr_dense", "0.rbr_1x1", "0.rbr_identity", "0", "1.excitation.0", "1.excitation.2"),
        head_names={"linear": "head.fc"},
        linear_se=True,
    ),
)
BACKBONE = "backbone."  # before the blocks of layouts of networks that are put together from a backbone and a head
# What the blocks of a layout are called where a larger network has them: they are read under these names too.
EMBEDDED_PREFIXES: Mapping[str, Tuple[Mapping[str, str], ...]] = {
    "official": (_prefixes("layer0", "layer{}.#", STAGES, "1234"),),  # the official PSPNet, 6DRepNet
    "timm": (_prefixes("stem", "stages_{}.#", STAGES, "0123"),),  # features_only=True
}
LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _ALL})
