"""Every error has its exit code, and keeps its data in JSON."""

from __future__ import annotations

import errno
import inspect
import json
import os

import pytest

from repvgg_zoo import errors
from repvgg_zoo.cli.console import to_jsonable
from repvgg_zoo.cli.errors import EXIT_CODES, exit_code, handled, to_dict

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.ZooError)]
EXTRA = {
    errors.UnknownModelError: {"name": "x", "suggestions": ("a",)},
    errors.DiskFullError: {"needed": 5, "free": 1},
    errors.UnsafePickleError: {"blocked": ("os.system",)},
    errors.PluginError: {"plugin": "acme", "distribution": "acme-repvgg 1.0"},
}


@pytest.mark.parametrize("family", CLASSES)
def test_each_error_keeps_its_data(family):
    error = family(
        "it broke", hint="mend it", path="/a", url="https://a", expected=1, actual=2, **EXTRA.get(family, {})
    )
    payload = to_jsonable(to_dict(error))
    assert 1 < exit_code(error) < 70
    assert payload["type"] == family.__name__ and payload["message"] == "it broke" and payload["hint"] == "mend it"
    assert (payload["path"], payload["url"], payload["expected"], payload["actual"]) == ("/a", "https://a", 1, 2)
    for name, value in EXTRA.get(family, {}).items():
        assert payload[name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(("family", "code"), EXIT_CODES)
def test_each_entry_of_the_exit_codes_applies_to_its_class(family, code):
    error = OSError.__new__(family) if issubclass(family, OSError) else family.__new__(family)
    assert exit_code(error) == code
    index = [entry for entry, _ in EXIT_CODES].index(family)
    bases = [base for base, _ in EXIT_CODES[:index] if issubclass(family, base)]
    assert bases == [], "these come first, so the entry can never apply"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.pkl"), 5, "out.pkl: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "out.pkl"), 5, "out.pkl: Permission denied"),
        (
            ModuleNotFoundError("No module named 'megengine'", name="megengine"),
            7,
            "this needs megengine, which is not installed",
        ),
        (RuntimeError("odd"), 70, "RuntimeError: odd"),
        (MemoryError(), 70, "MemoryError: "),
    ],
)
def test_errors_of_python_are_reported_in_the_same_way(error, code, message):
    assert exit_code(error) == code and to_dict(error)["message"] == message


def test_json_has_no_infinity_and_accepts_any_object():
    assert to_jsonable({"a": float("inf"), 1: (float("nan"), 2.5), "o": int}) == {
        "a": "inf",
        "1": ["nan", 2.5],
        "o": "<class 'int'>",
    }


@pytest.mark.parametrize("arguments", [[], ["--traceback"], ["--json"]])
def test_an_unexpected_error_has_exit_code_70(capsys, arguments):
    with handled(arguments) as outcome:
        raise RuntimeError("a cat on the keyboard")
    printed = capsys.readouterr()
    assert outcome.exit_code == 70
    if "--json" in arguments:
        assert json.loads(printed.out)["error"]["type"] == "RuntimeError" and printed.err == ""
    else:
        assert "error: RuntimeError: a cat on the keyboard" in printed.err and "--traceback" in printed.err
        assert ("Traceback" in printed.err) == ("--traceback" in arguments)
