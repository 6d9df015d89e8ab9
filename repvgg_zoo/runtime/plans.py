"""The ways to run a network in order of preference, and a way to run it as plain data, which can be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Part:
    """One Lite network: ``graph`` is the SHA-256 of its dumped graph, ``shape`` that of its input.

    ``algorithms`` is the table of its convolutions' algorithms, None to measure them at the first run. ``reads`` are
    the first index and the end of what it takes of its step's input, along the step's ``cut``; ``keeps`` the same of
    its own output, along the step's ``join``. None is all.
    """

    graph: str
    shape: Tuple[int, ...]
    threads: int
    algorithms: Optional[bytes] = None
    reads: Optional[Tuple[int, int]] = None
    keeps: Optional[Tuple[int, int]] = None


@dataclass(frozen=True)
class Step:
    """Networks that run at the same time; their outputs, joined along an axis or added (``join`` None), go on."""

    parts: Tuple[Part, ...]
    cut: int = 0
    join: Optional[int] = 0


@dataclass(frozen=True)
class Plan:
    """How a network becomes steps.

    ``form`` is "stages" (rewritten, and shared out over cores; see stages), "rewritten" (see nchw88) or "whole"
    (MegEngine's own passes, algorithms measured). With ``split``, there is one network for each thread, with its share
    of the batch. ``preprocess`` keeps weights as the chosen algorithms want them, otherwise they are transformed in
    every run: for winograd kept weights take up to 7.1 times the memory of the 3x3 kernels.
    """

    name: str
    form: str
    split: bool = False
    preprocess: bool = True

    def fits(self, batch: int, threads: int) -> bool:
        """Whether the plan makes sense for this batch and number of threads."""
        if self.split:
            return 1 < threads <= MOST_SPLIT and batch % threads == 0
        return self.form != "stages" or threads > 1


MOST_SPLIT = 4  # networks side by side, for each keeps the weights of its own

# The first plan that suits the network and computes rightly is taken. That stages come first, and a network for each
# thread before one with all threads, follows from what MegEngine runs on one thread only, and was measured as well.
# To measure here would take longer than all the rest, and on a busy machine choose by luck.
PLANS = (
    Plan("stages", "stages"),
    Plan("rewritten-split", "rewritten", split=True),
    Plan("rewritten", "rewritten"),
    Plan("whole-split", "whole", split=True),
    Plan("whole", "whole"),
)
LOW_MEMORY_PLANS = (
    Plan("stages-low-memory", "stages", preprocess=False),
    Plan("rewritten-low-memory", "rewritten", preprocess=False),
    Plan("whole-low-memory", "whole", preprocess=False),
)


def candidates(batch: int, threads: int, low_memory: bool) -> Tuple[Plan, ...]:
    """The plans for this batch size and number of threads, best first; not every network can be rewritten."""
    table = LOW_MEMORY_PLANS if low_memory else PLANS
    return tuple(plan for plan in table if plan.fits(batch, threads))
