"""The ways to run a network that are tried: each plan is one row of a table, measured on the user's own machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Plan:
    """How a network becomes a graph, and how the graph is run.

    ``parts`` networks stand side by side, each with its share of the batch and of the threads. ``preprocess`` keeps
    weights as the chosen algorithms want them (for winograd that is 7.1 times as much memory as the 3x3 weights);
    without it they are transformed in every run. ``workspace`` bounds, in bytes, what an algorithm may use; 0 is no
    bound.
    """

    name: str
    parts: int = 1
    preprocess: bool = True
    workspace: int = 0

    def fits(self, batch: int, threads: int) -> bool:
        """Whether batch and threads can be shared out evenly among the parts."""
        return batch % self.parts == 0 and threads % self.parts == 0


# Adding a row is all that a further candidate needs; its name goes into the cache's keys.
PLANS = (Plan("whole"),)
LOW_MEMORY_PLANS = (Plan("whole-low-memory", preprocess=False),)


def candidates(batch: int, threads: int, low_memory: bool) -> Tuple[Plan, ...]:
    """The plans to measure for this batch size and number of threads; the first one is always possible."""
    table = LOW_MEMORY_PLANS if low_memory else PLANS
    return tuple(plan for plan in table if plan.fits(batch, threads))
