"""ExecutionPlan: the kernel calls that compute a network, and the memory that they use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
from numpy.typing import NDArray

from .jit.all_kernels import ALL_FIELDS
from .jit.kernels import MicrokernelConfig


@dataclass(frozen=True)
class KernelCall:
    """A kernel's name and its arguments, in the order of its ``ALL_FIELDS``."""

    kernel: str
    arguments: NDArray[Any]


@dataclass(frozen=True, eq=False)
class ActivationBuffer:
    """An activation (N, height, width, channels) in ``storage`` (N, H', W', C'), padded with zeros.

    ``border`` rows and columns of zeros come before it, all that remains after it. C' is channels rounded up to a
    multiple of NR, or of UNROLLED for the input images.
    """

    storage: NDArray[Any]
    height: int
    width: int
    channels: int
    border: int

    @property
    def images(self) -> int:
        return len(self.storage)

    @property
    def strides(self) -> Tuple[int, int, int]:
        """Elements from one image, row and pixel to the next."""
        _, height, width, channels = self.storage.shape
        return height * width * channels, width * channels, channels

    @property
    def interior(self) -> NDArray[Any]:
        """The activation without padding: a view (N, height, width, channels)."""
        first = self.border
        return self.storage[:, first : first + self.height, first : first + self.width, : self.channels]

    def offsets(self, ys: NDArray[Any], xs: NDArray[Any]) -> NDArray[Any]:
        """Return the offsets in the storage of the pixels in rows ``ys`` and columns ``xs``, for all images.

        Rows and columns count from those of the activation, so the padding before it has negative ones.
        """
        image_stride, row_stride, pixel_stride = self.strides
        images = np.arange(self.images)[:, None, None] * image_stride
        rows, columns = (ys + self.border) * row_stride, (xs + self.border) * pixel_stride
        offsets: NDArray[Any] = images + rows[:, None] + columns
        return offsets.reshape(-1)


class LayerCalls(NamedTuple):
    """The calls of a plan from ``start`` up to ``stop``, which compute one layer: its convolution, then its SE."""

    x: ActivationBuffer
    out: ActivationBuffer
    start: int
    conv_stop: int
    stop: int


@dataclass(eq=False)
class ExecutionPlan:
    """Kernel calls in order, for images of ``input_shape`` (N, C, H, W).

    The first argument of the first call is the address of the images, which is set before each run. ``outputs`` are
    views of the results, (N, classes) or (N, H, W, C), by the name of the feature or "" for logits. ``layers`` are the
    calls of each layer. ``arrays`` is all memory that the calls use. The kernels must be compiled with the same
    ``config``.
    """

    config: MicrokernelConfig
    input_shape: Tuple[int, int, int, int]
    calls: List[KernelCall] = field(default_factory=list)
    layers: List[LayerCalls] = field(default_factory=list)
    outputs: Dict[str, NDArray[Any]] = field(default_factory=dict)
    arrays: List[NDArray[Any]] = field(default_factory=list)

    def emit_call(self, kernel: str, **arguments: Any) -> None:
        """Append a call; an array is kept in ``arrays`` and passed as its address."""
        values = []
        for name in ALL_FIELDS[kernel]:
            value = arguments.pop(name)
            if isinstance(value, np.ndarray):
                self.arrays.append(value)
                value = value.ctypes.data
            values.append(int(value))
        assert not arguments, arguments
        self.calls.append(KernelCall(kernel, np.array(values, np.int64)))
