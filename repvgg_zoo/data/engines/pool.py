"""share_out: hand tasks to workers that may be lost at any moment, and take back what a lost one had.

The engine's own means of restarting workers are not used: Ray's wait for ever for the cores of a node that is gone.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any, Deque, Dict, Generic, Iterator, List, Optional, Protocol, Sequence, TypeVar, Union

from ..._log import get_logger
from ...errors import WorkerLostError
from ..manifest import ShardRecord
from ..tasks import Task

MAX_LOSSES = 5  # of one shard, which may be the reason, for example if it takes too much memory
START_TIMEOUT_S = 600.0  # that no worker at all has started: a cluster that grows takes minutes
POLL_S = 1.0

logger = get_logger("repvgg_zoo.data")
W = TypeVar("W")


class LostError(Exception):
    """A worker has ended without an answer: its process, its machine, or the network between."""


class Fleet(Protocol[W]):
    """How an engine starts workers, talks to them, and notices that one is gone.

    A worker that was started answers once, with None, when it is ready for tasks.
    """

    def start(self) -> W:
        """Begin to start a worker."""

    def submit(self, worker: W, task: Task) -> None:
        """Give a task to a worker that has none; it does not matter if the worker is gone."""

    def wait(self, workers: Sequence[W], timeout: float) -> List[W]:
        """Return the workers that have answered or are gone; wait for one of them, at most ``timeout`` seconds."""

    def answer(self, worker: W) -> Union[ShardRecord, Exception, None]:
        """Return a worker's answer, which ``wait`` has announced; raise LostError if it is gone."""

    def stop(self, worker: W) -> None:
        """End a worker."""


class _State(Generic[W]):
    """Which worker has which task; a worker without one is starting."""

    def __init__(self, tasks: Sequence[Task], max_losses: int) -> None:
        self.max_losses = max_losses
        self.waiting: Deque[Task] = deque(tasks)
        self.tasks: Dict[W, Optional[Task]] = {}
        self.losses: Counter[Optional[int]] = Counter()

    @property
    def is_unfinished(self) -> bool:
        return bool(self.waiting) or self.has_busy

    @property
    def has_busy(self) -> bool:
        return any(task is not None for task in self.tasks.values())

    def take_back(self, task: Optional[Task], error: LostError) -> None:
        """Put a lost worker's task first; raise WorkerLostError if that has happened to it too often."""
        key = None if task is None else task.index
        what = "a worker that was starting" if task is None else f"the worker that had shard {task.name}"
        logger.warning("%s was lost: %s", what, error)
        self.losses[key] += 1
        if task is not None:
            self.waiting.appendleft(task)
            self.losses[None] = 0  # workers do start
        # Workers that start together may be lost together, with their machine.
        if self.losses[key] >= self.max_losses + (len(self.tasks) if task is None else 0):
            raise WorkerLostError(
                f"{what} was lost {self.losses[key]} times: {error}",
                shard=None if task is None else task.name,
                hint="is there enough memory for each worker? Fewer workers take less; run it again to resume",
            )


def share_out(
    fleet: Fleet[Any],
    tasks: Sequence[Task],
    workers: int,
    *,
    start_timeout: float = START_TIMEOUT_S,
    max_losses: int = MAX_LOSSES,
) -> Iterator[ShardRecord]:
    """Yield the record of each task as soon as a worker has finished it.

    Raises what a worker answers with, and WorkerLostError if the workers of one task are lost ``max_losses`` times, or
    if no worker starts in ``start_timeout`` seconds.
    """
    state: _State[Any] = _State(tasks, max_losses)
    try:
        for _ in range(min(workers, len(tasks))):
            state.tasks[fleet.start()] = None
        last_answer = time.monotonic()
        while state.is_unfinished:
            ready = fleet.wait(list(state.tasks), POLL_S)
            if ready or state.has_busy:
                last_answer = time.monotonic()
            elif time.monotonic() - last_answer > start_timeout:
                raise WorkerLostError(
                    f"no worker has started in {start_timeout:.0f} s",
                    hint="has the cluster a free core for each worker, and this package on each node?",
                )
            for worker in ready:
                task = state.tasks.pop(worker)
                try:
                    answer = fleet.answer(worker)
                except LostError as error:
                    fleet.stop(worker)
                    state.take_back(task, error)
                    if state.waiting:
                        state.tasks[fleet.start()] = None
                    continue
                if isinstance(answer, Exception):
                    fleet.stop(worker)
                    raise answer
                if state.waiting:
                    state.tasks[worker] = task = state.waiting.popleft()
                    fleet.submit(worker, task)
                else:
                    fleet.stop(worker)
                if answer is not None:
                    yield answer
    finally:
        for worker in state.tasks:
            fleet.stop(worker)
