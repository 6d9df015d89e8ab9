"""The engine "processes": fresh processes on this machine, one for each core.

They are started as programs of their own rather than by multiprocessing, which would run the caller's script again in
each of them. A worker whose driver is gone finishes its shard and ends.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

from ..._cpu import usable_cores
from ...errors import ArgumentError
from ..manifest import ShardRecord
from ..tasks import Plan, Task
from ..worker import Worker
from .pool import LostError, share_out

STOP_TIMEOUT_S = 10.0


def distribute(
    plan: Plan, tasks: Sequence[Task], workers: Optional[int], address: Optional[str]
) -> Iterator[ShardRecord]:
    """Yield the records of the tasks, computed by processes of this machine, by default one for each core."""
    assert address is None, address
    return share_out(ProcessFleet(plan), tasks, workers or usable_cores())


class ProcessFleet:
    """Processes that are connected by a pipe each, whose end is the news that a process has died."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.processes: Dict[Connection, subprocess.Popen[bytes]] = {}

    def start(self) -> Connection:
        ours, theirs = Pipe()
        number = theirs.fileno()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({number})"
        with theirs:
            self.processes[ours] = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=(number,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self.submit(ours, self._plan)
        return ours

    def submit(self, worker: Connection, task: Any) -> None:
        with suppress(OSError):
            worker.send(task)

    def wait(self, workers: Sequence[Connection], timeout: float) -> List[Connection]:
        return [worker for worker in wait(workers, timeout) if isinstance(worker, Connection)]

    def answer(self, worker: Connection) -> Union[ShardRecord, Exception, None]:
        try:
            answer: Union[ShardRecord, Exception, None] = worker.recv()
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                code = self.processes[worker].wait(STOP_TIMEOUT_S)
                reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise LostError(f"its process ended with {reason}") from None
            raise LostError("its process has closed the connection") from None
        return answer

    def stop(self, worker: Connection) -> None:
        process = self.processes.pop(worker)
        worker.close()
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(descriptor: int) -> None:
    """Be a worker: read the plan and then tasks from a pipe, and answer each of them, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the driver ends this one
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):  # the driver is gone
        plan = connection.recv()
        worker = Worker(plan)
        connection.send(worker.attempt(worker.prepare))
        while True:
            connection.send(run_pickled(worker, connection.recv_bytes()))


def run_pickled(worker: Worker, content: bytes) -> Union[ShardRecord, Exception]:
    """Return a worker's answer to a task."""
    return worker.attempt(lambda: worker.run(unpickle(content)))


def unpickle(content: bytes) -> Task:
    """Return a task; raise ArgumentError for a shard whose class is the caller's own and in no module."""
    try:
        task: Task = pickle.loads(content)
    except (AttributeError, ImportError) as error:
        raise ArgumentError(
            f"a worker cannot unpickle a shard: {error}",
            expected="a class of a module",
            hint="define it in a module that workers can import, which the main script is not",
        ) from error
    return task
