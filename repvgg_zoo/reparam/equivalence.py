"""compare_forms: the difference between the outputs of the train and the deploy form, by block and end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Tuple

import megengine.module as M
import numpy as np
from megengine import Tensor
from numpy.typing import NDArray

from .._escape import escape
from .._html import html_table
from .._tensors import input_tensor
from ..errors import ArgumentError, FormError
from .fusion import relative_error
from .to_deploy import check_module, eval_mode, find_blocks, to_deploy


@dataclass(frozen=True)
class Difference:
    """The difference of two outputs.

    ``max_abs`` is max |train - deploy|, ``scale`` max |train|, ``relative`` their ratio.
    """

    name: str
    max_abs: float
    scale: float
    relative: float


@dataclass(frozen=True)
class EquivalenceReport:
    """The differences of all blocks, in the order in which they run, and of the network's outputs."""

    blocks: Tuple[Difference, ...]
    end_to_end: Difference

    @property
    def worst_block(self) -> Difference:
        """The block with the largest relative difference."""
        return max(self.blocks, key=lambda block: block.relative)

    def __repr__(self) -> str:
        worst, whole = self.worst_block, self.end_to_end
        worst_block = f"worst {escape(worst.name)} ({worst.relative:.1e})"
        return f"<EquivalenceReport {len(self.blocks)} blocks, {worst_block}, end to end {whole.relative:.1e}>"

    def _repr_html_(self) -> str:
        rows = [
            (row.name, f"{row.relative:.1e}", f"{row.max_abs:.1e}", f"{row.scale:.1e}")
            for row in (*self.blocks, self.end_to_end)
        ]
        return html_table(repr(self)[1:-1], ("block", "relative", "max abs", "scale"), rows)

    def __str__(self) -> str:
        rows = [*self.blocks, self.end_to_end]
        width = max(len(row.name) for row in rows)
        lines = [f"{'block':{width}}  relative   max abs     scale"]
        lines += [f"{row.name:{width}}  {row.relative:8.1e}  {row.max_abs:8.1e}  {row.scale:8.1e}" for row in rows]
        return "\n".join([*lines, f"worst block: {self.worst_block.name} ({self.worst_block.relative:.1e})"])


def compare_forms(model: M.Module, inputs: Any = None) -> EquivalenceReport:
    """Run ``model`` (train form) and its deploy form on the same inputs and report how much they differ.

    Each block is compared on the input that it gets inside the train form, so that one block's difference does not add
    to the next one's. Errors are relative to the output's scale, because absolute ones grow with the weights. Both
    forms run in eval mode; the model's own modes are restored. ``inputs`` is one (N, C, H, W) array or tensor, by
    default two random images of the model's image size; it is cast to the dtype of the model. Raises ArgumentError
    without inputs for a module that ``create`` did not build, FormError for a model that is in the deploy form already,
    and what ``to_deploy`` raises.
    """
    check_module("compare_forms", model)
    inputs = None if inputs is None else _check_inputs(model, inputs)
    blocks = find_blocks(model)
    if blocks and all(block.deploy for block in blocks.values()):
        raise FormError(
            "the model is in the deploy form, so there is no train form to compare with",
            expected="train",
            actual="deploy",
            hint="compare before converting: create(name, pretrained=True) gives the train form",
        )
    x = input_tensor(model, _default_inputs(model) if inputs is None else inputs)
    with eval_mode(model):
        deployed = to_deploy(model, check=False)
    deployed_blocks = find_blocks(deployed)
    differences: List[Difference] = []

    def compare_block(name: str) -> Any:
        def hook(_: M.Module, args: Tuple[Tensor, ...], output: Tensor) -> None:
            differences.append(_difference(name, output, deployed_blocks[name](*args)))

        return hook

    handles = [block.register_forward_hook(compare_block(name)) for name, block in blocks.items() if not block.deploy]
    try:
        with eval_mode(model):
            reference = model(x)
    finally:
        for handle in handles:
            handle.remove()
    return EquivalenceReport(tuple(differences), _difference("end to end", reference, deployed(x)))


def _check_inputs(model: M.Module, inputs: Any) -> Any:
    """Return the inputs; raise ArgumentError for anything but one (N, C, H, W) array or tensor of numbers."""
    channels = getattr(model, "in_chans", None)
    shape = tuple(inputs.shape) if isinstance(inputs, (np.ndarray, Tensor)) else ()
    is_valid = len(shape) == 4 and 0 not in shape and channels in (None, shape[1])
    if not is_valid or (isinstance(inputs, np.ndarray) and inputs.dtype.kind not in "fiu"):
        expected = f"an array or tensor of numbers (N, {'C' if channels is None else channels}, H, W)"
        raise ArgumentError(
            f"inputs is {f'of shape {shape}' if shape else type(inputs).__name__}",
            expected=expected,
            actual=shape or type(inputs).__name__,
            hint=f"pass {expected}",
        )
    return inputs


def _difference(name: str, reference: Any, other: Any) -> Difference:
    """Return the largest difference of two outputs of the same structure (a tensor, or dicts and lists of them)."""
    pairs = zip(_leaves(reference), _leaves(other))
    worst = max((relative_error(a, b) for a, b in pairs), key=lambda error: error[2])
    return Difference(name, *worst)


def _leaves(output: Any) -> Iterator[NDArray[Any]]:
    if isinstance(output, Tensor):
        yield output.numpy().astype(np.float64)
    elif isinstance(output, dict):
        for key in sorted(output):
            yield from _leaves(output[key])
    else:
        for item in output:
            yield from _leaves(item)


def _default_inputs(model: M.Module) -> NDArray[Any]:
    spec: Optional[Any] = getattr(model, "spec", None)
    if spec is None:
        raise ArgumentError(
            "inputs are needed for a module that repvgg_zoo.create did not build",
            hint="pass an array of shape (N, C, H, W), for example real images",
        )
    size = spec.architecture.image_size
    return np.random.RandomState(0).standard_normal((2, model.in_chans, size, size)).astype(np.float32)
