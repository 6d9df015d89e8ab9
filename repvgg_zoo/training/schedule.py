"""learning_rate: a linear warm-up, then a cosine to zero (Loshchilov and Hutter, ICLR 2017)."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, *, warmup_steps: float, peak: float) -> float:
    """Return the learning rate of a step, counted from 0, of a run of ``steps``.

    >>> from repvgg_zoo.training.schedule import learning_rate
    >>> [round(learning_rate(step, 6, warmup_steps=2, peak=0.1), 3) for step in range(6)]
    [0.05, 0.1, 0.1, 0.085, 0.05, 0.015]
    """
    if step < warmup_steps:
        return peak * min(1.0, (step + 1) / warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1.0, steps - warmup_steps)))
