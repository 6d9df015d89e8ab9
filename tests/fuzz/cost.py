"""A fuzz guided by cost: it keeps the inputs that take most memory or time for their size, and changes them further.

``python -m tests.fuzz.cost READER SECONDS FOLDER [SEED]`` runs it for one row of ``readers.READERS``, in a process of
limited memory and time. Each input is written to FOLDER before it is read, so one that ends the process is still
there. Memory is what Python and NumPy allocate (tracemalloc), or what the process grows by where a C library allocates.
"""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence

MAX_INPUT_BYTES = 1 << 19
POOL = 40  # inputs kept for each measure
# A generous factor, for slow machines and for tracemalloc: quadratic work takes minutes where this allows seconds.
SECONDS, SECONDS_PER_BYTE = 3.0, 100e-6


class Reader(NamedTuple):
    """What is fuzzed.

    ``make_run`` returns, for a folder, the function that reads one input; it returns the size that the cost is compared
    with, or None for the input's own, and may raise only what it catches. ``max_bytes`` is the memory that is allowed
    for a size.
    """

    make_run: Callable[[Path], Callable[[bytes], Optional[int]]]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    max_bytes: Callable[[int], int]
    in_c: bool = False  # its memory is not Python's


class Cost(NamedTuple):
    bytes: int
    seconds: float
    size: int


class Result(NamedTuple):
    tried: int
    additions: int
    worst_memory: Cost
    worst_time: Cost


def fuzz(reader: Reader, folder: Path, seconds: float, seed: int) -> Result:
    """Return what was tried and the worst of it; raise AssertionError for an input that costs more than is allowed."""
    chance = random.Random(seed)
    run = reader.make_run(folder)
    pools: List[List[object]] = [[], []]
    worst = [Cost(0, 0.0, 1), Cost(0, 0.0, 1)]
    tried = additions = 0
    run(reader.seeds[0])  # imports what it needs
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        known = [content for pool in pools for _, content in pool]  # type: ignore[misc]
        content = reader.seeds[tried] if tried < len(reader.seeds) else None
        if content is None:
            source = chance.choice(known) if known and chance.random() < 0.7 else chance.choice(reader.seeds)
            content = mutate(chance, source, reader.tokens)[:MAX_INPUT_BYTES]
        tried += 1
        (folder / "input").write_bytes(content)
        cost = measure(run, content, reader.in_c)
        if cost.bytes > reader.max_bytes(cost.size):
            # A table of the interpreter's, such as that of interned strings, may have grown just then: 3 MB, once.
            cost = measure(run, content, reader.in_c)
        assert cost.bytes <= reader.max_bytes(cost.size), f"{cost}: {reader.max_bytes(cost.size)} bytes are allowed"
        allowed = SECONDS + SECONDS_PER_BYTE * len(content)
        assert cost.seconds <= allowed, f"{cost}: {allowed:.1f} s are allowed"
        for index, ratio in enumerate((cost.bytes / (cost.size + 1000), cost.seconds / (len(content) + 1000))):
            pool = pools[index]
            if len(pool) < POOL or ratio > pool[-1][0]:  # type: ignore[index]
                pool.append((ratio, content))
                pool.sort(key=lambda item: -item[0])  # type: ignore[index]
                del pool[POOL:]
                additions += 1
                if pool[0] == (ratio, content):
                    worst[index] = cost
    return Result(tried, additions, *worst)


def measure(run: Callable[[bytes], Optional[int]], content: bytes, in_c: bool) -> Cost:
    """Return what one input costs."""
    started = time.process_time()
    if in_c:
        before = _reset_peak()
        size = run(content)
        peak = _peak() - before
    else:
        tracemalloc.start()
        try:
            size = run(content)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return Cost(peak, time.process_time() - started, len(content) if size is None else size)


def mutate(chance: random.Random, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """Return a changed copy: bits, bytes, tokens and ranges of it replaced, removed, moved and repeated."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        place, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        kind = chance.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = chance.randrange(256)
        elif kind == 2:
            del data[place : place + size]
        elif kind == 3:
            data[place:place] = chance.choice(tokens)
        elif kind == 4:
            token = chance.choice(tokens)
            data[place : place + len(token)] = token
        elif kind == 5:
            start = chance.randrange(len(data) + 1)
            data[place:place] = data[start : start + size]
        elif kind == 6 and chance.random() < 0.2:
            del data[place:]
        elif kind == 7:  # where cost grows faster than size, this is what shows it
            data[place:place] = bytes(data[place : place + size]) * chance.choice((2, 10, 100, 1000, 10_000))
            del data[MAX_INPUT_BYTES:]
    return bytes(data)


def _reset_peak() -> int:
    """Set the process's peak memory back to what it has now (Linux), and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def main() -> None:
    import resource

    from .readers import READERS

    name, seconds, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else time.time_ns()
    print(f"REPVGG_ZOO_FUZZ_SEED={seed}", file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    limit = int(seconds) * 2 + 120
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    result = fuzz(READERS[name], folder, seconds, seed)
    memory, slowest = result.worst_memory, result.worst_time
    print(
        f"{name}: {result.tried} inputs, {result.additions} kept; most memory {memory.bytes} bytes for {memory.size}, "
        f"{memory.bytes / memory.size:.1f} a byte; most time {slowest.seconds:.3f} s for {slowest.size} bytes"
    )


if __name__ == "__main__":
    main()
