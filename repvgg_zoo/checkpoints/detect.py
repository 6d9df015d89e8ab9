"""detect_layout: which keys of a state dict are those of a RepVGG, below which prefix, and in which layout.

Trainers put prefixes before all or some of the keys, wrappers put names into their middle, and larger networks have a
RepVGG as their backbone, beside keys of their own. So where the keys are not exactly those of a layout, the blocks are
looked for at any depth, and then the head beside them.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from numpy.typing import NDArray

from ..errors import LayoutError
from .layouts import (
    BACKBONE,
    BLOCK,
    EMBEDDED_PREFIXES,
    IGNORED,
    PLUS_STAGES,
    STAGES,
    Layout,
    block_sort_key,
    to_canonical_keys,
)
from .state_dict import block_channels, format_keys, required_tensors

MAX_TENSORS = 5000  # the largest network has 867; a teacher, a student and their averages have four times as many
MAX_KEY_CHARS = 400  # the longest key of any publisher has 40
MAX_NETWORKS = 16  # in one state dict

# Modules that only wrap another one: of torch's DataParallel and DDP, compile, FSDP and activation checkpointing.
WRAPPER_MODULES = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# What the head is called in networks that are put together from a backbone and a head.
HEADS = ("fc", "head.fc", "linear", "head", "classifier", "last_linear", "cls_head.fc", "head.linear")

Arrays = Mapping[str, NDArray[Any]]
Group = Tuple[Dict[str, str], List[str]]  # the canonical names of the keys in a network's stages; keys without a name


class Network(NamedTuple):
    """A RepVGG in a state dict: the canonical name of each of its keys, and the keys that are not of a RepVGG.

    ``intruders`` are in its stages, so that it is another network. ``strangers``, with a reason for each, are all keys
    of the state dict that are left aside.
    """

    layout: Layout
    prefix: str
    names: Mapping[str, str]
    intruders: Sequence[str] = ()
    strangers: Sequence[Tuple[str, str]] = ()


def detect_layout(arrays: Arrays, layouts: Sequence[Layout], prefix: Optional[str] = None) -> Network:
    """Return the RepVGG in a state dict: in the first layout that has every key, else the one that is found among them.

    If there are other keys, the network must be complete and the only one that is not averaged (``ema``), unless
    ``prefix`` picks it. Raises LayoutError with the prefixes that were found, or with the closest layout.
    """
    exact = None if prefix is not None else _exact(arrays, layouts)
    if exact is not None:
        return exact
    found, joined = _find_networks(arrays, layouts)
    candidates = _candidates(arrays, found, joined, prefix)
    if len(candidates) > 1:
        raise _several_networks(candidates)
    if not candidates:
        raise _unknown_prefix(prefix, found) if prefix is not None else _unknown_layout(arrays, layouts, found, joined)
    (network,) = candidates
    if network.intruders:
        raise _not_a_repvgg(network)
    others = {key: other.prefix for other in found for key in other.names}
    strangers = [
        (key, f"of the RepVGG below {others[key]!r}" if key in others else "not of the RepVGG")
        for key in arrays
        if key not in network.names
    ]
    return network._replace(strangers=strangers)


def holds_network(arrays: Arrays, layouts: Sequence[Layout], prefix: Optional[str] = None) -> bool:
    """Return whether there is a RepVGG in a state dict, or several."""
    if prefix is None and _exact(arrays, layouts) is not None:
        return True
    return bool(_candidates(arrays, *_find_networks(arrays, layouts), prefix))


def is_counter(key: str) -> bool:
    """Return whether a key is that of a counter or a helper, which say nothing about the network."""
    return len(key) <= MAX_KEY_CHARS and not IGNORED.isdisjoint(key.split("."))


def is_averaged(name: str) -> bool:
    """Return whether a key or a prefix is that of averaged weights, such as ``state_dict_ema``."""
    return "ema" in re.split(r"[._]", name.lower())


def missing_keys(names: Iterable[str]) -> List[str]:
    """Return the canonical keys that a network with these lacks: tensors of blocks, whole blocks, half of the head.

    The last stages may be missing, as in a backbone of which only the first ones are used, and so may the head.
    """
    present = set(names)
    blocks: Dict[str, List[str]] = {}
    for name in present:
        match = BLOCK.match(name)
        if match:
            blocks.setdefault(match.group(1), []).append(name[match.end() :])
    is_plus = any(".blocks." in block for block in blocks)
    depths: Dict[str, int] = {}
    for block in blocks:
        stage, index = block_sort_key(block)
        depths[stage] = max(depths.get(stage, 0), index + 1)
    stages = ["stage0", *(PLUS_STAGES if is_plus else STAGES)]
    last = max((stages.index(stage) for stage in depths if stage in stages), default=0)
    se = {tensor for tensors in blocks.values() for tensor in tensors if tensor.startswith(("se.", "post_se."))}
    missing: List[str] = []
    for stage in stages[: last + 1]:
        below = f"{stage}.blocks." if is_plus else f"{stage}."
        for index in range(depths.get(stage, 1)):
            block = stage if stage == "stage0" else f"{below}{index}"
            required = [*required_tensors(block, blocks.get(block, ())), *sorted(se)]
            missing += [f"{block}.{tensor}" for tensor in required if f"{block}.{tensor}" not in present]
    head = {"linear.weight", "linear.bias"}
    return missing + (sorted(head - present) if head & present else [])


def _exact(arrays: Arrays, layouts: Sequence[Layout]) -> Optional[Network]:
    """Return the network in the first layout that has every key, or None."""
    for layout in layouts:
        names: Dict[str, str] = {}
        for key, name in zip(arrays, to_canonical_keys(layout, arrays)):
            if name is None:
                break
            names[key] = name
        else:
            return Network(layout, "", names)
    return None


def _find_networks(arrays: Arrays, layouts: Sequence[Layout]) -> Tuple[List[Network], List[Network]]:
    """Return the RepVGG below each prefix, in the layout that has most of its keys; and all of a layout's as one."""
    plain_keys = _without_wrappers(arrays)
    best: Dict[str, Network] = {}
    joined: List[Network] = []
    for layout in layouts:
        for embedded in _embedded(layout):
            groups = _group_by_prefix(plain_keys, embedded)
            for prefix, (names, intruders) in groups.items():
                head = _head(arrays, plain_keys, names, layout, prefix)
                network = Network(layout, prefix, {**names, **head}, intruders)
                if prefix not in best or len(network.names) > len(best[prefix].names):
                    best[prefix] = network
            if len(groups) > 1:
                joined += _join(arrays, plain_keys, layout, groups)
    return list(best.values()), joined


def _join(
    arrays: Arrays, plain_keys: Mapping[str, str], layout: Layout, groups: Mapping[str, Group]
) -> Iterator[Network]:
    """Return the network of the keys of all groups, as if they had one prefix, unless some have the same name."""
    names = {key: name for group, _ in groups.values() for key, name in group.items()}
    if len(set(names.values())) == len(names):
        for prefix in groups:
            if "linear.weight" not in names.values():
                names.update(_head(arrays, plain_keys, names, layout, prefix))
        yield Network(layout, "", names, [key for _, intruders in groups.values() for key in intruders])


def _without_wrappers(arrays: Arrays) -> Dict[str, str]:
    """Return the file's key by its name without wrappers' names; unchanged if two keys would become the same."""
    keys = [key for key in arrays if len(key) <= MAX_KEY_CHARS]
    plain = {".".join(part for part in key.split(".") if part not in WRAPPER_MODULES): key for key in keys}
    return plain if len(plain) == len(keys) else {key: key for key in keys}


def _embedded(layout: Layout) -> Iterator[Layout]:
    """Return the layout as part of another network: its blocks without a prefix, or under the names used there."""
    prefixes = layout.block_prefixes
    if all(prefix.startswith(BACKBONE) for prefix in prefixes.values()):
        prefixes = {name: prefix[len(BACKBONE) :] for name, prefix in prefixes.items()}
    for block_prefixes in (prefixes, *EMBEDDED_PREFIXES.get(layout.name, ())):
        yield replace(layout, block_prefixes=block_prefixes)


def _group_by_prefix(plain_keys: Mapping[str, str], layout: Layout) -> Dict[str, Group]:
    """Return, by prefix, the canonical names of the keys in a network's stages, and the keys there that have none."""
    roots = sorted({prefix.partition("#")[0].rstrip(".") for prefix in layout.block_prefixes.values()})
    stage = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(map(re.escape, roots))})\.")
    keys: Dict[str, List[str]] = {}
    for plain in plain_keys:
        match = stage.search(plain)
        if match is not None:
            keys.setdefault(plain[: match.start()], []).append(plain)
    groups: Dict[str, Group] = {}
    for prefix in sorted(keys, key=lambda prefix: -len(keys[prefix]))[:MAX_NETWORKS]:
        names = list(to_canonical_keys(layout, (plain[len(prefix) :] for plain in keys[prefix])))
        named = {plain_keys[plain]: name for plain, name in zip(keys[prefix], names) if name is not None}
        if named:
            groups[prefix] = named, [plain_keys[plain] for plain, name in zip(keys[prefix], names) if name is None]
    return groups


def _head(
    arrays: Arrays, plain_keys: Mapping[str, str], names: Mapping[str, str], layout: Layout, prefix: str
) -> Dict[str, str]:
    """Return the canonical names of the heads: the layout's own below the prefix, else a usual one there or above.

    The latter must have the last block's channels as its input.
    """
    own = {
        plain_keys[f"{prefix}{owner}.{suffix}"]: f"{name}.{tensor}"
        for name, owner in layout.head_names.items()
        for tensor, suffix in layout.tensor_names.items()
        if f"{prefix}{owner}.{suffix}" in plain_keys
    }
    if "linear.weight" in own.values():
        return own
    features = _features(arrays, names)
    parts = prefix.split(".")[:-1]
    for length, owner in itertools.product(range(len(parts), -1, -1), (layout.head_names.get("linear", ""), *HEADS)):
        above = ".".join([*parts[:length], owner])
        weight, bias = plain_keys.get(f"{above}.weight"), plain_keys.get(f"{above}.bias")
        if weight and bias and arrays[weight].ndim == 2 and features in arrays[weight].shape:
            return {**own, weight: "linear.weight", bias: "linear.bias"}
    return own


def _features(arrays: Arrays, names: Mapping[str, str]) -> int:
    """Return the output channels of the last block."""
    channels = block_channels((name, arrays[key]) for key, name in names.items())
    return channels[max(channels, key=block_sort_key)] if channels else 0


def _candidates(
    arrays: Arrays, found: Sequence[Network], joined: Sequence[Network], prefix: Optional[str]
) -> Sequence[Network]:
    """Return the networks with this prefix, or the complete ones, without averaged ones if there are others too."""
    if prefix is not None:
        plain = ".".join(part for part in prefix.split(".") if part and part not in WRAPPER_MODULES)
        return [network for network in found if network.prefix.rstrip(".") == plain]
    complete = [network for network in found if _is_complete(network)]
    if complete:
        return [network for network in complete if not is_averaged(network.prefix)] or complete
    whole = [network for network in joined if _is_complete(network)]
    # Without strangers, what is missing is reported when the weights are loaded into a network.
    return [*whole, *(network for network in (*found, *joined) if len(network.names) == len(arrays))][:1]


def _is_complete(network: Network) -> bool:
    return not network.intruders and not missing_keys(network.names.values())


def _several_networks(networks: Sequence[Network]) -> LayoutError:
    prefixes = [network.prefix for network in networks]
    return LayoutError(
        f"the file holds {len(prefixes)} RepVGGs, below the prefixes {_quoted(prefixes)}",
        expected="one RepVGG",
        actual=prefixes,
        hint="pass one of them as prefix= to load_checkpoint; create takes what it returns as checkpoint=",
    )


def _unknown_prefix(prefix: str, found: Sequence[Network]) -> LayoutError:
    prefixes = [network.prefix for network in found]
    return LayoutError(
        f"there is no RepVGG below the prefix {prefix!r}"
        + (f"; blocks of one are below {_quoted(prefixes)}" if prefixes else " or any other"),
        expected=prefixes,
        actual=prefix,
        hint="pass one of these prefixes" if prefixes else "pass a file that holds a RepVGG",
    )


def _not_a_repvgg(network: Network) -> LayoutError:
    return LayoutError(
        f"below {network.prefix!r}, {len(network.intruders)} keys are of no RepVGG: {format_keys(network.intruders)}",
        expected=network.layout.name,
        actual=list(network.intruders),
        hint="only networks of the RepVGG family can be loaded",
    )


def _quoted(prefixes: Sequence[str]) -> str:
    return format_keys([repr(prefix) for prefix in prefixes])


def _unknown_layout(
    arrays: Arrays, layouts: Sequence[Layout], found: Sequence[Network], joined: Sequence[Network]
) -> LayoutError:
    """Return the error that names the closest layout, the keys that it does not have, and those that are missing."""
    names = list(dict.fromkeys(layout.name for layout in layouts))
    if not found:
        return LayoutError(
            f"no key is in layout {' or '.join(names)}: {format_keys(list(arrays))}",
            expected=names,
            actual=list(arrays),
            hint="pass a checkpoint of a RepVGG; if layout= was passed, try without it",
        )
    closest = max([*found, *joined], key=lambda network: len(network.names))
    unknown = [*closest.intruders]
    unknown += [key for key in arrays if key not in closest.names and key not in closest.intruders]
    missing = missing_keys(closest.names.values())
    return LayoutError(
        f"{len(unknown)} of {len(arrays)} keys are not in the closest layout, {closest.layout.name}: "
        + format_keys(unknown)
        + (f"; {len(missing)} are missing, such as {format_keys(missing, 3)}" if missing else ""),
        expected=names,
        actual=unknown,
        hint="pass a file with all weights of the network; if layout= was passed, try without it",
    )
