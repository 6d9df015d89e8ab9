"""Engines of a run: each starts workers somewhere and hands out shards; none knows what a shard's job is.

An engine is a module with ``distribute(plan, tasks, workers, address)``, which yields the record of each task as soon
as it is finished, in any order, and raises what a worker raises.
"""

from __future__ import annotations

import importlib
from typing import Iterator, Mapping, Optional, Protocol, Sequence

from ..manifest import ShardRecord
from ..tasks import Plan, Task

ENGINES: Mapping[str, str] = {"processes": "processes", "ray": "ray_core", "dask": "dask_distributed"}


class Engine(Protocol):
    """The module of an engine."""

    def distribute(
        self, plan: Plan, tasks: Sequence[Task], workers: Optional[int], address: Optional[str]
    ) -> Iterator[ShardRecord]:
        """Yield the records of the tasks, computed by ``workers`` workers, of the cluster at ``address`` if any."""


def load_engine(name: str) -> Engine:
    """Return the module of an engine; raise DependencyError if its package is not installed."""
    engine: Engine = importlib.import_module(f".{ENGINES[name]}", __name__)
    return engine
