"""The docs are complete where the code has a list of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from repvgg_zoo import errors
from repvgg_zoo._requirements import has_megengine_wheels, import_fix
from repvgg_zoo._settings import VARIABLES
from repvgg_zoo.cli.commands.doctor import NAMES
from repvgg_zoo.cli.errors import EXIT_CODES

DOCS = Path(__file__).resolve().parents[2] / "docs"
TROUBLE = (DOCS / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, errors.ZooError)]


def test_the_table_of_settings_has_every_environment_variable() -> None:
    text = (DOCS / "guides" / "downloads.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(REPVGG_ZOO_\w+)` \|", text, re.MULTILINE)) == sorted(VARIABLES)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_table_of_errors_has_every_error_its_base_and_exit_code(error: type) -> None:
    builtins = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins"]
    name = f"`{error.__name__}`" + "".join(f" ({base})" for base in builtins)
    code = next(code for cls, code in EXIT_CODES if issubclass(error, cls))
    assert re.search(rf"^\| {re.escape(name)} \| .+ \| {code} \|$", TROUBLE, re.MULTILINE), (name, code)


def test_the_table_of_the_doctor_has_each_of_its_checks() -> None:
    table = TROUBLE.partition("| check | what it finds |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(NAMES)


@pytest.mark.skipif(not has_megengine_wheels(), reason="elsewhere these packages have no upper bounds")
@pytest.mark.parametrize(
    "problem",
    [
        "libGL.so.1: cannot open shared object file: No such file or directory",
        "numpy.core.multiarray failed to import",
        "No module named 'pkg_resources'",
        "[Errno 30] Read-only file system: '/home/user/.cache/megengine'",
    ],
)
def test_what_ends_an_import_is_listed_with_the_cure_that_the_error_names(problem: str) -> None:
    cure = import_fix(problem).partition(" (")[0]
    assert f"`{cure}`" in TROUBLE


def test_the_table_of_optional_packages_has_every_extra() -> None:
    project = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    installation = (DOCS / "installation.md").read_text(encoding="utf-8")
    assert re.findall(r"`repvgg-zoo\[(\w+)\]`", installation) == re.findall(r"^(\w+) = ", table, re.MULTILINE)


def test_every_page_of_the_guides_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = [
        path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts
    ]
    entries = [line for block in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for line in block.splitlines()]
    assert {page for page in pages if page.startswith("guides/")} <= set(entries)
