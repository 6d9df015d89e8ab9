"""A process that fetches one file: ``python -m tests.hub.worker JSON``; prints the digest of the file that it gets.

JSON: ``root``, ``source``, ``size``, ``sha256``, and ``locks``: "real", "lying" (flock succeeds for everyone) or
"missing" (flock raises ENOSYS).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

from repvgg_zoo.hub import Settings, fetch_file
from repvgg_zoo.registry.specs import FileSpec


def start(file: FileSpec, root: Path, locks: str = "real", **options: Any) -> subprocess.Popen[str]:
    """Start such a process."""
    job = {"root": str(root), "source": file.sources[0], "size": file.size, "sha256": file.sha256, "locks": locks}
    command = [sys.executable, "-m", "tests.hub.worker", json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def main(job: Dict[str, Any]) -> None:
    import fcntl

    def missing(*args: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if job["locks"] == "lying":
        fcntl.flock = lambda *args: None
    elif job["locks"] == "missing":
        fcntl.flock = missing
    file = FileSpec("big.bin", (job["source"],), job["size"], job["sha256"])
    path = fetch_file(file, settings=Settings(cache_dir=Path(job["root"])))
    print(hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
