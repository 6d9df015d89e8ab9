"""Every error class says where it happened, and says the same in another process.

The kind of fault: the data of an error is in its attributes, and who reads a log has only its text.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from repvgg_zoo import errors
from repvgg_zoo.errors import ZooError

PATH = Path("/data/checkpoints/RepVGG-A0.pth")
# The arguments without which a class cannot be built.
REQUIRED = {
    "UnknownModelError": {"name": "RepVGG_A9"},
    "PluginError": {"plugin": "acme"},
    "DiskFullError": {"needed": 2, "free": 1},
    "UnsafePickleError": {"blocked": ["os.system"]},
}
CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, ZooError)]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def build(cls, message="it is damaged", **data):
    return cls(message, **REQUIRED.get(cls.__name__, {}), **data)


@every_class
def test_the_text_has_the_path(cls):
    assert str(build(cls, path=PATH, hint="load another")) == f"it is damaged\n  path: {PATH}\n  hint: load another"
    assert str(build(cls, path=str(PATH))) == f"it is damaged\n  path: {PATH}"


@every_class
def test_the_text_has_the_path_once(cls):
    assert str(build(cls, f"{PATH} is damaged", path=PATH)) == f"{PATH} is damaged"
    assert str(build(cls)) == "it is damaged"


@every_class
def test_a_path_that_would_act_on_a_terminal_is_escaped(cls):
    text = str(build(cls, path="/data/\x1b[2J\n  hint: rm"))
    assert "\x1b" not in text and text.count("\n") == 1
    assert build(cls, path="/data/\x1b[2J").path == "/data/\x1b[2J"


@every_class
@pytest.mark.parametrize("twin", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_a_copy_has_all_of_the_data(cls, twin):
    error = build(cls, path=PATH, url="https://example.org", hint="load another", expected=1, actual=(2,))
    again = twin(error)
    names = ("message", "hint", "path", "url", "expected", "actual", *REQUIRED.get(cls.__name__, {}))
    assert type(again) is cls and str(again) == str(error)
    assert [getattr(again, name) for name in names] == [getattr(error, name) for name in names]
