"""Winograd's minimal filtering for 3x3 convolutions (Lavin and Gray, CVPR 2016): its matrices, and kernels made ready.

F(2x2, 3x3) makes 4 results of 16 products instead of 36, F(4x4, 3x3) 16 of 36 instead of 144.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

Matrix = Tuple[Tuple[float, ...], ...]


@dataclass(frozen=True)
class Tile:
    """``size`` x ``size`` results at once: ``spread`` makes points of pixels, ``kernel`` of weights, and ``gather``
    makes results of the points' products."""

    size: int
    spread: Matrix
    kernel: Matrix
    gather: Matrix

    @property
    def points(self) -> int:
        return (self.size + 2) ** 2

    def weights(self, kernels: NDArray[Any], out: NDArray[Any]) -> None:
        """3x3 kernels as points: (9, n) to ``out`` (points, n), float32."""
        matrix = np.array(self.kernel)
        np.matmul(np.kron(matrix, matrix).astype(np.float32), kernels, out=out)


TILES = (
    Tile(
        2,
        spread=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        kernel=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        gather=((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    Tile(
        4,
        spread=(
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        kernel=(
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        gather=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
)
