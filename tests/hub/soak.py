"""A soak: downloads killed with SIGKILL at random moments and continued by four processes at once.

``python -m tests.hub.soak --downloads 200`` takes about ten minutes. Each download starts with an empty cache: one
process fetches from a web server that sends 40 MB a second and is killed, at a moment drawn from the whole time that a
fetch takes; then four processes start together and must all get the right bytes. It counts what the server sent, and
ends with an error if a wrong byte was published, a process failed or hung, a part was left, or the median run
transferred more than 1.5 times the file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import List

from repvgg_zoo.hub import cache_filename
from repvgg_zoo.registry.specs import FileSpec

from . import worker
from .server import Answer, Server

MOST = 1.5
CONCURRENT = 4
RATE = 40e6


def soak(server: Server, body: bytes, root: Path, downloads: int, locks: str = "real", seed: int = 0) -> List[float]:
    """Return the bytes that each download transferred, as parts of the file's size.

    Raises AssertionError if anything went wrong.
    """
    chance = random.Random(seed)
    url = server.serve("/big.bin", Answer(body, rate=RATE))
    file = FileSpec("big.bin", (url,), len(body), hashlib.sha256(body).hexdigest())
    typical = _time_of_one(file, root)
    shares = []
    for number in range(downloads):
        shutil.rmtree(root, ignore_errors=True)
        server.wait_until_idle()
        before = server.sent
        victim = worker.start(file, root, locks)
        time.sleep(chance.uniform(0.0, typical))
        victim.kill()
        victim.communicate()
        final = root / cache_filename(file)
        if final.exists():
            digest = hashlib.sha256(final.read_bytes()).hexdigest()
            assert digest == file.sha256, f"wrong bytes published in run {number}"
        others = [worker.start(file, root, locks) for _ in range(CONCURRENT)]
        for process in others:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, f"run {number}: {err}"
            assert out.strip() == file.sha256, f"run {number}: a process got wrong bytes"
        assert not list(root.glob("*.part")), f"run {number} left a part"
        server.wait_until_idle()
        shares.append((server.sent - before) / len(body))
    return shares


def _time_of_one(file: FileSpec, root: Path) -> float:
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()
    worker.start(file, root).communicate(timeout=60)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=int, default=200)
    parser.add_argument("--size", type=int, default=32_000_000, help="bytes of the file")
    parser.add_argument("--locks", choices=["real", "lying", "missing"], default="real")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        server = Server()
        try:
            body = os.urandom(options.size)
            shares = soak(server, body, Path(folder) / "cache", options.downloads, options.locks, options.seed)
        finally:
            server.close()
    median, worst = statistics.median(shares), max(shares)
    seconds = time.monotonic() - began
    print(
        f"{len(shares)} downloads in {seconds:.0f} s: median {median:.3f} of the file, worst {worst:.3f}, no wrong byte"
    )
    return 0 if median <= MOST or options.locks != "real" else 1


if __name__ == "__main__":
    sys.exit(main())
