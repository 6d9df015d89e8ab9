"""What is kept of a compilation: used by the next process, rebuilt when anything about it is wrong, never trusted."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import megengine.module as M
import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo import builder
from repvgg_zoo.inference import api as compile_module
from repvgg_zoo.inference import fingerprint, pipeline, runners
from repvgg_zoo.inference.compile_cache import Record, Store, key_of
from repvgg_zoo.inference.graph import Structure
from repvgg_zoo.models import RepVGGBlock
from tests.inference.engines import needs_lite

ROOT = Path(__file__).parents[2]

# What a first start of a checkpoint does; a second one does nothing of it.
ANEW = {
    "kernels": ["_first_right", "create", "look_at"],
    "lite": ["_first_right", "create", "dump", "look_at", "measure"],
}
NETWORK_ANEW = {engine: [name for name in names if name != "create"] for engine, names in ANEW.items()}

# A process that compiles the bundled checkpoint and says what it did.
PROGRAM = """
import json, sys
from tests.inference.test_compile_cache import compile_here
print(json.dumps(compile_here(*sys.argv[1:])))
"""


def compile_here(cache, engine, model="RepVGG_N0", **options):
    """Compiles in this process; gives what was done for it, a few numbers, and the table of algorithms."""
    did = []

    def spied(real, name, applies=lambda *args: True):
        def called(*args, **options):
            if applies(*args):
                did.append(name)
            return real(*args, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPVGG_ZOO_HOME", str(cache))
        if engine == "lite":
            patch.setitem(sys.modules, "llvmlite", None)
        for name in ("dump", "look_at", "_first_right"):
            patch.setattr(pipeline, name, spied(getattr(pipeline, name), name))
        patch.setattr(builder, "create", spied(builder.create, "create"))
        measures = spied(runners.LiteNetwork, "measure", lambda *args: args[-1] is None)  # no table is given
        patch.setattr(runners, "LiteNetwork", measures)
        compiled = repvgg_zoo.compile(model, image_size=32, **options)
    shape = (1, *compiled.shape[1:])
    x = np.random.RandomState(3).standard_normal(shape).astype(np.float32)
    table = sorted(getattr(compiled._runner, "algorithms", b""))
    return {"did": sorted(set(did)), "plan": compiled.plan, "numbers": numbers(compiled(x)), "table": table}


def numbers(output):
    arrays = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
    return np.concatenate([array.reshape(-1)[:500] for array in arrays]).tolist()


def compile_in_child(cache, engine):
    """The same in a process of its own, which Lite may end."""
    return answer_of(start(cache, engine))


def start(cache, engine):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", PROGRAM, str(cache), engine]
    return subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)


def answer_of(process):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module", params=["kernels", pytest.param("lite", marks=needs_lite)])
def engine(request):
    """What runs the networks: our kernels, or Lite, as where llvmlite is missing."""
    return request.param


lite_only = pytest.mark.parametrize("engine", [pytest.param("lite", marks=needs_lite)], indirect=True)


class Filled(NamedTuple):
    cache: Path
    answer: dict


@pytest.fixture(scope="module")
def filled(engine, tmp_path_factory):
    """A cache after one start, and what that start said; not to be changed."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    return Filled(cache, compile_in_child(cache, engine))


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of the cache that may be damaged."""
    copied = tmp_path / "cache"
    shutil.copytree(filled.cache, copied)
    return copied


def only(cache, suffix):
    return sorted((cache / "compiled").glob(f"*{suffix}"))[0]


def same(a, b):
    # Other algorithms, as another process may choose, differ by some 1e-6 of the scale.
    return np.allclose(a["numbers"], b["numbers"], rtol=0, atol=1e-5 * np.abs(a["numbers"]).max())


def test_a_second_start_dumps_and_measures_nothing_and_builds_no_network(filled, cache, engine):
    first, second = filled.answer, compile_in_child(cache, engine)
    assert (first["did"], second["did"]) == (ANEW[engine], [])
    assert first["plan"].startswith(engine)
    assert second == {**first, "did": []}


def test_our_kernels_need_a_record_only_and_lite_a_graph_too(filled, engine):
    kept = sorted(path.suffix for path in (filled.cache / "compiled").iterdir())
    assert kept == {"kernels": [".json"], "lite": [".json", ".mge"]}[engine]


@pytest.mark.parametrize("options", [{}, {"features_only": True}], ids=["logits", "features"])
def test_a_network_has_a_record_of_its_own_and_uses_it(cache, engine, options):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True, **options)
    first, second = (compile_here(cache, engine, network) for _ in range(2))
    assert (first["did"], second["did"]) == (NETWORK_ANEW[engine], [])
    assert second == {**first, "did": []}


class Backbone(M.Module):
    """A user's own network around a block of ours."""

    def __init__(self):
        super().__init__()
        self.block = RepVGGBlock(3, 8, stride=2)

    def forward(self, x):
        return self.block(x) * 2.0


@needs_lite
def test_a_users_network_is_known_by_its_graph_and_measured_once(tmp_path):
    network = Backbone()
    first, second = (compile_here(tmp_path, "kernels", network) for _ in range(2))
    assert first["plan"].startswith("lite")
    assert (first["did"], second["did"]) == (NETWORK_ANEW["lite"], ["dump"])
    assert second == {**first, "did": ["dump"]}


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


def comes_back(filled, cache, engine):
    """Whether all is made anew, gives the same numbers, and is there the next time."""
    answer = compile_here(cache, engine)
    return answer["did"] == ANEW[engine] and same(answer, filled.answer) and compile_here(cache, engine)["did"] == []


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record_leads_to_a_new_compilation(filled, cache, engine, how, caplog):
    damage(only(cache, ".json"), how)
    assert comes_back(filled, cache, engine)
    assert "damaged" in caplog.text


@lite_only
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_graph_leads_to_a_new_compilation(filled, cache, engine, how, caplog):
    damage(only(cache, ".mge"), how)
    assert comes_back(filled, cache, engine)
    assert "damaged" in caplog.text


@lite_only
def test_a_process_survives_a_damaged_graph(filled, cache, engine):
    damage(only(cache, ".mge"), cut)
    answer = compile_in_child(cache, engine)
    assert answer["did"] == ANEW[engine]
    assert same(answer, filled.answer)


@lite_only
def test_a_missing_graph_leads_to_a_new_compilation(filled, cache, engine):
    only(cache, ".mge").unlink()
    assert comes_back(filled, cache, engine)


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
        {"plan": "lite-low-memory"},
        {"samples": (np.zeros((2, 10), np.float32),)},
        {"samples": (np.zeros((2, 3), np.float32),)},
        {"samples": (np.full((2, 10), np.nan, np.float32),)},
        {"samples": (np.zeros((2, 10), np.float32),) * 2},
        {"samples": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_that_does_not_fit_leads_to_a_new_compilation(filled, cache, engine, changes):
    rewritten(cache, **changes)
    assert comes_back(filled, cache, engine)


@lite_only
@pytest.mark.parametrize("graph", ["0" * 64, None], ids=str)
def test_a_record_of_a_graph_that_is_not_there_leads_to_a_new_compilation(filled, cache, engine, graph):
    rewritten(cache, graph=graph)
    assert comes_back(filled, cache, engine)


@lite_only
@pytest.mark.parametrize("table", [b"", b"\x00" * 64, b"\xff" * 64, b"no table"], ids=repr)
def test_a_table_of_algorithms_that_is_none_does_no_harm(filled, cache, engine, table):
    rewritten(cache, algorithms=table)
    assert same(compile_here(cache, engine), filled.answer)


# What may change from one start to the next: what is patched, or the options of compile.
FACTS = {
    "processor": ("repvgg_zoo.inference.api.processor", lambda: "another"),
    "MegEngine": ("megengine.__version__", "9.9.9"),
    "Lite": ("megenginelite.__version__", "9.9.9"),
    "repvgg_zoo": ("repvgg_zoo.inference.api.__version__", "9.9.9"),
    "threads": {"threads": 2},
    "batch": {"batch_size": 2},
    "memory": {"low_memory": True},
}


@pytest.mark.parametrize("fact", [pytest.param(fact, marks=[needs_lite] if fact == "Lite" else []) for fact in FACTS])
def test_everything_that_the_choices_depend_on_is_in_the_key(fact, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_module, "usable_cores", lambda: 2)
    assert compile_here(tmp_path, engine, threads=1)["did"] == ANEW[engine]
    assert compile_here(tmp_path, engine, threads=1)["did"] == []
    change = FACTS[fact]
    if isinstance(change, tuple):
        monkeypatch.setattr(*change)
    options = change if isinstance(change, dict) else {}
    assert compile_here(tmp_path, engine, **{"threads": 1, **options})["did"] == ANEW[engine]


@needs_lite
def test_llvmlites_presence_and_version_are_in_the_key(tmp_path, monkeypatch):
    assert compile_here(tmp_path, "kernels")["did"] == ANEW["kernels"]
    assert compile_here(tmp_path, "lite")["did"] == ANEW["lite"]
    assert compile_here(tmp_path, "kernels")["did"] == []
    assert compile_here(tmp_path, "lite")["did"] == []
    monkeypatch.setattr("llvmlite.__version__", "9.9.9")
    assert compile_here(tmp_path, "kernels")["did"] == ANEW["kernels"]
    assert compile_here(tmp_path, "lite")["did"] == []


def test_processes_that_compile_at_once_do_not_disturb_each_other(filled, engine, tmp_path):
    cache = tmp_path / "cache"
    answers = [answer_of(process) for process in [start(cache, engine) for _ in range(3)]]
    assert all(same(answer, filled.answer) for answer in answers)
    assert compile_here(cache, engine)["did"] == []
    assert not list((cache / "compiled").glob("*.new"))


@pytest.mark.parametrize("obstacle", ["a file", "a folder without permission"])
def test_a_cache_that_cannot_be_written_is_done_without(filled, cache, engine, obstacle):
    folder = cache / "compiled"
    shutil.rmtree(folder)
    if obstacle == "a file":
        folder.write_text("in the way")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    answer = compile_here(cache, engine)
    assert answer["plan"].startswith(engine)
    assert same(answer, filled.answer)


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


RECORDS = {
    "kernels": Record("kernels", None, None, Structure("array", ("",)), ()),
    "lite": Record("lite", "0" * 64, b"\x00\xff", Structure("dict", ("stage1",)), ()),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_read_as_it_was_written(tmp_path, kind):
    store = Store(tmp_path)
    key = key_of({"any": "facts"})
    samples = (np.array([[1.5, np.inf], [0.1, -3.0]], np.float32),)
    written = Record(**{**RECORDS[kind].__dict__, "samples": samples})
    store.keep(key, written)
    record = store.read(key)
    assert (record.plan, record.graph, record.algorithms) == (written.plan, written.graph, written.algorithms)
    assert record.structure == written.structure
    assert np.array_equal(record.samples[0], samples[0])
    assert store.read(key_of({"other": "facts"})) is None


def test_the_sources_that_count_are_found():
    package = Path(fingerprint.__file__).parent.parent
    assert all(list(package.glob(pattern)) for pattern in fingerprint.SOURCES)
