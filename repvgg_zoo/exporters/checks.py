"""What every exported file is checked with: reading it again, and comparing outputs with our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
from numpy.typing import NDArray

from ..errors import EquivalenceError
from ..reparam.fusion import relative_error
from .graph import PROBABILITIES
from .report import Check

Outputs = Dict[str, NDArray[Any]]


def check_read_again(file: Path, actual: object, expected: object) -> None:
    """Raise EquivalenceError unless what was read is what was written."""
    if actual != expected:
        raise EquivalenceError(f"{file} differs from what was written to it", path=file, hint="the disk may be damaged")


def compare_outputs(runtime: str, outputs: Outputs, expected: Outputs, bound: float, hint: str) -> Check:
    """Return the error of a runtime, relative to the outputs' scale; raise EquivalenceError above the bound."""
    worst = max(relative_error(array, outputs[name])[2] for name, array in expected.items())
    if not worst <= bound:
        raise EquivalenceError(
            f"{runtime}'s outputs differ by {worst:.1e} of their scale; nothing was written",
            expected=f"at most {bound:g}",
            actual=worst,
            hint=hint,
        )
    return Check(runtime, worst, "outputs agree")


def with_softmax(outputs: Outputs) -> Outputs:
    """Return the outputs with logits turned into what the name PROBABILITIES promises."""
    if PROBABILITIES not in outputs:
        return outputs
    powers = np.exp(outputs[PROBABILITIES] - outputs[PROBABILITIES].max(axis=1, keepdims=True))
    return {**outputs, PROBABILITIES: powers / powers.sum(axis=1, keepdims=True)}
