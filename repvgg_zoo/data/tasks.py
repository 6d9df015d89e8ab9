"""What a run tells its workers: the plan, once, and a task for each shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from .._digest import hash_file
from ..hub import fetch_verified
from ..registry.model_or_file import find_model_or_file
from ..registry.names import find_checkpoint
from .samples import Shard


@dataclass(frozen=True)
class Plan:
    """What every worker of a run is told: the manifest's digest and parts, without its shards."""

    job: str
    model: str
    model_sha256: str
    format: str
    options: Mapping[str, Any]
    output: str
    manifest_sha256: str


@dataclass(frozen=True)
class Task:
    """A shard, with its index and its digest in the manifest."""

    index: int
    shard: Shard
    digest: str

    @property
    def name(self) -> str:
        """The shard's name."""
        return self.shard.name


def model_sha256(model: str) -> str:
    """Return the digest of a file, or of a name's checkpoint, which is fetched; raises what ``fetch`` raises."""
    target = find_model_or_file(model)
    if isinstance(target, Path):
        return hash_file(target)
    return fetch_verified(find_checkpoint(*target).file).sha256
