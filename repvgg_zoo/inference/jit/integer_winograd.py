"""Winograd's minimal filtering in integers, without any rounding, for kernels and activations of 8 bits.

The matrices of ``winograd.py``, with the rows of G and AT scaled to integers. A tile's outputs are then ``3^(2 n) 2^s``
times the convolution. All arithmetic is modulo a power of two, in which sums may overflow on the way: as long as the
last value, ``2^s`` times the convolution, fits into 32 bits, it is exact, and dividing by the power of three is a
multiplication with its inverse. So F(4x4, 3x3), which loses too much when its products are rounded to 8 bits, loses
nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

IntegerMatrix = Tuple[Tuple[int, ...], ...]


@dataclass(frozen=True)
class IntegerWinograd:
    """F(m x m, 3 x 3): AT ((G g G^T) . (BT d BT^T)) AT^T is ``divisor * 2^shift`` times the outputs.

    ``divisor`` is odd. Tiles of u8 values times BT, and int8 kernels times G, fit into 16 bits.
    """

    m: int
    BT: IntegerMatrix
    G: IntegerMatrix
    AT: IntegerMatrix
    divisor: int
    shift: int

    @property
    def num_elements(self) -> int:
        """How many elements a transformed tile has."""
        return (self.m + 2) ** 2

    @property
    def num_products(self) -> int:
        """How many products a tile takes: one for each element."""
        return self.num_elements

    @property
    def divisor_inverse(self) -> int:
        """The integer that times ``divisor`` is 1 modulo 2^32."""
        return pow(self.divisor, 2**31 - 1, 2**32)  # Euler: the odd numbers have 2^31 inverses

    def transform_weights(self, kernels: NDArray[Any]) -> NDArray[Any]:
        """Return G g G^T of 3x3 kernels, (9, n) to (num_elements, n)."""
        matrix = np.array(self.G)
        # Exact in float32, which has a fast product: all values are below 2^24.
        product: NDArray[Any] = np.kron(matrix, matrix).astype(np.float32) @ kernels.astype(np.float32)
        return product


INTEGER_F2 = IntegerWinograd(
    2,
    BT=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    G=((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2)),
    AT=((1, 1, 1, 0), (0, 1, -1, -1)),
    divisor=1,
    shift=2,
)
INTEGER_F4 = IntegerWinograd(
    4,
    BT=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    # Times 12, -6, -6, 24, 24 and 3, so that AT, times 24, has only powers of two.
    G=((3, 0, 0), (1, 1, 1), (1, -1, 1), (1, 2, 4), (1, -2, 4), (0, 0, 3)),
    AT=(
        (2, -4, -4, 1, 1, 0),
        (0, -4, 4, 2, -2, 0),
        (0, -4, -4, 4, 4, 0),
        (0, -4, 4, 8, -8, 8),
    ),
    divisor=9,
    shift=6,
)
INTEGER_TRANSFORMS = (INTEGER_F2, INTEGER_F4)
