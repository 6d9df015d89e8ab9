"""How fast bytes get from a local nginx into a verified file: our loader against curl, pooch and huggingface_hub.

``python -m benchmarks.download`` serves a file of 500 MB with a real nginx on 127.0.0.1 and fetches it with each client
in turn, several rounds, each time in a new process with an empty cache; imports are not counted. A client that is not
installed is left out. It also measures a cached file, and the peak memory above that before the call.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from .nginx import Nginx

Result = Dict[str, float]

SHELL = {
    "curl piped to sha256sum, no file": "curl -sS --cacert {ca} {url} | sha256sum",
    "curl to a file, then sha256sum": "curl -sS --cacert {ca} -o {folder}/file {url} && sha256sum {folder}/file",
    "curl piped to tee and sha256sum": "curl -sS --cacert {ca} {url} | tee {folder}/file | sha256sum",
}


def repvgg_zoo(job: Dict[str, Any]) -> Callable[[], object]:
    from repvgg_zoo.hub import Settings, fetch_file
    from repvgg_zoo.registry.specs import FileSpec

    file = FileSpec("big.bin", (job["url"],), job["size"], job["sha256"])
    settings = Settings(cache_dir=Path(job["folder"]))
    return lambda: fetch_file(file, settings=settings)


def pooch(job: Dict[str, Any]) -> Callable[[], object]:
    retrieve = importlib.import_module("pooch").retrieve
    return lambda: retrieve(job["url"], known_hash=f"sha256:{job['sha256']}", path=job["folder"])


def huggingface_hub(job: Dict[str, Any]) -> Callable[[], object]:
    """It checks the size and no digest, so this is a lower bound."""
    os.environ.update(HF_ENDPOINT=job["url"].rsplit("/", 1)[0], HF_HUB_DISABLE_XET="1")
    download = importlib.import_module("huggingface_hub").hf_hub_download
    return lambda: download("zoo/files", "big.bin", cache_dir=job["folder"])


PYTHON = {
    "repvgg_zoo": repvgg_zoo,
    "pooch": pooch,
    "huggingface_hub (no digest)": huggingface_hub,
}


def measure(name: str, job: Dict[str, Any]) -> Result:
    """In the child process: the seconds of a first and a second call, and the peak memory above that before."""
    import requests  # noqa: F401 - so that nobody's time includes its import

    fetch = PYTHON[name](job)
    before = peak_memory(reset=True)
    start = time.perf_counter()
    fetch()
    first = time.perf_counter()
    fetch()
    second = time.perf_counter()
    return {"seconds": first - start, "cached": second - first, "peak": peak_memory() - before}


def peak_memory(reset: bool = False) -> float:
    """Return the peak memory of this process since the last reset, in bytes; nan where the system cannot tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return 1024.0 * int(status.split("VmHWM:")[1].split()[0])


def run(name: str, job: Dict[str, Any]) -> Result:
    """Run one client once, in its own process; raise RuntimeError if it fails."""
    if name in SHELL:
        start = time.perf_counter()
        done = subprocess.run(SHELL[name].format(**job), shell=True, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        if not done.stdout.startswith(job["sha256"]):
            raise RuntimeError(f"{name} gave another digest: {done.stdout}{done.stderr}")
        return {"seconds": seconds}
    command = [sys.executable, "-m", "benchmarks.download", "--child", json.dumps([name, job])]
    env = {**os.environ, "REQUESTS_CA_BUNDLE": job["ca"], "SSL_CERT_FILE": job["ca"]}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    result: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_interleaved(nginx: Nginx, home: Path, rounds: int, tls: bool) -> List[Tuple[str, List[Result]]]:
    """Run every client in every round, so that background load affects all alike."""
    results: Dict[str, List[Result]] = {name: [] for name in [*PYTHON, *SHELL]}
    for _ in range(rounds):
        for name in list(results):
            folder = home / "cache"
            folder.mkdir()
            file = nginx.file(tls=tls)
            job = {"url": file.sources[0], "size": file.size, "sha256": file.sha256}
            if name.startswith("huggingface_hub"):
                job["url"] = nginx.url("/big.bin", tls=tls)
            try:
                results[name].append(run(name, {**job, "folder": str(folder), "ca": str(nginx.ca)}))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                del results[name]
            finally:
                shutil.rmtree(folder)
    return list(results.items())


def report(title: str, results: List[Tuple[str, List[Result]]]) -> None:
    print(f"\n{title}\n")
    print("| client | min s | median s | cached ms | peak MB |\n|---|---|---|---|---|")
    for name, runs in results:
        seconds = [run["seconds"] for run in runs]
        cached = f"{1000 * min(run['cached'] for run in runs):.2f}" if "cached" in runs[0] else ""
        peak = f"{max(run['peak'] for run in runs) / 1e6:.0f}" if "peak" in runs[0] else ""
        print(f"| {name} | {min(seconds):.2f} | {statistics.median(seconds):.2f} | {cached} | {peak} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500_000_000, help="bytes of the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory() as folder:
        nginx = Nginx(Path(folder) / "nginx", options.size)
        try:
            for tls in (False, True):
                title = f"{options.size / 1e6:.0f} MB over {'TLS' if tls else 'plain HTTP'}, {options.rounds} rounds"
                report(title, run_interleaved(nginx, Path(folder), options.rounds, tls))
        finally:
            nginx.close()


if __name__ == "__main__":
    main()
