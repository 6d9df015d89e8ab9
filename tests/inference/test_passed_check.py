"""A plan that has passed the comparison with NumPy is not compared again, and any other plan is.

The kind: whatever the result of the comparison depends on is another key; an entry that says anything else than an
error within the bound, or that somebody else could have written, does not count.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo._derived_cache import DerivedCache, DerivedKey
from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.inference import reference
from repvgg_zoo.inference.jit.engine import host_microkernel_config
from repvgg_zoo.inference.jit.winograd import WINOGRAD_TRANSFORMS
from repvgg_zoo.inference.lowering import lower
from repvgg_zoo.inference.passed_check import check_key, check_once
from repvgg_zoo.inference.reference import MAX_ERROR
from tests.inference.reference import Layer, random_weights

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")

NETWORK = random_weights(3, [Layer(16, stride=2), Layer(16, se="before"), Layer(16)], classes=4)
WEIGHTS_KEY = DerivedKey("a" * 64, "weights", 1, {"layout": "timm"})


def plan(shape=(1, 3, 20, 20), algorithm=None, threads=2):
    return lower(
        NETWORK,
        shape,
        threads=threads,
        config=host_microkernel_config(),
        select_algorithm=lambda layer, out: algorithm,
    )


def key_of(plan, weights=WEIGHTS_KEY, **changed):
    return check_key(weights, plan, **{"threads": 2, "code": "c" * 64, "processor": "znver3 +avx2", **changed})


KEY = key_of(plan())


@pytest.fixture
def cache(tmp_path):
    return DerivedCache(tmp_path / "cache")


def is_checked(cache, key=KEY, error=3e-7):
    """Whether a call compares; either way it must return the error of the first comparison."""
    calls = []

    def check():
        calls.append(error)
        return error

    assert check_once(check, cache, key) == error
    return bool(calls)


def test_a_plan_that_passed_is_not_compared_again(cache):
    assert is_checked(cache)
    assert not is_checked(cache)


def test_a_plan_that_failed_is_compared_again(cache):
    def fail():
        raise EquivalenceError("different")

    for _ in range(2):
        with pytest.raises(EquivalenceError):
            check_once(fail, cache, KEY)
    assert is_checked(cache)


def test_the_same_plan_has_the_same_key_wherever_its_memory_is():
    assert key_of(plan()).digest() == KEY.digest()


OTHERS = {
    "weights": lambda: key_of(plan(), replace(WEIGHTS_KEY, source="b" * 64)),
    "version of the weights": lambda: key_of(plan(), replace(WEIGHTS_KEY, version=2)),
    "layout": lambda: key_of(plan(), replace(WEIGHTS_KEY, parameters={"layout": "official"})),
    "image size": lambda: key_of(plan((1, 3, 20, 24))),
    "batch size": lambda: key_of(plan((2, 3, 20, 20))),
    "algorithm": lambda: key_of(plan(algorithm=WINOGRAD_TRANSFORMS[0])),
    "number of threads": lambda: key_of(plan(), threads=1),
    "machine code": lambda: key_of(plan(), code="d" * 64),
    "processor": lambda: key_of(plan(), processor="znver3 +avx2,+avx512f"),
    "a count in one call": lambda: key_of(one_less()),
}


def one_less():
    changed = plan()
    changed.calls[-1].arguments[-1] ^= 1
    return changed


@pytest.mark.parametrize("other", OTHERS)
def test_a_plan_with_another_one_of_these_is_compared(cache, other):
    assert is_checked(cache)
    assert is_checked(cache, OTHERS[other]())


@pytest.mark.parametrize("key", [None, "unknown weights"])
def test_weights_that_are_not_known_are_always_compared(cache, key):
    key = key_of(plan(), None) if key else None
    assert key is None
    assert is_checked(cache, key)
    assert is_checked(cache, key)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"3e-7",
        b'{"error": null}',
        b'{"error": "3e-7"}',
        b'{"error": NaN}',
        b'{"error": -1.0}',
        json.dumps({"error": 2 * MAX_ERROR}).encode(),
        b"[" * 100000,
        b"\xff",
    ],
)
def test_an_entry_that_says_something_else_does_not_count(cache, content):
    cache.write(KEY, lambda stream: stream.write(content))
    assert is_checked(cache)
    assert not is_checked(cache)


def test_an_entry_that_another_user_could_have_written_does_not_count(cache):
    assert is_checked(cache)
    (path,) = cache.folder.glob("check-*.derived")
    path.chmod(0o666)
    assert is_checked(cache)


def test_a_published_checkpoint_is_compared_once_for_a_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path))
    first = repvgg_zoo.compile("RepVGG_N0")
    compared = []
    monkeypatch.setattr(reference, "check_plan", lambda *arguments: compared.append(arguments) or 0.0)
    second = repvgg_zoo.compile("RepVGG_N0")
    assert compared == []
    assert second.error == first.error > 0
    x = np.random.RandomState(0).standard_normal(first.shape).astype(np.float32)
    assert np.array_equal(first(x), second(x))
    repvgg_zoo.compile("RepVGG_N0", batch_size=2)
    assert len(compared) == 1
