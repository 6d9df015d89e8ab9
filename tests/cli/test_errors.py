"""Every family of errors has its exit code, and keeps its data on the way into JSON."""

from __future__ import annotations

import errno
import inspect
import json
import os

import pytest

from repvgg_zoo import errors
from repvgg_zoo.cli.console import plain
from repvgg_zoo.cli.errors import FAMILIES, described, exit_code, handled

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.ZooError)]
EXTRA = {
    errors.UnknownModelError: {"name": "x", "suggestions": ("a",)},
    errors.DiskFullError: {"needed": 5, "free": 1},
    errors.UnsafePickleError: {"blocked": ("os.system",)},
    errors.PluginError: {"plugin": "acme", "distribution": "acme-repvgg 1.0"},
}


@pytest.mark.parametrize("family", CLASSES)
def test_each_error_keeps_all_that_it_carries(family):
    error = family(
        "it broke", hint="mend it", path="/a", url="https://a", expected=1, actual=2, **EXTRA.get(family, {})
    )
    facts = plain(described(error))
    assert 1 < exit_code(error) < 70
    assert facts["type"] == family.__name__ and facts["message"] == "it broke" and facts["hint"] == "mend it"
    assert (facts["path"], facts["url"], facts["expected"], facts["actual"]) == ("/a", "https://a", 1, 2)
    for name, value in EXTRA.get(family, {}).items():
        assert facts[name] == (list(value) if isinstance(value, tuple) else value)


def test_no_family_hides_behind_one_of_its_bases():
    for place, (family, code) in enumerate(FAMILIES):
        assert exit_code(family.__new__(family)) == code or place > 0
        earlier = [base for base, _ in FAMILIES[:place] if issubclass(family, base)]
        assert not earlier, f"{family} can never be reached: {earlier}"


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
def test_errors_of_python_are_told_in_the_same_way(error, code, message):
    assert exit_code(error) == code and described(error)["message"] == message


def test_json_has_no_infinity_and_takes_anything():
    assert plain({"a": float("inf"), 1: (float("nan"), 2.5), "o": int}) == {
        "a": "inf",
        "1": ["nan", 2.5],
        "o": "<class 'int'>",
    }


@pytest.mark.parametrize("arguments", [[], ["--traceback"], ["--json"]])
def test_an_unexpected_error_has_exit_code_70(capsys, arguments):
    with handled(arguments) as outcome:
        raise RuntimeError("a cat on the keyboard")
    printed = capsys.readouterr()
    assert outcome.code == 70
    if "--json" in arguments:
        assert json.loads(printed.out)["error"]["type"] == "RuntimeError" and printed.err == ""
    else:
        assert "error: RuntimeError: a cat on the keyboard" in printed.err and "--traceback" in printed.err
        assert ("Traceback" in printed.err) == ("--traceback" in arguments)
