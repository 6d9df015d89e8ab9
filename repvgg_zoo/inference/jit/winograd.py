"""Winograd's minimal filtering for 3x3 convolutions (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016): Y = A^T [(G g G^T) . (B^T d B)] A.

F(2x2, 3x3) computes 4 outputs with 16 multiplications instead of 36, F(4x4, 3x3) 16 outputs with 36 instead of 144. At
stride 2, the even and the odd pixels of a row are filtered apart, with the outer two weights and with the middle one,
by F(2, 2) and F(2, 1). Both have their outputs in the same form before A^T, so they are added there: an element of a
tile is then a sum of several products. F(2x2, 3x3) takes 25 multiplications instead of 36. F(4x4, 3x3) would take 81
instead of 144, but nine times as many weights: reading those takes the time that it saves, unless batches are large.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, List, Tuple

import numpy as np
from numpy.typing import NDArray

Matrix = Tuple[Tuple[float, ...], ...]


@dataclass(frozen=True)
class WinogradTransform:
    """F(m x m, 3 x 3): m x m outputs of a convolution of this stride from a tile of ``side`` x ``side`` inputs.

    ``BT`` transforms the input, ``G`` the weights, and ``AT`` the output; each is applied from both sides. In one
    dimension, BT and G have a row for each product; ``products_per_element`` says how many of them in a row are added
    up to one element, of which AT has a column.
    """

    m: int
    stride: int
    BT: Matrix
    G: Matrix
    AT: Matrix
    products_per_element: Tuple[int, ...]

    @property
    def name(self) -> str:
        """What the names of its kernels end in."""
        return f"{self.m}" if self.stride == 1 else f"{self.m}s{self.stride}"

    @property
    def side(self) -> int:
        """The height and width of a tile of inputs."""
        return len(self.BT[0])

    @property
    def num_elements(self) -> int:
        """How many elements a transformed tile of outputs has."""
        return len(self.products_per_element) ** 2

    @property
    def num_products(self) -> int:
        """How many elements a transformed tile of inputs has, and a transformed kernel."""
        return len(self.BT) ** 2

    @property
    def products(self) -> List[List[Tuple[int, int]]]:
        """The products that are added up to each element, as rows of BT and G for each of the two dimensions."""
        stops = [0, *itertools.accumulate(self.products_per_element)]
        rows = [range(start, stop) for start, stop in zip(stops, stops[1:])]
        return [[(i, j) for i in ys for j in xs] for ys in rows for xs in rows]

    def transform_weights(self, kernels: NDArray[Any], out: NDArray[Any]) -> None:
        """Write G g G^T of 3x3 kernels: (9, n) to ``out`` (num_products, n), float32, in the order of ``products``."""
        with np.errstate(invalid="ignore", over="ignore"):  # weights that are not finite are refused later
            np.matmul(self.weight_matrix, kernels, out=out)

    @functools.cached_property
    def weight_matrix(self) -> NDArray[Any]:
        """The matrix (num_products, 9), float32, that transforms kernels (9, n)."""
        rows = [np.kron(self.G[i], self.G[j]) for element in self.products for i, j in element]
        return np.array(rows, np.float32)


F2 = WinogradTransform(
    m=2,
    stride=1,
    BT=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    G=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    AT=((1, 1, 1, 0), (0, 1, -1, -1)),
    products_per_element=(1, 1, 1, 1),
)
F4 = WinogradTransform(
    m=4,
    stride=1,
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
    products_per_element=(1, 1, 1, 1, 1, 1),
)
F2_STRIDE_2 = WinogradTransform(
    m=2,
    stride=2,
    BT=((1, 0, -1, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1), (0, 0, 0, 1, 0)),
    G=((1, 0, 0), (0, 1, 0), (1, 0, 1), (0, 0, 1), (0, 1, 0)),
    AT=((1, 1, 0), (0, 1, 1)),
    products_per_element=(2, 1, 2),
)
WINOGRAD_TRANSFORMS = (F2, F4, F2_STRIDE_2)
