"""What is kept of a compilation: used by the next process, rebuilt when anything about it is wrong, never trusted."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.runtime import build, identity
from repvgg_zoo.runtime import compile as compile_module
from repvgg_zoo.runtime.graph import Structure
from repvgg_zoo.runtime.plans import Part, Step
from repvgg_zoo.runtime.store import Record, Store, key_of

ROOT = Path(__file__).parents[2]
ANEW = ["_first_right", "dump"]

# A process that compiles the bundled checkpoint and says what it did.
PROGRAM = """
import json, os
from tests.runtime.test_store import compile_here
print(json.dumps(compile_here(os.environ["REPVGG_ZOO_HOME"])))
"""
# The same for its features, as a network.
FEATURES = """
import json, os
import repvgg_zoo
from tests.runtime.test_store import compile_here
network = repvgg_zoo.create("RepVGG_N0", pretrained=True, features_only=True)
print(json.dumps(compile_here(os.environ["REPVGG_ZOO_HOME"], network)))
"""


def compile_here(cache, model="RepVGG_N0", **options):
    """Compiles in this process; gives what was done for it, a few numbers, and the table of algorithms."""
    did = []

    def spied(name):
        real = getattr(build, name)
        return mock.patch.object(build, name, lambda *args, **options: did.append(name) or real(*args, **options))

    with spied("dump"), spied("_first_right"), mock.patch.dict(os.environ, REPVGG_ZOO_HOME=str(cache)):
        compiled = repvgg_zoo.compile(model, **options)
    x = np.random.RandomState(3).standard_normal((1, 1, 32, 32)).astype(np.float32)
    steps = compiled._runner.steps if compiled.plan != "eager" else ()
    table = [sorted(part.algorithms) for step in steps for part in step.parts]
    return {"did": sorted(set(did)), "plan": compiled.plan, "logits": numbers(compiled(x)), "table": table}


def numbers(output):
    array = list(output.values())[-1] if isinstance(output, dict) else output
    return array[0].reshape(-1)[:1000].tolist()


def compile_in_child(cache):
    """The same in a process of its own, which Lite may end."""
    return answer_of(start(cache))


def environ(cache):
    return {**os.environ, "REPVGG_ZOO_HOME": str(cache), "PYTHONPATH": str(ROOT)}


def start(cache):
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environ(cache), stdout=subprocess.PIPE, text=True)


def answer_of(process):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache after one start, and what that start said; not to be changed."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    return cache, compile_in_child(cache)


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of the cache that may be damaged."""
    copied = tmp_path / "cache"
    shutil.copytree(filled[0], copied)
    return copied


def only(cache, suffix):
    return sorted((cache / "compiled").glob(f"*{suffix}"))[0]


def same(a, b):
    return np.allclose(a["logits"], b["logits"], rtol=0, atol=1e-5 * np.abs(a["logits"]).max())


def test_a_second_start_dumps_and_measures_nothing(filled, cache):
    first, second = filled[1], compile_in_child(cache)
    assert (first["did"], second["did"]) == (ANEW, [])
    assert second["table"] == first["table"]
    assert second["logits"] == first["logits"]


def test_a_measured_network_is_measured_once(tmp_path):
    # Features are not rewritten, so their algorithms are measured.
    def start(cache):
        child = subprocess.run([sys.executable, "-c", FEATURES], env=environ(cache), stdout=subprocess.PIPE, text=True)
        return json.loads(child.stdout.splitlines()[-1])

    first, second = (start(tmp_path / "cache") for _ in range(2))
    assert (first["plan"], first["did"], second["did"]) == ("whole", ANEW, [])
    assert second["table"] == first["table"]
    assert second["logits"] == first["logits"]


def test_a_network_has_a_record_of_its_own_and_uses_it(cache):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    assert compile_here(cache, network)["did"] == ANEW
    assert compile_here(cache, network)["did"] == []


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def emptied(data):
    return b""


def zeroed(data):
    return bytes(len(data))


def replaced(data):
    return b"\x80\x04garbage" * 100


DAMAGES = [cut, flipped, emptied, zeroed, replaced]


def damage(path, how):
    before = path.stat()
    path.write_bytes(how(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # no date gives it away


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("suffix", [".mge", ".json"])
def test_damage_leads_to_a_new_compilation(filled, cache, suffix, how, caplog):
    damage(only(cache, suffix), how)
    answer = compile_here(cache)
    assert answer["did"] == ANEW
    assert same(answer, filled[1])
    assert "damaged" in caplog.text
    assert compile_here(cache)["did"] == []  # and it was repaired


def test_a_process_survives_a_damaged_graph(filled, cache):
    damage(only(cache, ".mge"), cut)
    answer = compile_in_child(cache)
    assert answer["did"] == ANEW
    assert same(answer, filled[1])


def test_a_missing_graph_leads_to_a_new_compilation(cache):
    only(cache, ".mge").unlink()
    assert compile_here(cache)["did"] == ANEW


def rewritten(cache, **changes):
    """Rewrites the record as if an honest process had written it so."""
    path = only(cache, ".json")
    store, key = Store(cache), path.stem
    record = store.read(key)
    store.keep(key, Record(**{**record.__dict__, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": "a plan of another version"},
        {"steps": (Step((Part("0" * 64, (1, 1, 32, 32), 1, b""),)),)},
        {"steps": ()},
        {"samples": (np.zeros((2, 10), np.float32),)},
        {"samples": (np.zeros((2, 3), np.float32),)},
        {"samples": (np.full((2, 10), np.nan, np.float32),)},
        {"samples": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_does_not_fit_leads_to_a_new_compilation(cache, changes):
    rewritten(cache, **changes)
    assert compile_here(cache)["did"] == ANEW


@pytest.mark.parametrize("table", [b"", b"\x00" * 64, b"\xff" * 64, b"no table"], ids=repr)
def test_a_table_of_algorithms_that_is_none_does_no_harm(filled, cache, table):
    steps = Store(cache).read(only(cache, ".json").stem).steps
    spoiled = [
        Step(tuple(replace(part, algorithms=table) for part in step.parts), step.cut, step.join) for step in steps
    ]
    rewritten(cache, steps=tuple(spoiled))
    assert same(compile_here(cache), filled[1])


@pytest.mark.parametrize("fact", ["processor", "version", "threads", "batch", "memory"])
def test_everything_that_the_choices_depend_on_is_in_the_key(fact, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_module, "usable_cores", lambda: 2)
    assert compile_here(tmp_path, threads=1)["did"] == ANEW
    assert compile_here(tmp_path, threads=1)["did"] == []
    if fact == "processor":
        monkeypatch.setattr(compile_module, "processor", lambda: "another")
    if fact == "version":
        monkeypatch.setattr("megengine.__version__", "9.9.9")
    options = {"threads": {"threads": 2}, "batch": {"batch_size": 2}, "memory": {"low_memory": True}}.get(fact, {})
    assert compile_here(tmp_path, **{"threads": 1, **options})["did"] == ANEW


def test_processes_that_compile_at_once_do_not_disturb_each_other(filled, tmp_path):
    cache = tmp_path / "cache"
    answers = [answer_of(process) for process in [start(cache) for _ in range(3)]]
    assert all(same(answer, filled[1]) for answer in answers)
    assert compile_here(cache)["did"] == []
    assert not list((cache / "compiled").glob("*.new"))


@pytest.mark.parametrize("obstacle", ["a file", "a folder without permission"])
def test_a_cache_that_cannot_be_written_is_done_without(filled, cache, obstacle):
    folder = cache / "compiled"
    shutil.rmtree(folder)
    if obstacle == "a file":
        folder.write_text("in the way")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    answer = compile_here(cache)
    assert answer["plan"] != "eager"
    assert same(answer, filled[1])


def test_a_draft_that_a_killed_process_left_is_swept_up(tmp_path):
    store = Store(tmp_path)
    store.folder.mkdir(parents=True)
    old, young = store.folder / "a.mge.123.new", store.folder / "b.mge.123.new"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert store.keep_graph("0" * 64, b"graph") is not None
    assert not old.exists()
    assert young.exists()


def test_a_record_is_read_as_it_was_written(tmp_path):
    store = Store(tmp_path)
    key = key_of({"any": "facts"})
    samples = (np.array([[1.5, np.inf], [0.1, -3.0]], np.float32),)
    steps = (
        Step((Part("0" * 64, (1, 3, 8, 8), 2, b"\x00\xff", (0, 4), None),), cut=2, join=2),
        Step((Part("1" * 64, (1, 1, 8, 8, 8), 1, b""),) * 2, join=None),
    )
    store.keep(key, Record("plan", steps, Structure("dict", ("stage1",)), samples))
    record = store.read(key)
    assert (record.plan, record.steps) == ("plan", steps)
    assert record.structure == Structure("dict", ("stage1",))
    assert np.array_equal(record.samples[0], samples[0])
    assert store.read(key_of({"other": "facts"})) is None


def test_the_sources_that_count_are_found():
    package = Path(identity.__file__).parent.parent
    assert all(list(package.glob(pattern)) for pattern in identity.SOURCES)
