"""structure_of: the blocks of a network and their tensors, and whether the kernels compute it.

Walking through MegEngine's Modules takes longer than many of the kernels, so what was found is kept for a network until
one of its parts is replaced.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Dict, List, Mapping, Tuple

import megengine.module as M
import numpy as np
from megengine import Parameter, Tensor

from ..checkpoints.layouts import block_sort_key
from ..inference.eager import has_known_code, supported_geometry
from ..models import RepVGG, RepVGGBlock, RepVGGplus
from ..reparam.to_deploy import batch_norms, branch_problems

Owner = Tuple[M.Module, str]  # a module and the name of its attribute


@dataclass(frozen=True, eq=False)
class Block:
    """A block, and where its tensors are, by their keys in it; ``eps`` has the BN layers by name."""

    module: RepVGGBlock
    owners: Mapping[str, Owner]
    norms: Mapping[str, M.BatchNorm2d]
    stage: str
    is_supported: bool

    def tensors(self) -> Dict[str, Tensor]:
        """Return all parameters and statistics."""
        return {key: getattr(module, name) for key, (module, name) in self.owners.items()}

    def parameters(self) -> Dict[str, Tensor]:
        """Return those tensors that are parameters."""
        return {key: tensor for key, tensor in self.tensors().items() if isinstance(tensor, Parameter)}

    @property
    def eps(self) -> Dict[str, float]:
        """The eps of each BN layer."""
        return {name: float(norm.eps) for name, norm in self.norms.items()}


@dataclass(frozen=True, eq=False)
class Structure:
    """The blocks by name, in the order in which data flows through them, and the parts of the network they are from."""

    blocks: Mapping[str, Block]
    parts: List[M.Module]
    has_kernels: bool


_structures: weakref.WeakKeyDictionary[M.Module, Structure] = weakref.WeakKeyDictionary()


def structure_of(network: M.Module) -> Structure:
    """Return the structure of a network, as it is now."""
    parts = [part for part in network.modules() if part is not network]
    known = _structures.get(network)
    if known is None or len(known.parts) != len(parts) or any(a is not b for a, b in zip(known.parts, parts)):
        known = _structures[network] = _examine(network, parts)
    return known


def _examine(network: M.Module, parts: List[M.Module]) -> Structure:
    modules = {name: part for name, part in network.named_modules() if isinstance(part, RepVGGBlock)}
    # MegEngine's order is that of the names, which has stage3.10 before stage3.2.
    blocks = {name: _block(name, modules[name]) for name in sorted(modules, key=block_sort_key)}
    is_known = type(network) in (RepVGG, RepVGGplus) and has_known_code(network)
    return Structure(blocks, parts, is_known and all(block.is_supported for block in blocks.values()))


def _block(name: str, module: RepVGGBlock) -> Block:
    owners: Dict[str, Owner] = {}
    for path, part in module.named_modules():
        for attribute, value in vars(part).items():
            if isinstance(value, Tensor):
                owners[f"{path}.{attribute}" if path else attribute] = part, attribute
    return Block(module, owners, batch_norms(module), name[: len("stage0")], _is_supported(module))


def _is_supported(block: RepVGGBlock) -> bool:
    geometry = supported_geometry(block)
    if geometry is None or (geometry[0] != 1 and geometry != (2, 1)):
        return False
    if any(tensor.dtype != np.float32 or tensor.device.physical_locator[0] != "cpu" for tensor in block.tensors()):
        return False
    return block.deploy or (_has_plain_branches(block) and not branch_problems(block))


def _has_plain_branches(block: RepVGGBlock) -> bool:
    norms = batch_norms(block).values()
    is_plain = all(type(norm) is M.BatchNorm2d and norm.affine and not norm.freeze for norm in norms)
    return is_plain and block.rbr_dense.conv.bias is None and block.rbr_1x1.conv.bias is None
