"""Shared by the hub's tests: a scripted server, a clock that never sleeps, and an empty cache."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from repvgg_zoo._file_state import FileState
from repvgg_zoo.hub import Services, Settings, cache, cache_filename, fetch_file
from repvgg_zoo.hub.download import Limits
from repvgg_zoo.hub.http import RequestsClient
from repvgg_zoo.registry.specs import FileSpec

from .server import Server, TlsServer

BODY = random.Random(7).getrandbits(8 * 3_000_000).to_bytes(3_000_000, "little")
OTHER = BODY[:-1] + bytes([BODY[-1] ^ 1])


class FakeClock:
    """A clock that moves only when somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.slept: List[float] = []

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def jitter(self) -> float:
        return 1.0


class Zoo:
    """A cache folder, a clock, and a fetch that uses them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = FakeClock()

    def services(self, **changed: Any) -> Services:
        services = {"clock": self.clock, "client": RequestsClient(20.0, 20.0), "limits": Limits(), **changed}
        return Services(**services)

    def fetch(self, file: FileSpec, *, settings: Optional[Settings] = None, **arguments: Any) -> Path:
        services = arguments.pop("services", None) or self.services()
        return fetch_file(file, settings=settings or Settings(cache_dir=self.root), services=services, **arguments)

    def names(self) -> List[str]:
        """What is in the cache folder except the tag and locks."""
        if not self.root.exists():
            return []
        names = (path.name for path in self.root.iterdir() if path.suffix != ".lock" and path.name != "CACHEDIR.TAG")
        return sorted(names)

    def parts(self) -> List[Path]:
        return sorted(self.root.glob("*.part"))


def spec(*sources: str, body: bytes = BODY, name: str = "a.bin", **changed: Any) -> FileSpec:
    """A file with a full digest; pass ``sha256=None`` and so on for less."""
    fields = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), **changed}
    return FileSpec(name, tuple(sources), **fields)


FILE = spec("http://127.0.0.1:1/a.bin")  # no server listens on port 1
NAME = cache_filename(FILE)


class NoHttp:
    """A network that must not be used."""

    def get(self, source: Any, headers: Any) -> Any:
        raise AssertionError("the network was used")

    def close(self) -> None:
        pass


def fill(root: Path, body: bytes = BODY, stamped: bool = True) -> Path:
    """A cache folder that holds the file."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / NAME
    path.write_bytes(body)
    if stamped:
        plant_stamp(path, FILE.sha256 or "")
    return path


def stamp_file(path: Path) -> Path:
    """The stamp beside a file of the user's own cache."""
    return cache.stamp_path(path, path.parent)


def plant_stamp(path: Path, sha256: str, integrity: str = "sha256") -> None:
    """Write a current stamp with any digest beside a file."""
    cache.write_stamp(stamp_file(path), cache.Stamp(sha256, integrity, FileState.of(path.stat())))


def snapshot(root: Path) -> Dict[str, Any]:
    """Every name below a folder with its inode, size and times of change."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns)
        for path in [root, *root.rglob("*")]
    }


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    running = TlsServer(tmp_path_factory.mktemp("tls"))
    yield running
    running.close()


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith(("REPVGG_ZOO_", "HF_", "AWS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
