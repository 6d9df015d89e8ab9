"""The names of the package, as users, editors and other libraries look at them.

The kind of fault: looking at a name has another outcome than Python's protocols promise: hasattr() raises, dir() shows
what is not public, or an import that fails does not say why.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

import repvgg_zoo
from repvgg_zoo.errors import UnavailableError

WITHOUT_MEGENGINE = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "megengine":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import repvgg_zoo
results = {"has": [name for name in repvgg_zoo.__all__ if hasattr(repvgg_zoo, name)]}
results["default"] = getattr(repvgg_zoo, "create", "default")
for key, code in {
    "attribute": "repvgg_zoo.create('RepVGG_A0')",
    "from": "from repvgg_zoo import create",
    "from several": "from repvgg_zoo import list_models, to_deploy",
    "star": "from repvgg_zoo import *",
    "submodule": "import repvgg_zoo.builder",
    "unknown": "from repvgg_zoo import creat",
}.items():
    try:
        exec(code)
    except Exception as error:
        results[key] = [type(error).__name__, str(error), type(error.__cause__).__name__]
print(json.dumps(results))
"""
NEED_MEGENGINE = {"Network", "compare_forms", "create", "to_deploy"}


@pytest.fixture(scope="module")
def results() -> dict:
    """What a process without MegEngine sees."""
    command = [sys.executable, "-c", WITHOUT_MEGENGINE]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_name_that_needs_megengine_is_absent_without_it(results):
    assert set(repvgg_zoo.__all__) - set(results["has"]) == NEED_MEGENGINE
    assert results["default"] == "default"


@pytest.mark.parametrize(
    ("use", "error", "cause"),
    [
        ("attribute", "UnavailableError", "DependencyError"),
        ("from", "DependencyError", "ModuleNotFoundError"),
        ("from several", "DependencyError", "ModuleNotFoundError"),
    ],
)
def test_who_uses_such_a_name_is_told_what_to_install(results, use, error, cause):
    name, message, actual_cause = results[use]
    assert (name, actual_cause) == (error, cause)
    assert "needs MegEngine, which is not installed" in message and "hint: pip install 'megengine" in message


def test_all_public_names_or_the_reason_come_with_a_star(results):
    assert results["star"][0] in ("DependencyError", "UnavailableError")


def test_other_names_fail_as_everywhere(results):
    assert results["submodule"][0] == "ModuleNotFoundError"
    assert results["unknown"][:2] == ["ImportError", results["unknown"][1]]
    assert "cannot import name 'creat'" in results["unknown"][1]
    with pytest.raises(AttributeError, match="has no attribute 'creat'"):
        repvgg_zoo.creat  # noqa: B018


def test_dir_shows_the_public_names_only():
    assert dir(repvgg_zoo) == sorted([*repvgg_zoo.__all__, "__version__", "errors"])
    assert all(hasattr(repvgg_zoo, name) for name in dir(repvgg_zoo))


def test_the_errors_are_there_after_the_import():
    code = "import repvgg_zoo; print(repvgg_zoo.errors.ZooError.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ZooError\n"


def test_the_error_of_an_unavailable_name_survives_a_process():
    error = UnavailableError("create needs MegEngine", hint="install it", expected="megengine")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.expected, type(again)) == (str(error), "megengine", UnavailableError)
