"""What is kept of the shipped registry is what its file says, and only while nothing that it was made from changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

from repvgg_zoo._resources import registry_path
from repvgg_zoo.errors import RegistryError
from repvgg_zoo.registry.kept import load_kept
from repvgg_zoo.registry.parser import load_registry

PACKAGE = Path(__file__).resolve().parents[2] / "repvgg_zoo"
LIST = """
import json, sys, repvgg_zoo
names = repvgg_zoo.list_models()
sources = repvgg_zoo.model_info("RepVGG_N0").checkpoints[0].file.sources
print(json.dumps({"names": names, "sources": sources, "parsed": "yaml" in sys.modules}))
"""


@pytest.fixture
def writes_bytecode(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


@pytest.fixture
def registry(tmp_path):
    return Path(shutil.copy(str(registry_path()), str(tmp_path / "registry.yaml")))


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package and its registry, without anything that Python kept."""
    folder = tmp_path / "checkout"
    shutil.copytree(str(PACKAGE), str(folder / "repvgg_zoo"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(str(registry_path()), str(folder / "registry.yaml"))
    return folder


def listing(checkout: Path, **settings: str) -> Dict[str, Any]:
    ignored = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "REPVGG_ZOO_REGISTRY")
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        env={**environment, "PYTHONPATH": str(checkout), "REPVGG_ZOO_PLUGINS": "off", **settings},
        cwd=str(checkout),
        capture_output=True,
        text=True,
        check=True,
    )
    found: Dict[str, Any] = json.loads(done.stdout)
    return found


def kept_files(folder: Path) -> List[Path]:
    return list((folder / "__pycache__").glob("registry.*.pyc"))


def test_what_is_kept_equals_what_is_parsed(registry, writes_bytecode):
    parsed = load_registry(registry)
    assert load_kept(registry).models == parsed.models
    (kept,) = kept_files(registry.parent)
    made = kept.stat().st_mtime_ns, kept.stat().st_ino
    again = load_kept(registry)
    assert again.models == parsed.models
    assert (again.path, len(again.models)) == (str(registry), len(parsed.models))
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == made


def test_the_second_process_does_not_even_import_yaml(checkout):
    first, second = listing(checkout), listing(checkout)
    assert (first.pop("parsed"), second.pop("parsed")) == (True, False)
    assert first == second
    assert first["names"][0] == "RepVGG_A0"


def test_an_edited_registry_is_read_anew(checkout):
    listing(checkout)
    path = checkout / "registry.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("RepVGG_A1", "RepVGG_Z1"), encoding="utf-8")
    edited = listing(checkout)
    assert edited["parsed"]
    assert "RepVGG_Z1" in edited["names"]
    assert "RepVGG_A1" not in edited["names"]
    assert not listing(checkout)["parsed"]


def test_a_moved_checkout_finds_its_files_where_it_is_now(checkout, tmp_path):
    before = listing(checkout)["sources"]
    moved = checkout.rename(tmp_path / "moved")
    after = listing(moved)["sources"]
    assert before[0].startswith(str(checkout))
    assert after == [source.replace(str(checkout), str(moved)) for source in before]


@pytest.mark.parametrize("module", ["parser", "specs"])
def test_a_change_of_the_code_that_reads_it_is_read_anew(checkout, module):
    listing(checkout)
    path = checkout / "repvgg_zoo" / "registry" / f"{module}.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    assert listing(checkout)["parsed"]
    assert not listing(checkout)["parsed"]


def test_nothing_is_kept_where_python_is_told_to_keep_nothing(checkout):
    for _ in range(2):
        assert listing(checkout, PYTHONDONTWRITEBYTECODE="1")["parsed"]
    assert not (checkout / "__pycache__").exists()


def test_it_is_read_where_nothing_can_be_written(registry, writes_bytecode):
    (registry.parent / "__pycache__").write_text("a file where the folder would be")
    for _ in range(2):
        assert load_kept(registry).models == load_registry(registry).models


@pytest.mark.parametrize("kept_bytes", [0, 3, 16, 40, 1000, -1])
def test_what_is_kept_and_damaged_is_not_used(registry, writes_bytecode, kept_bytes):
    load_kept(registry)
    (kept,) = kept_files(registry.parent)
    kept.write_bytes(kept.read_bytes()[:kept_bytes])
    assert load_kept(registry).models == load_registry(registry).models


@pytest.mark.parametrize("text", [b"", b"schema: 2\nvariants: {}\n", b"\xff", b"schema: [", None])
def test_a_file_that_is_no_registry_is_the_reader_s_error_and_leaves_nothing(tmp_path, writes_bytecode, text):
    path = tmp_path / "registry.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(RegistryError) as expected:
        load_registry(path)
    with pytest.raises(RegistryError) as found:
        load_kept(path)
    assert str(found.value) == str(expected.value)
    assert found.value.path == str(path)
    assert not kept_files(tmp_path)
