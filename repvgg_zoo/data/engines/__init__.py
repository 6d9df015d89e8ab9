"""Engines of a run: each starts workers somewhere and hands out shards; none knows what a shard's job is.

An engine is a module with ``distribute(plan, tasks, workers, address)``, which yields the record of each task as soon
as it is finished, in any order, and raises what a worker raises.
"""

from __future__ import annotations

import importlib
from typing import Iterator, Mapping, Optional, Protocol, Sequence, Tuple

from ...errors import DependencyError
from ..manifest import ShardRecord
from ..tasks import Plan, Task

# Each with its module here, and the package that it needs, which is that of an extra.
ENGINES: Mapping[str, Tuple[str, Optional[str]]] = {
    "processes": ("processes", None),
    "ray": ("ray_core", "ray"),
    "dask": ("dask_distributed", "distributed"),
}


class Engine(Protocol):
    """The module of an engine."""

    def distribute(
        self, plan: Plan, tasks: Sequence[Task], workers: Optional[int], address: Optional[str]
    ) -> Iterator[ShardRecord]:
        """Yield the records of the tasks, computed by ``workers`` workers, of the cluster at ``address`` if any."""


def load_engine(name: str) -> Engine:
    """Return the module of an engine; raise DependencyError if its package is not installed."""
    module, package = ENGINES[name]
    try:
        if package is not None:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"engine={name!r} needs {error.name}, which is not installed",
            expected=package,
            hint=f"pip install 'repvgg-zoo[{name}]', on each node, in the same version",
        ) from error
    engine: Engine = importlib.import_module(f".{module}", __name__)
    return engine
