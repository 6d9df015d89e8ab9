"""Mutated files of every format, with bytes flipped, cut or inserted, end in a result or in our error.

REPVGG_ZOO_FUZZ_SECONDS is the time for each format (default 3).
"""

from __future__ import annotations

import os
import random
import sys
import time
import tracemalloc

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repvgg_zoo.checkpoints.formats import read_file
from repvgg_zoo.errors import CheckpointFormatError
from tests.checkpoints.fuzz_seeds import SEEDS, TOKENS
from tests.fuzz.cost import MAX_INPUT_BYTES, mutate


def holds_only_plain_values(value, depth=0):
    assert depth < 70
    if isinstance(value, dict):
        return all(
            type(key) in (str, int, bool) and holds_only_plain_values(item, depth + 1) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return all(holds_only_plain_values(item, depth + 1) for item in value)
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "biuf"
        value.sum(dtype=np.float64)  # touches every element: none may lie outside the file
        return True
    return value is None or isinstance(value, (bool, int, float, str, bytes, np.generic))


def check(path, content):
    path.write_bytes(content)
    try:
        format, tree = read_file(path)
    except CheckpointFormatError as error:
        if error.path != str(path) or not error.hint:
            raise AssertionError("the error lacks its path or hint") from error
        return False
    assert holds_only_plain_values(tree)
    if format == "safetensors":
        assert_the_library_reads_the_same(content, tree)
    return True


def assert_the_library_reads_the_same(content, tree):
    """Its checks of the header are the reference: what it refuses must not be read."""
    expected = dict(safetensors.deserialize(content))
    assert set(tree) == set(expected)
    for name, entry in expected.items():
        assert list(tree[name].shape) == entry["shape"]
        if entry["dtype"] != "BF16":
            assert tree[name].tobytes() == bytes(entry["data"])


@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_files_end_in_a_result_or_our_error_and_run_nothing(tmp_path, monkeypatch, kind, record_property):
    monkeypatch.chdir(tmp_path)
    seed = int(os.environ.get("REPVGG_ZOO_FUZZ_SEED", time.time_ns()))
    print(f"REPVGG_ZOO_FUZZ_SEED={seed}")  # shown when it fails; the file itself stays in tmp_path
    random_ = random.Random(seed)
    end = time.monotonic() + float(os.environ.get("REPVGG_ZOO_FUZZ_SECONDS", "3"))
    pool, tried, read = list(SEEDS[kind]), 0, 0
    with np.errstate(all="ignore"):
        while time.monotonic() < end:
            content = mutate(random_, random_.choice(pool), TOKENS)[:MAX_INPUT_BYTES]
            tried += 1
            if check(tmp_path / "file", content):
                read += 1
                if len(pool) < 2000 and len(content) < 10_000:
                    pool.append(content)  # what is still read is mutated further
    record_property("tried", tried)
    print(f"{kind}: {tried} tried, {read} of them read", file=sys.stderr)
    assert tried > 20
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # no canary


def pickled_values():
    array = st.builds(
        lambda n, code: np.arange(n).astype(code), st.integers(0, 5), st.sampled_from(["<f4", ">f8", "<f2", "?"])
    )
    # MegEngine, once another test has imported it, lets the processor round subnormal numbers to zero.
    number = st.integers() | st.floats(allow_nan=False, allow_subnormal=False)
    leaf = st.none() | st.booleans() | number | st.text() | st.binary() | array
    return st.recursive(
        leaf, lambda part: st.lists(part) | st.dictionaries(st.text(), part) | st.tuples(part, part), max_leaves=20
    )


def equal(left, right):
    if isinstance(right, np.ndarray):
        return (
            isinstance(left, np.ndarray) and left.dtype == right.dtype.newbyteorder("=") and np.array_equal(left, right)
        )
    if isinstance(right, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in right)
    if isinstance(right, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and left == right


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=pickled_values(), protocol=st.integers(0, 5))
def test_what_python_pickles_is_read_equal(tmp_path, value, protocol):
    import pickle

    tree = {"value": [value], 0: [value]}  # in lists, because (text, array) at the top is how Paddle writes a tensor
    (tmp_path / "file").write_bytes(pickle.dumps(tree, protocol))
    assert equal(read_file(tmp_path / "file")[1], tree)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.lists(st.sampled_from(TOKENS) | st.binary(max_size=8), max_size=60).map(b"".join),
    protocol=st.integers(0, 6),
)
def test_any_opcodes_end_in_a_result_or_our_error(tmp_path, body, protocol):
    tracemalloc.start()
    try:
        check(tmp_path / "file", b"\x80" + bytes([protocol]) + body + b".")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
