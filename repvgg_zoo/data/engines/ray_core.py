"""The engine "ray": actors of Ray core on the nodes of a cluster, one core each.

Ray never restarts an actor or a call here (``max_restarts=0``, ``max_task_retries=0``): those wait for ever if the node
with the cores is gone. ``pool.share_out`` starts another actor instead, on whichever node has a free core.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

from ..._cpu import usable_cores
from ...errors import ArgumentError, DependencyError
from ..manifest import ShardRecord
from ..tasks import Plan, Task
from ..worker import Worker
from .pool import START_TIMEOUT_S, LostError, share_out


def distribute(
    plan: Plan,
    tasks: Sequence[Task],
    workers: Optional[int],
    address: Optional[str],
    *,
    start_timeout: float = START_TIMEOUT_S,
) -> Iterator[ShardRecord]:
    """Yield the records of the tasks, computed by actors, by default one for each core of the cluster.

    ``address`` is that of a cluster, "auto" for the one that this machine belongs to; without it, this machine is one.
    A process that has called ``ray.init`` stays with its own.
    """
    import ray

    was_connected = ray.is_initialized()
    if not was_connected:
        # Never without an address, as ray then takes what a file in /tmp says, which outlives its cluster.
        options: Dict[str, Any] = {"log_to_driver": False}
        if address is None:
            options.update(num_cpus=workers or usable_cores(), include_dashboard=False)
        try:
            ray.init(address=address or "local", **options)
        except (ConnectionError, ValueError) as error:
            one_line = " ".join(str(error).split())
            raise ArgumentError(
                f"the Ray cluster at {address or 'local'} cannot be reached: {one_line}",
                expected="'auto', or host:port",
                actual=address,
                hint="ray start --head starts one; without an address, Ray runs on this machine alone",
            ) from error
    try:
        cores = int(ray.cluster_resources().get("CPU", 0))
        yield from share_out(ActorFleet(plan), tasks, workers or max(cores, 1), start_timeout=start_timeout)
    finally:
        if not was_connected:
            ray.shutdown()


class ActorFleet:
    """Actors, each with at most one call that has not been answered."""

    def __init__(self, plan: Plan) -> None:
        import ray

        self._ray: Any = ray
        self._actor_class: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Actor)
        self._plan = plan
        self._calls: Dict[Any, Any] = {}

    def start(self) -> Any:
        actor = self._actor_class.remote(self._plan)
        self._calls[actor] = actor.prepare.remote()
        return actor

    def submit(self, worker: Any, task: Task) -> None:
        self._calls[worker] = worker.run.remote(task)

    def wait(self, workers: Sequence[Any], timeout: float) -> List[Any]:
        by_call = {self._calls[worker]: worker for worker in workers}
        ready, _ = self._ray.wait(list(by_call), num_returns=1, timeout=timeout)
        return [by_call[call] for call in ready]

    def answer(self, worker: Any) -> Union[ShardRecord, Exception, None]:
        exceptions = self._ray.exceptions
        try:
            answer: Union[ShardRecord, Exception, None] = self._ray.get(self._calls[worker])
        except exceptions.RayTaskError as error:
            # An actor returns its own errors, so this one is from before it ran.
            return DependencyError(
                f"a node cannot run this package: {error.cause}", hint="install the same versions on each node"
            )
        except exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise LostError(lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1].strip()}") from None
        return answer

    def stop(self, worker: Any) -> None:
        self._calls.pop(worker)
        self._ray.kill(worker, no_restart=True)


class Actor:
    """A worker in an actor; its errors are answers, as Ray would wrap those that are raised."""

    def __init__(self, plan: Plan) -> None:
        self._worker = Worker(plan)

    def prepare(self) -> Optional[Exception]:
        """Open the network."""
        return self._worker.attempt(self._worker.prepare)

    def run(self, task: Task) -> Union[ShardRecord, Exception]:
        """Compute and commit a shard."""
        return self._worker.attempt(lambda: self._worker.run(task))
