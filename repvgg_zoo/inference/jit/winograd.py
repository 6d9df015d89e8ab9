"""Winograd's minimal filtering for 3x3 convolutions (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016): Y = A^T [(G g G^T) . (B^T d B)] A.

F(2x2, 3x3) computes 4 outputs with 16 multiplications instead of 36, F(4x4, 3x3) 16 outputs with 36 instead of 144.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

Matrix = Tuple[Tuple[float, ...], ...]


@dataclass(frozen=True)
class WinogradTransform:
    """F(m x m, 3 x 3): m x m outputs from a tile of (m + 2) x (m + 2) inputs.

    ``BT`` transforms the input, ``G`` the weights, and ``AT`` the output; each is applied from both sides.
    """

    m: int
    BT: Matrix
    G: Matrix
    AT: Matrix

    @property
    def num_elements(self) -> int:
        """How many elements a transformed tile has."""
        return (self.m + 2) ** 2

    def transform_weights(self, kernels: NDArray[Any], out: NDArray[Any]) -> None:
        """Write G g G^T of 3x3 kernels: (9, n) to ``out`` (num_elements, n), float32."""
        matrix = np.array(self.G)
        with np.errstate(invalid="ignore", over="ignore"):  # weights that are not finite are refused later
            np.matmul(np.kron(matrix, matrix).astype(np.float32), kernels, out=out)


WINOGRAD_TRANSFORMS = (
    WinogradTransform(
        2,
        BT=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        G=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        AT=((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    WinogradTransform(
        4,
        BT=(
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        G=(
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        AT=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
)
