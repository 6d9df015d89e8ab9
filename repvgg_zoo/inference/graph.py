"""From a module to a dumped graph, laid out and fused as is fast on a CPU."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any, List, Tuple

import megengine.functional as F
import megengine.module as M
from megengine import Tensor
from megengine.jit import trace
from numpy.typing import NDArray

from ..errors import ArgumentError

INPUT = "data"

Arrays = Tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Structure:
    """What a network returns: one array, or a dict or tuple of them; ``keys`` has an entry for each array."""

    kind: str
    keys: Tuple[str, ...]

    @property
    def names(self) -> Tuple[str, ...]:
        """The names of the graph's outputs, in order."""
        return tuple(f"output{index}" for index in range(len(self.keys)))

    def pack(self, arrays: Arrays) -> Any:
        """Flat arrays as the network would return them."""
        if self.kind == "array":
            return arrays[0]
        return dict(zip(self.keys, arrays)) if self.kind == "dict" else arrays


def flat_outputs(output: Any) -> Tuple[Structure, List[Tensor]]:
    """Structure and tensors of a network's output; raises ArgumentError for one that holds anything else."""
    if isinstance(output, Tensor):
        return Structure("array", ("",)), [output]
    if isinstance(output, dict) and output and all(isinstance(value, Tensor) for value in output.values()):
        return Structure("dict", tuple(output)), list(output.values())
    if isinstance(output, (list, tuple)) and output and all(isinstance(value, Tensor) for value in output):
        return Structure("tuple", ("",) * len(output)), list(output)
    raise ArgumentError(
        f"cannot compile a network that returns {type(output).__name__}",
        expected="a tensor, or a dict, list or tuple of tensors",
        actual=type(output).__name__,
    )


@dataclass(frozen=True, eq=False)
class Seen:
    """What a network returns, in structure and, for the input it was given, in numbers."""

    structure: Structure
    reference: Arrays


# MegEngine's dump puts the input on "xpux" whatever the default device is, and fails, or makes a graph of two devices
# that Lite runs four times as slowly, if a parameter is on any other, be it another name of the same processor.
DUMP_DEVICE = "xpux"


def look_at(network: M.Module, x: NDArray[Any]) -> Seen:
    """What ``network``, a ``private_copy``, returns for ``x``. Raises ArgumentError if that cannot be compiled."""
    structure, tensors = flat_outputs(network(Tensor(x, device=DUMP_DEVICE)))
    return Seen(structure, tuple(tensor.numpy().copy() for tensor in tensors))


def dump(network: M.Module, x: NDArray[Any]) -> bytes:
    """Traces ``network``, a ``private_copy``, on ``x``, and has MegEngine lay it out for the CPU's lanes.

    Needs about seven times the weights' memory for a moment. Raises ArgumentError for outputs of a kind that cannot be
    compiled, and what MegEngine raises for a forward that cannot be traced.
    """
    structures: List[Structure] = []

    def flat(data: Tensor) -> List[Tensor]:
        structure, tensors = flat_outputs(network(data))
        structures.append(structure)
        return tensors

    traced = trace(flat, symbolic=True, capture_as_const=True)
    traced(Tensor(x, device=DUMP_DEVICE))
    stream = io.BytesIO()
    traced.dump(
        stream,
        arg_names=[INPUT],
        output_names=list(structures[0].names),
        optimize_for_inference=True,
        enable_nchw88=True,
        enable_fuse_conv_bias_nonlinearity=True,
    )
    return stream.getvalue()


def private_copy(network: M.Module) -> M.Module:
    """A copy of ``network`` in eval mode, on the device that ``dump`` needs."""
    # Copied by MegEngine's own operator: deepcopy would take .numpy() of each tensor, which the tensor then keeps.
    tensors = (*network.parameters(), *network.buffers())
    placed = {id(tensor): type(tensor)(F.copy(tensor, device=DUMP_DEVICE)) for tensor in tensors}
    copied = copy.deepcopy(network, placed)
    copied.eval()
    return copied
