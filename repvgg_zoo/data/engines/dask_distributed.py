"""The engine "dask": tasks of Dask's distributed scheduler, which starts lost ones again by itself.

Sometimes also finished ones, which the commit of shards makes harmless.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack
from typing import Any, Iterator, Optional, Sequence, Union

from ..._cpu import usable_cores
from ...errors import ArgumentError, WorkerLostError
from ..manifest import ShardRecord
from ..tasks import Plan, Task
from ..worker import Worker
from .pool import START_TIMEOUT_S

_local = threading.local()  # a thread of a worker has a network of its own


def distribute(
    plan: Plan, tasks: Sequence[Task], workers: Optional[int], address: Optional[str]
) -> Iterator[ShardRecord]:
    """Yield the records of the tasks, computed by the cluster whose scheduler has the address, or by this machine.

    ``workers`` is for the latter: a cluster decides by itself how many it has.
    """
    import distributed

    with ExitStack() as stack:
        if address is None:
            cluster = distributed.LocalCluster(
                n_workers=workers or usable_cores(), threads_per_worker=1, dashboard_address=None
            )
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        else:
            try:
                client = stack.enter_context(distributed.Client(address))
            except (OSError, ValueError) as error:
                raise ArgumentError(
                    f"the Dask scheduler at {address} cannot be reached: {error}",
                    expected="an address such as tcp://host:8786",
                    actual=address,
                    hint="dask scheduler starts one; without an address, Dask runs on this machine alone",
                ) from error
        client.wait_for_workers(1, timeout=START_TIMEOUT_S)
        # A few more than there are workers, so that none waits, and what is lost with the driver is little.
        remaining = iter(tasks)
        first = itertools.islice(remaining, 2 * sum(client.nthreads().values()))
        futures = distributed.as_completed(submit(client, plan, task) for task in first)
        for future in futures:
            try:
                answer = future.result()
            except distributed.scheduler.KilledWorker as error:
                raise WorkerLostError(
                    f"a shard's worker was lost again and again: {error}",
                    hint="is there enough memory for each worker? Run it again to resume",
                ) from error
            if isinstance(answer, Exception):
                raise answer
            for task in itertools.islice(remaining, 1):
                futures.add(submit(client, plan, task))
            yield answer


def submit(client: Any, plan: Plan, task: Task) -> Any:
    """Return the future of a shard; equal tasks are not one to Dask, as a run may be repeated on the same cluster."""
    return client.submit(run_task, plan, task, pure=False)


def run_task(plan: Plan, task: Task) -> Union[ShardRecord, Exception]:
    """Compute and commit a shard in a thread of a Dask worker."""
    worker: Optional[Worker] = getattr(_local, "worker", None)
    if worker is None or worker.plan != plan:
        worker = Worker(plan)
        error = worker.attempt(worker.prepare)
        if error is not None:
            return error
        _local.worker = worker
    return worker.attempt(lambda: worker.run(task))
