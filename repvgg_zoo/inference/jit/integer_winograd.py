"""Winograd's minimal filtering in integers, without any rounding, for kernels and activations of 8 bits.

The matrices of ``winograd.py``, with the rows of G and AT scaled to integers. A tile's outputs are then ``3^(2 n) 2^s``
times the convolution. All arithmetic is modulo a power of two, in which sums may overflow on the way: as long as the
last value, ``2^s`` times the convolution, fits into 32 bits, it is exact, and dividing by the power of three is a
multiplication with its inverse. So F(4x4, 3x3), which loses too much when its products are rounded to 8 bits, loses
nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .winograd import F2, F2_STRIDE_2, F4, WinogradTransform


@dataclass(frozen=True)
class IntegerWinograd(WinogradTransform):
    """A transform whose matrices are integers: it gives ``divisor * 2^shift`` times the outputs.

    ``divisor`` is odd. Tiles of u8 values times BT, and int8 kernels times G, fit into 16 bits.
    """

    divisor: int
    shift: int

    @property
    def divisor_inverse(self) -> int:
        """The integer that times ``divisor`` is 1 modulo 2^32."""
        return pow(self.divisor, 2**31 - 1, 2**32)  # Euler: the odd numbers have 2^31 inverses

    def largest_weight(self, taps: NDArray[Any]) -> int:
        """Return the largest magnitude of G g G^T, for kernels whose taps have at most these magnitudes, (9,)."""
        matrix = np.abs(np.array(self.G, np.int64))
        return int((np.kron(matrix, matrix) @ taps).max())

    def transform_integers(self, kernels: NDArray[Any]) -> NDArray[Any]:
        """Return G g G^T of 3x3 kernels of whole numbers, (9, n) to (num_products, n), in the order of ``products``."""
        # Exact in float32, which has a fast product: all values are below 2^24.
        transformed = np.empty((self.num_products, kernels.shape[1]), np.float32)
        self.transform_weights(kernels.astype(np.float32), transformed)
        return transformed


INTEGER_F2 = IntegerWinograd(
    m=2,
    stride=1,
    BT=F2.BT,
    G=((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2)),
    AT=F2.AT,
    products_per_element=F2.products_per_element,
    divisor=1,
    shift=2,
)
INTEGER_F4 = IntegerWinograd(
    m=4,
    stride=1,
    BT=F4.BT,
    # Times 12, -6, -6, 24, 24 and 3, so that AT, times 24, has only powers of two.
    G=((3, 0, 0), (1, 1, 1), (1, -1, 1), (1, 2, 4), (1, -2, 4), (0, 0, 3)),
    AT=(
        (2, -4, -4, 1, 1, 0),
        (0, -4, 4, 2, -2, 0),
        (0, -4, -4, 4, 4, 0),
        (0, -4, 4, 8, -8, 8),
    ),
    products_per_element=F4.products_per_element,
    divisor=9,
    shift=6,
)
INTEGER_F2_STRIDE_2 = IntegerWinograd(
    m=2,
    stride=2,
    BT=F2_STRIDE_2.BT,
    G=F2_STRIDE_2.G,
    AT=F2_STRIDE_2.AT,
    products_per_element=F2_STRIDE_2.products_per_element,
    divisor=1,
    shift=0,
)
INTEGER_TRANSFORMS = (INTEGER_F2, INTEGER_F4, INTEGER_F2_STRIDE_2)
