"""The reference: computed once, used by the next process, computed again if anything about it is wrong."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo._atomic import TEMP_SUFFIX
from repvgg_zoo._derived_cache import DerivedCache
from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.inference.compiled_model import OutputSpec
from repvgg_zoo.inference.eager import network_digest
from repvgg_zoo.inference.reference import max_relative_error, read_samples, reference_key, write_samples
from tests.networks import fill

ROOT = Path(__file__).parents[2]
SHAPE = (1, 1, 32, 32)  # of RepVGG_N0

# A process that compiles the bundled checkpoint, maybe where MegEngine cannot be imported.
PROGRAM = """
import json, sys

if sys.argv[1] == "without":
    sys.modules["megengine"] = None
import numpy as np

import repvgg_zoo

try:
    compiled = repvgg_zoo.compile("RepVGG_N0")
except repvgg_zoo.errors.DependencyError as error:
    print(json.dumps({"error": error.message}))
else:
    logits = compiled(np.random.RandomState(3).standard_normal(compiled.shape).astype(np.float32))
    imported = sys.modules.get("megengine") is not None
    print(json.dumps({"megengine": imported, "backend": compiled.backend, "logits": logits.tolist()}))
"""


def start(cache, megengine="with"):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "REPVGG_ZOO_HOME": str(cache)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, megengine], env=environ, stdout=subprocess.PIPE, text=True)


def answer_of(process):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


class Filled(NamedTuple):
    cache: Path
    answer: dict


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache after one process has compiled, and what that process printed; not to be changed."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    return Filled(cache, answer_of(start(cache)))


@pytest.fixture
def cache(filled, tmp_path, monkeypatch):
    """A copy of that cache, which this process uses and may damage."""
    copy = tmp_path / "cache"
    shutil.copytree(filled.cache, copy)
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(copy))
    return copy


def references(cache):
    """The entries of the cache and their inodes, which change when an entry is written again."""
    return {
        entry.path: entry.path.stat().st_ino for entry in DerivedCache(cache).entries() if entry.step == "reference"
    }


def only(cache):
    (path,) = references(cache)
    return path


def logits_of(model="RepVGG_N0", **options):
    with repvgg_zoo.compile(model, **options) as compiled:
        x = np.random.RandomState(3).standard_normal((1, *compiled.shape[1:])).astype(np.float32)
        return compiled(x)


def test_only_the_first_start_needs_megengine(filled):
    second = answer_of(start(filled.cache, "without"))
    assert filled.answer["megengine"] is True
    assert filled.answer["backend"] == "kernels"
    assert second == {**filled.answer, "megengine": False}


def test_a_first_start_without_megengine_says_that_it_is_needed(tmp_path):
    assert "needs MegEngine" in answer_of(start(tmp_path, "without"))["error"]


def test_a_second_start_imports_no_megengine_where_it_could(filled):
    assert answer_of(start(filled.cache))["megengine"] is False


@pytest.mark.parametrize("options", [{}, {"features_only": True}], ids=["logits", "features"])
def test_a_network_has_an_entry_of_its_own_and_uses_it(cache, options):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, **options)
    before = references(cache)
    repvgg_zoo.compile(network)
    first = references(cache)
    repvgg_zoo.compile(network)
    assert len(first) == len(before) + 1
    assert references(cache) == first


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def empty(data):
    return b""


def zero(data):
    return bytes(len(data))


def replace(data):
    return b"\x80\x04garbage" * 100


@pytest.mark.parametrize("damage", [cut, flip, empty, zero, replace])
def test_a_damaged_entry_is_computed_again(filled, cache, damage, caplog):
    path, before = only(cache), references(cache)
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(damage(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the date does not show it
    assert np.array_equal(logits_of(), filled.answer["logits"])
    assert "damaged" in caplog.text
    assert references(cache) != before
    assert path.read_bytes() == content
    after = references(cache)
    logits_of()
    assert references(cache) == after


@pytest.mark.parametrize(
    "samples",
    [
        (np.zeros((2, 10), np.float32),),
        (np.zeros((2, 3), np.float32),),
        (np.full((2, 10), np.nan, np.float32),),
        (np.zeros((2, 10), np.float32),) * 2,
        (),
    ],
    ids=["other values", "another shape", "not finite", "too many", "none"],
)
def test_samples_that_do_not_fit_are_computed_again(tmp_path, monkeypatch, samples, caplog):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path))
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    expected = logits_of(network)
    key = reference_key(network_digest(network), SHAPE, {})
    right = read_samples(tmp_path, key)
    write_samples(tmp_path, key, samples)
    assert np.array_equal(logits_of(network), expected)
    assert "no longer returns" in caplog.text
    assert np.array_equal(read_samples(tmp_path, key), right)


def test_a_network_is_refused_whatever_the_cache_holds(tmp_path, monkeypatch):
    """The cache only saves time: samples that do not fit lead to a comparison with MegEngine."""
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path))
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)
    fill(network.linear.bias, np.nan)
    key = reference_key(network_digest(network), SHAPE, {})
    write_samples(tmp_path, key, (np.full((2, 10), np.nan, np.float32),))
    with pytest.raises(EquivalenceError):
        repvgg_zoo.compile(network)


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"threads": 1}, {"low_memory": True}, {"batch_size": 3, "threads": 1}], ids=str
)
def test_one_entry_serves_every_way_to_compile_a_network(cache, options):
    before = references(cache)
    repvgg_zoo.compile("RepVGG_N0", **options)
    assert references(cache) == before


@pytest.mark.parametrize("option", ["image_size", "version"])
def test_another_image_size_or_version_is_another_entry(cache, option, monkeypatch):
    before = references(cache)
    if option == "version":
        monkeypatch.setattr("repvgg_zoo.inference.reference.__version__", "9.9.9")
    repvgg_zoo.compile("RepVGG_N0", image_size=40 if option == "image_size" else None)
    after = references(cache)
    assert len(after) == 2
    assert before.items() <= after.items()


def test_processes_that_compile_at_once_do_not_disturb_each_other(filled, tmp_path):
    cache = tmp_path / "cache"
    answers = [answer_of(process) for process in [start(cache) for _ in range(3)]]
    assert all(answer["logits"] == filled.answer["logits"] for answer in answers)
    assert answer_of(start(cache))["megengine"] is False
    assert not [path for path in cache.rglob("*") if path.name.endswith(TEMP_SUFFIX)]


@pytest.mark.parametrize("obstacle", ["a file", "a folder without permission"])
def test_a_cache_that_cannot_be_written_does_no_harm(filled, cache, obstacle):
    folder = DerivedCache(cache).folder
    shutil.rmtree(folder)
    if obstacle == "a file":
        folder.write_text("in the way")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert np.array_equal(logits_of(), filled.answer["logits"])


def test_samples_are_read_as_they_were_written(tmp_path):
    outputs = (np.array([[1.5, np.inf], [0.1, -3.0]], np.float32), np.ones((2, 3, 2, 2), np.float32))
    key = reference_key("0" * 64, SHAPE, {})
    write_samples(tmp_path, key, outputs)
    first, second = read_samples(tmp_path, key)
    assert np.array_equal(first, outputs[0])
    assert np.array_equal(second, np.ones((2, 12)))
    assert read_samples(tmp_path, reference_key("1" * 64, SHAPE, {})) is None


class Doubling:
    """A runner that returns twice its input, or at one position of the batch something else."""

    def __init__(self, wrong=None):
        self.outputs = OutputSpec("array", ("",))
        self.wrong = wrong

    def __call__(self, x):
        output = 2 * x
        if self.wrong is not None:
            output[self.wrong] += 1
        return (output,)

    def close(self):
        pass


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_position_of_a_batch_is_compared(batch):
    shape = (batch, 1, 4, 4)
    reference = Doubling()(repvgg_zoo.inference.reference.probe_images(shape))
    assert max_relative_error(Doubling(), reference, shape) == 0
    for position in range(batch):
        assert max_relative_error(Doubling(position), reference, shape) > 0.1
