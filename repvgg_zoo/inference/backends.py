"""The ways to run a network, in order of preference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Plan:
    """How a network is run: by our own ``kernels``, for a RepVGG as this package builds it, or by MegEngine Lite.

    With ``split``, Lite runs one network for each thread, with its share of the batch. With ``low_memory``, no weights
    are kept in winograd's domain, where they take up to four times as much memory, with Lite up to seven times.
    """

    name: str
    kernels: bool = False
    split: bool = False
    low_memory: bool = False

    def fits(self, batch: int, threads: int) -> bool:
        """Whether the plan makes sense for this batch and number of threads."""
        return not self.split or (1 < threads <= MOST_SPLIT and batch % threads == 0)


MOST_SPLIT = 4  # networks side by side, for each keeps the weights of its own

# The first plan that suits the network and computes rightly is taken. To measure which is fastest would take longer
# than all the rest, and on a busy machine choose by luck.
PLANS = (
    Plan("kernels", kernels=True),
    Plan("lite-split", split=True),
    Plan("lite"),
)
LOW_MEMORY_PLANS = (
    Plan("kernels-low-memory", kernels=True, low_memory=True),
    Plan("lite-low-memory", low_memory=True),
)


def candidates(batch: int, threads: int, low_memory: bool) -> Tuple[Plan, ...]:
    """The plans for this batch size and number of threads, best first."""
    table = LOW_MEMORY_PLANS if low_memory else PLANS
    return tuple(plan for plan in table if plan.fits(batch, threads))
