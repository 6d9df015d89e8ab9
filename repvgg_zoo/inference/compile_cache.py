"""What is kept of a compilation: dumped graphs and a record of the choices, in the folder ``compiled`` of the cache.

A graph's file is named by the SHA-256 of its bytes and a record's by its key, and both get their names in one step
when they are whole. So processes that compile the same network at once cannot disturb each other: the graphs are the
same, and the last record wins. Everything here may be deleted at any time, and whatever is missing, damaged or cannot
be written is no error: the network is compiled anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from .graph import Structure

FORMAT = 3  # to be raised whenever a record would be read differently
DRAFT_SECONDS = 3600.0  # a draft older than this was left by a process that died
_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Record:
    """The choices of one compilation: ``plan`` is a plan's name.

    For Lite, ``graph`` is the SHA-256 of the dumped graph, and ``algorithms`` the table of those that were chosen.
    ``samples`` holds, for each output, some of the eager network's values for each image that the network checks
    itself with.
    """

    plan: str
    graph: Optional[str]
    algorithms: Optional[bytes]
    structure: Structure
    samples: Tuple[NDArray[Any], ...]


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of the record of these facts, which must be all that the choices depend on."""
    return _sha256(json.dumps([FORMAT, facts], sort_keys=True).encode())[:32]


class Store:
    """The folder of compiled networks below a cache folder."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "compiled"

    def read(self, key: str) -> Optional[Record]:
        """The record of this key, or None if there is none that is whole."""
        try:
            data = self._record(key).read_bytes()
        except OSError:
            return None
        record = _decoded(data)
        if record is None:
            logger.warning("%s is damaged; compiling anew", self._record(key))
        return record

    def find_graph(self, sha256: str) -> Optional[Path]:
        """The file of this graph if its bytes are those that were written: Lite may end the process on any others."""
        path = self._graph(sha256)
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as stream:
                for chunk in iter(lambda: stream.read(_CHUNK), b""):
                    digest.update(chunk)
        except OSError:
            return None
        if digest.hexdigest() != sha256:
            logger.warning("%s is damaged; compiling anew", path)
            return None
        return path

    def keep(self, key: str, record: Record) -> None:
        """Writes a record."""
        self._publish(self._record(key), _encoded(record))

    def keep_graph(self, sha256: str, data: bytes) -> Optional[Path]:
        """Writes a graph and gives its file, None if it cannot be written."""
        path = self._graph(sha256)
        return path if self._publish(path, data) else None

    def _record(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _graph(self, sha256: str) -> Path:
        return self.folder / f"{sha256[:32]}.mge"

    def _publish(self, path: Path, data: bytes) -> bool:
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            draft.write_bytes(data)
            draft.replace(path)
            return True
        except OSError as error:
            logger.debug("nothing kept in %s: %s", self.folder, error)
            with suppress(OSError):
                draft.unlink()
            return False

    def _sweep(self) -> None:
        for path in self.folder.glob("*.new"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > DRAFT_SECONDS:
                    path.unlink()


class Graphs:
    """The graphs of a compilation under way: in the store, or in memory if they cannot be written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._graphs: Dict[str, Union[Path, bytes]] = {}

    def add(self, data: bytes) -> str:
        """Takes a dumped graph and gives its SHA-256."""
        sha256 = _sha256(data)
        self._graphs[sha256] = self._store.keep_graph(sha256, data) or data
        return sha256

    def find(self, sha256: str) -> Union[Path, bytes]:
        """The graph's file, or its bytes."""
        return self._graphs[sha256]


def _encoded(record: Record) -> bytes:
    body = {
        "plan": record.plan,
        "graph": record.graph,
        "algorithms": base64.b64encode(record.algorithms or b"").decode("ascii"),
        "structure": [record.structure.kind, list(record.structure.keys)],
        "samples": [array.tolist() for array in record.samples],
    }
    return json.dumps({"body": body, "sha256": _body_digest(body)}).encode()


def _decoded(data: bytes) -> Optional[Record]:
    try:
        whole = json.loads(data)
        body = whole["body"]
        if whole["sha256"] != _body_digest(body):
            return None
        kind, keys = body["structure"]
        graph, algorithms = body["graph"], base64.b64decode(body["algorithms"])
        samples = tuple(np.array(values, np.float32) for values in body["samples"])
        return Record(body["plan"], graph, algorithms or None, Structure(kind, tuple(keys)), samples)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _body_digest(body: Any) -> str:
    return _sha256(json.dumps(body, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
