"""One module prints, one logs: what would reach a terminal without being escaped cannot be written by accident."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, Tuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "repvgg_zoo"

# What only these modules may use.
ALLOWED = {
    "print": (),
    "sys.stdout": ("cli/console.py",),
    "sys.__stdout__": (),
    "sys.stderr": ("cli/console.py", "hub/progress.py"),
    "sys.__stderr__": (),
    "logging.getLogger": ("_log.py",),
    "traceback.print_exc": (),
    "traceback.print_exception": (),
    "pprint.pprint": (),
    "warnings.warn": ("inference/api.py",),  # a text of our own
}
FILES = sorted(PACKAGE.rglob("*.py"))


def uses(path: Path) -> Iterator[Tuple[int, str]]:
    """The lines and names of every function that is called by its name, and every attribute of a name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.lineno, node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_prints_and_logs_by_what_escapes(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    wrong = [f"line {line}: {use}" for line, use in uses(path) if name not in ALLOWED.get(use, (name,))]
    assert not wrong, "print with cli/console.py, log with _log.get_logger"
