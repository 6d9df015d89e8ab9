"""What a run has to do, fixed before it begins (the manifest), and what was done (a record for each shard).

The commit of a shard: its rows are written to files beside the manifest, each under its name by rename, and then its
record in the same way. A shard is finished if its record belongs to the manifest and its files have the sizes that the
record says. So a process can be killed at any moment, a shard can be computed twice, even at the same time, and each
row still counts once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

from .._redact import redact
from ..errors import ArgumentError
from .output_folder import OutputFolder

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """A run: the job, the network, how rows are written, and the shards, as pairs of name and digest.

    ``options`` are what else the rows depend on.
    """

    job: str
    model: str
    model_sha256: str
    format: str
    options: Mapping[str, Any]
    shards: Tuple[Tuple[str, str], ...]
    repvgg_zoo: str
    version: int = MANIFEST_VERSION

    def to_json(self) -> bytes:
        """Return the content of its file; equal manifests have equal ones."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @property
    def sha256(self) -> str:
        """The digest that the records of its shards have."""
        return hashlib.sha256(self.to_json()).hexdigest()


@dataclass(frozen=True)
class ShardRecord:
    """What was done for a shard: ``files`` are sizes by name, ``counts`` are integers of the job, which add up.

    ``errors`` are the keys of images that could not be read, with the reason.
    """

    shard: int
    images: int
    files: Mapping[str, int]
    errors: Tuple[Tuple[str, str], ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)


def begin(folder: OutputFolder, manifest: Manifest) -> None:
    """Write the manifest into the folder, or check that it is the one that is there.

    Raises ArgumentError if the folder has that of another run.
    """
    folder.prepare()
    if folder.read(MANIFEST) is None:
        folder.write(MANIFEST, manifest.to_json())
    # Read also if it was written just now, as another process may have begun another run meanwhile.
    content = folder.read(MANIFEST) or b""
    if content != manifest.to_json():
        raise _other_run(folder, content, manifest)


def record_name(index: int) -> str:
    """Return the name of a shard's record."""
    return f"{index:06d}.json"


def commit(folder: OutputFolder, manifest_sha256: str, record: ShardRecord, files: Mapping[str, bytes]) -> None:
    """Write a shard's files, and then its record, which makes it finished."""
    for name, data in files.items():
        folder.write(name, data)
    content = {"manifest": manifest_sha256, **asdict(record)}
    folder.write(record_name(record.shard), json.dumps(content, sort_keys=True).encode())


def finished_shard(
    folder: OutputFolder, manifest_sha256: str, index: int, sizes: Mapping[str, int]
) -> Optional[ShardRecord]:
    """Return the record of a shard that is finished, or None; ``sizes`` are those of the folder's files."""
    name = record_name(index)
    if name not in sizes:
        return None
    record_bytes = folder.read(name) or b""
    try:
        content = json.loads(record_bytes)
        if content.pop("manifest") != manifest_sha256:
            return None
        record = ShardRecord(**{**content, "errors": tuple(map(tuple, content["errors"]))})
    except (ValueError, TypeError, KeyError, AttributeError):  # a damaged file is written again
        return None
    return record if all(sizes.get(file) == size for file, size in record.files.items()) else None


def _other_run(folder: OutputFolder, content: bytes, manifest: Manifest) -> ArgumentError:
    path = f"{folder.path}/{MANIFEST}"
    expected = json.loads(manifest.to_json())
    try:
        actual: Dict[str, Any] = dict(json.loads(content))
    except (ValueError, TypeError):
        actual = {}
    differing = [key for key in expected if actual.get(key) != expected[key]]
    return ArgumentError(
        f"{redact(folder.path)} has the output of another run: {', '.join(differing)} differ",
        path=redact(path),
        expected={key: _short(expected[key]) for key in differing},
        actual={key: _short(actual.get(key)) for key in differing},
        hint="pass another folder, or the arguments with which that run was begun",
    )


def _short(value: Any) -> Any:
    """Return a value of a manifest; of the shards how many there are, and the first one."""
    return f"{len(value)} shards, the first {value[0]}" if isinstance(value, list) and value else value
