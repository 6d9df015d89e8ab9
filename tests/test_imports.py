"""Which modules of the package can be imported where MegEngine cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import repvgg_zoo

PACKAGE = Path(repvgg_zoo.__file__).parent
FILES = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
MODULES = sorted(".".join(file.parts).replace(".__init__", "") for file in FILES if file.name != "__main__")
# What builds, converts or runs MegEngine's modules. Nothing else may need MegEngine.
NEEDS_MEGENGINE = {
    "repvgg_zoo._tensors",
    "repvgg_zoo.builder",
    "repvgg_zoo.inference.eager",
    "repvgg_zoo.models",
    "repvgg_zoo.models.build",
    "repvgg_zoo.models.layers",
    "repvgg_zoo.models.network",
    "repvgg_zoo.models.repvgg",
    "repvgg_zoo.models.repvggplus",
    "repvgg_zoo.models.stages",
    "repvgg_zoo.reparam.equivalence",
    "repvgg_zoo.reparam.to_deploy",
    "repvgg_zoo.training.trunk_function",
    "repvgg_zoo.training.structure",
    "repvgg_zoo.training.trainer",
    "repvgg_zoo.training.trunk",
}
IMPORT_ALL = """
import importlib, json, sys

BLOCKED = ("megengine", "torch", "paddle")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
errors = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError as error:
        errors[name] = str(error)
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors() -> dict:
    """The modules that cannot be imported without MegEngine, and why."""
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(MODULES)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in NEEDS_MEGENGINE])
def test_a_module_works_where_megengine_cannot_be_imported(errors, module):
    assert module not in errors, errors.get(module)


@pytest.mark.parametrize("module", sorted(NEEDS_MEGENGINE))
def test_a_module_that_is_listed_needs_megengine(errors, module):
    assert "is blocked" in errors[module], "take it off the list"
