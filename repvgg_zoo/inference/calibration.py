"""Calibration: what quantization has to know of a layer's input, gathered batch by batch on images."""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .quantized import MAX_ACTIVATION

BINS = 4096  # of the histogram: 16 for each of 256 values, so that errors of rounding can be told from it
CLIPS = np.linspace(0.25, 1, 61)  # shares of the largest value at which values may be cut off


class ActivationStatistics:
    """The distribution of an activation (N, H, W, C) of values from 0, over all batches that were added.

    ``shape`` is that of a batch. ``images`` counts images, ``channel_peaks`` are the largest values (C,).
    """

    def __init__(self, name: str, shape: Tuple[int, ...]) -> None:
        self.images = 0
        self.channel_peaks = np.zeros(shape[-1], np.float32)
        self._name = name
        self._position_sums = np.zeros(shape[1:])
        self._counts = np.zeros(BINS, np.int64)
        self._range = 0.0  # where the last bin ends

    def add(self, x: NDArray[Any]) -> None:
        """Add a batch; raise ArgumentError if it is not finite."""
        peaks = x.max(axis=(0, 1, 2), initial=0)
        peak = float(peaks.max())
        if not np.isfinite(x.sum(dtype=np.float64)):
            raise ArgumentError(
                f"the output of {self._name} is not finite",
                expected="finite numbers",
                actual=peak,
                hint="are the weights damaged, or the images not preprocessed as those of the training?",
            )
        self.images += len(x)
        self.channel_peaks = np.maximum(self.channel_peaks, peaks)
        self._position_sums += x.sum(axis=0, dtype=np.float64)
        self._widen(peak)
        if self._range:
            index = (x * np.float32(BINS / self._range)).astype(np.int32)
            self._counts += np.bincount(np.minimum(index, BINS - 1, out=index).reshape(-1), minlength=BINS)
        else:
            self._counts[0] += x.size

    @property
    def peak(self) -> float:
        """The largest value."""
        return float(self.channel_peaks.max())

    def scale(self) -> float:
        """Return the value of one step of 256 that rounds the values with the least mean squared error, a float32."""
        width = self._range / BINS
        values = (np.arange(BINS) + 0.5) * width
        values[0] = 0  # half of an activation is zeros
        scales = CLIPS * self.peak / MAX_ACTIVATION
        steps = np.minimum(np.rint(values / scales[:, None]), MAX_ACTIVATION)
        errors = (values - steps * scales[:, None]) ** 2 @ self._counts
        return float(np.float32(scales[errors.argmin()]))

    def tap_means(self, stride: int, dilation: int) -> NDArray[Any]:
        """Return the mean of what each tap of a 3x3 convolution is multiplied with, padding included, (C, 3, 3)."""
        height, width, channels = self._position_sums.shape
        padded = np.pad(self._position_sums, ((dilation, dilation), (dilation, dilation), (0, 0)))
        ys, xs = ((np.arange((size - 1) // stride + 1) * stride) for size in (height, width))
        means = np.empty((channels, 3, 3))
        for i in range(3):
            for j in range(3):
                window = padded[np.ix_(ys + i * dilation, xs + j * dilation)]
                means[:, i, j] = window.mean(axis=(0, 1)) / self.images
        return means

    def _widen(self, peak: float) -> None:
        """Let the histogram reach a new peak: bins are merged by twos, so that their counts stay exact."""
        if not self._range:
            self._range = peak
            return
        while peak > self._range:
            self._counts = np.concatenate([self._counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self._range *= 2
