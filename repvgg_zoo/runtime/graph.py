"""From a module to a dumped graph: traced once, in the layout and with the fusions that are fast on a CPU."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any, List, Tuple

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


@dataclass(frozen=True)
class Dumped:
    """A dumped graph, what it returns, and what the eager network returned for the input it was traced with."""

    data: bytes
    structure: Structure
    reference: Arrays

    @property
    def sha256(self) -> str:
        """The SHA-256 of the graph's bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()


def dump(network: M.Module, x: NDArray[Any]) -> Dumped:
    """Traces ``network``, which must be in eval mode and the caller's own, on ``x`` (N, C, H, W) float32.

    The graph takes any N. The network is left on the device that MegEngine's dump insists on. Raises ArgumentError for
    outputs of a kind that cannot be compiled, and what MegEngine raises for a forward that cannot be traced.
    """
    _place(network)
    structures: List[Structure] = []

    def flat(data: Tensor) -> List[Tensor]:
        structure, tensors = flat_outputs(network(data))
        structures.append(structure)
        return tensors

    traced = trace(flat, symbolic=True, capture_as_const=True)
    reference = tuple(tensor.numpy() for tensor in traced(Tensor(x, device=DUMP_DEVICE)))
    stream = io.BytesIO()
    traced.dump(
        stream,
        arg_names=[INPUT],
        output_names=list(structures[0].names),
        optimize_for_inference=True,
        enable_nchw88=True,
        enable_fuse_conv_bias_nonlinearity=True,
    )
    return Dumped(stream.getvalue(), structures[0], reference)


# MegEngine's dump puts the input on "xpux" whatever the default device is, and fails, or makes a graph of two devices
# that Lite runs four times as slowly, if a parameter is on any other, be it another name of the same processor.
DUMP_DEVICE = "xpux"


def _place(network: M.Module) -> None:
    for tensor in (*network.parameters(), *network.buffers()):
        if str(tensor.device).split(":")[0] != DUMP_DEVICE:
            tensor._reset(Tensor(tensor.numpy(), device=DUMP_DEVICE))
