"""The examples of the docs are run: a broken one fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The content of a page of docs/, and how its example ends.
PAGES = {
    "a_right_example": ("```python\nassert 1 + 1 == 2\n```\n", "PASSED"),
    "a_wrong_example": ("```python\nassert 1 + 1 == 3\n```\n", "FAILED"),
    "a_wrong_result_in_python": ("```python\n>>> 1 + 1\n3\n```\n", "FAILED"),
    "a_right_result": ("```pycon\n>>> 1 + 1\n2\n```\n", "PASSED"),
    "a_wrong_result": ("```pycon\n>>> 1 + 1\n3\n```\n", "FAILED"),
    "skipped": ('<!-- skip: next "needs the internet" -->\n\n```python\nassert 1 + 1 == 3\n```\n', "SKIPPED"),
    "an_empty_folder_and_cache": (
        "```python\nimport os\nassert os.listdir('.') == [] and 'cache' in os.environ['REPVGG_ZOO_HOME']\n```\n",
        "PASSED",
    ),
}

# The result in the docstring of a module, and how its example ends.
DOCSTRINGS = {"a_right_docstring": ("2", "PASSED"), "a_wrong_docstring": ("3", "FAILED")}

MODULE = '''"""A module.

>>> 1 + 1
{answer}
"""
'''


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The lines that pytest prints for a project with our conftest.py, all pages and all modules."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(str(ROOT / "conftest.py"), str(project / "conftest.py"))
    (project / "docs").mkdir()
    for name, (block, _) in PAGES.items():
        (project / "docs" / f"{name}.md").write_text("# A page\n\n" + block)
    (project / "repvgg_zoo").mkdir()
    (project / "repvgg_zoo" / "__init__.py").touch()
    for name, (answer, _) in DOCSTRINGS.items():
        (project / "repvgg_zoo" / f"{name}.py").write_text(MODULE.format(answer=answer))
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "docs", "repvgg_zoo"]
    done = subprocess.run(command, cwd=str(project), stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.splitlines()


def outcomes(lines, path):
    """How the examples of a file ended, among them the marks that skip one."""
    return [line.split()[1] for line in lines if line.startswith(f"{path}::") and "[" in line]


def test_the_examples_of_a_project_end_as_they_should(lines):
    """All in one test: pytest-xdist would run the project again in each process that has one of them."""
    pages = {name: outcomes(lines, f"docs/{name}.md")[-1:] for name in PAGES}
    assert pages == {name: [outcome] for name, (_, outcome) in PAGES.items()}
    docstrings = {name: outcomes(lines, f"repvgg_zoo/{name}.py")[-1:] for name in DOCSTRINGS}
    assert docstrings == {name: [outcome] for name, (_, outcome) in DOCSTRINGS.items()}
