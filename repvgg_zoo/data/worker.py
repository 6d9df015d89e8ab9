"""Worker: computes and commits shards with one network, in whatever process or thread an engine has started it."""

from __future__ import annotations

import pickle
from typing import Callable, Optional, TypeVar, Union

from ..errors import IntegrityError
from ..image.preprocess import metadata_of, open_model
from ..inference.api import compile
from .jobs import JOBS, ComputeShard
from .manifest import ShardRecord, commit
from .output_folder import OutputFolder
from .pooled import pool_features
from .tables import encode
from .tasks import Plan, Task, model_sha256

T = TypeVar("T")


class Worker:
    """A network on one thread that computes shards: ``prepare`` opens it, ``run`` computes a shard and commits it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._compute: Optional[ComputeShard] = None

    def prepare(self) -> None:
        """Open the network; raise IntegrityError if it is another one than the manifest's."""
        actual = model_sha256(self.plan.model)
        if actual != self.plan.model_sha256:
            raise IntegrityError(
                f"{self.plan.model} is another model on this worker's machine than that of the run",
                path=self.plan.model,
                expected=self.plan.model_sha256,
                actual=actual,
                hint="copy the same file to each machine, or begin another run with the new one",
            )
        job = JOBS[self.plan.job]
        model = open_model(self.plan.model)
        metadata = metadata_of(model)
        assert metadata.preprocessing is not None
        network = compile(
            pool_features(model) if job.needs_features else model,
            threads=1,
            batch_size=self.plan.options["batch_size"],
            image_size=metadata.preprocessing.image_size,
        )
        # That of a network without its head may lack the preprocessing of the publisher.
        network.metadata = metadata
        self._compute = job.prepare(model, network, self.plan.options)

    def run(self, task: Task) -> ShardRecord:
        """Compute the images of a shard, commit its rows, and return its record.

        Raises IntegrityError if the shard's files are not those of the manifest, and what its images raise.
        """
        assert self._compute is not None
        # A node that does not see the files would otherwise be done with all shards in no time: with errors.
        digest = task.shard.digest()
        if digest != task.digest:
            raise IntegrityError(
                f"the files of shard {task.name} are others on this worker's machine than those of the run, or missing",
                expected=task.digest,
                actual=digest,
                hint="give each machine the same files under the same path, and leave them alone during a run",
            )
        result = self._compute(task.shard)
        encoded = encode(result.table, self.plan.format)
        files = {f"{task.index:06d}{suffix}": data for suffix, data in encoded.items()}
        sizes = {name: len(data) for name, data in files.items()}
        record = ShardRecord(task.index, len(result.table.rows), sizes, result.errors, result.counts)
        commit(OutputFolder(self.plan.output), self.plan.manifest_sha256, record, files)
        return record

    def attempt(self, function: Callable[[], T]) -> Union[T, Exception]:
        """Return what a function returns, or its error in a form that another process can read."""
        try:
            return function()
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                return RuntimeError(f"{type(error).__name__}: {error}")
            return error
