"""ExecutionPlan: the kernel calls that compute a network, and the memory that they use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray

from .jit.kernels import FIELDS, MicrokernelConfig


@dataclass(frozen=True)
class KernelCall:
    """A kernel's name and its arguments, in the order of its ``FIELDS``."""

    kernel: str
    arguments: NDArray[Any]


@dataclass(eq=False)
class ExecutionPlan:
    """Kernel calls in order, for images of ``input_shape`` (N, C, H, W).

    The first argument of the first call is the address of the images, which is set before each run. ``outputs`` are
    views of the results, (N, classes) or (N, H, W, C), by the name of the feature or "" for logits. ``arrays`` is all
    memory that the calls use. The kernels must be compiled with the same ``config``.
    """

    config: MicrokernelConfig
    input_shape: Tuple[int, int, int, int]
    calls: List[KernelCall] = field(default_factory=list)
    outputs: Dict[str, NDArray[Any]] = field(default_factory=dict)
    arrays: List[NDArray[Any]] = field(default_factory=list)

    def emit_call(self, kernel: str, **arguments: Any) -> None:
        """Append a call; an array is kept in ``arrays`` and passed as its address."""
        values = []
        for name in FIELDS[kernel]:
            value = arguments.pop(name)
            if isinstance(value, np.ndarray):
                self.arrays.append(value)
                value = value.ctypes.data
            values.append(int(value))
        assert not arguments, arguments
        self.calls.append(KernelCall(kernel, np.array(values, np.int64)))
