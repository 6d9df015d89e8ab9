"""The package inside a zip: a zipapp finds the registry, the bundled checkpoints and the class names.

The kind: data that is reached by a path beside ``__file__``, which does not exist if a module comes from an archive.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipapp
import zipfile
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def app(wheel: Path, tmp_path_factory: Any) -> Path:
    """A zipapp of the wheel; the packages that it requires are not in it."""
    folder = tmp_path_factory.mktemp("zipapp")
    with zipfile.ZipFile(str(wheel)) as archive:
        archive.extractall(str(folder / "app"))
    zipapp.create_archive(folder / "app", folder / "zoo.pyz", main="repvgg_zoo.cli:main")
    return folder / "zoo.pyz"


def run(app: Path, folder: Path, *argv: str) -> str:
    temp = folder / "temp"
    temp.mkdir(exist_ok=True)
    others = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "REPVGG_ZOO"))}
    environ = {**others, "REPVGG_ZOO_HOME": str(folder / "cache"), "TMPDIR": str(temp)}
    done = subprocess.run([sys.executable, *argv], cwd=str(folder), env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(temp.iterdir()) == [], "the process leaves nothing behind"
    return done.stdout


def test_a_zipapp_lists_describes_and_fetches(app: Path, tmp_path: Path) -> None:
    names = [row["name"] for row in json.loads(run(app, tmp_path, str(app), "list", "--json"))]
    assert {"RepVGG_A0", "RepVGG_N0"} <= set(names)
    assert json.loads(run(app, tmp_path, str(app), "info", "RepVGG_N0", "--json"))["name"] == "RepVGG_N0"
    (row,) = json.loads(run(app, tmp_path, str(app), "fetch", "RepVGG_N0", "--offline", "--json"))
    assert row["path"].startswith(str(tmp_path / "cache"))
    assert json.loads(run(app, tmp_path, str(app), "verify", "RepVGG_N0", "--json"))[0]["status"] == "ok"


def test_a_zip_on_the_path_has_its_data_and_class_names(app: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(app)!r})
import os, repvgg_zoo
from repvgg_zoo._resources import hub_folder, registry_path
from repvgg_zoo.image.labels import imagenet
assert repvgg_zoo.__file__.startswith({str(app)!r})
assert registry_path().is_file() and registry_path() == registry_path()
assert [path.suffix for path in hub_folder().glob("*.safetensors")] == [".safetensors"]
assert len(imagenet()) == 1000
if os.fork() == 0:
    sys.exit()  # a child that ends does not delete its parent's files
os.wait()
assert registry_path().is_file()
"""
    run(app, tmp_path, "-c", code)
