"""The examples of the docs are run: a broken one fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DOCSTRING = '''"""A module.

>>> 1 + 1
{answer}
"""
'''


def outcomes(project: Path, folder: Path) -> str:
    """Return the output of pytest in a project with our conftest.py and one file."""
    shutil.copy(str(ROOT / "conftest.py"), str(project / "conftest.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=str(project), stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("```python\nassert 1 + 1 == 2\n```\n", "1 passed"),
        ("```python\nassert 1 + 1 == 3\n```\n", "1 failed"),
        ("```python\n>>> 1 + 1\n3\n```\n", "1 failed"),
        ("```pycon\n>>> 1 + 1\n2\n```\n", "1 passed"),
        ("```pycon\n>>> 1 + 1\n3\n```\n", "1 failed"),
        ('<!-- skip: next "needs the internet" -->\n\n```python\nassert 1 + 1 == 3\n```\n', "1 skipped"),
        (
            "```python\nimport os\nassert os.listdir('.') == [] and 'cache' in os.environ['REPVGG_ZOO_HOME']\n```\n",
            "1 passed",
        ),
    ],
)
def test_an_example_in_a_markdown_page_is_run(tmp_path: Path, block: str, expected: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# A page\n\n" + block)
    assert expected in outcomes(tmp_path, tmp_path / "docs")


@pytest.mark.parametrize(("answer", "expected"), [("2", "1 passed"), ("3", "1 failed")])
def test_an_example_in_a_docstring_is_run(tmp_path: Path, answer: str, expected: str) -> None:
    (tmp_path / "repvgg_zoo").mkdir()
    (tmp_path / "repvgg_zoo" / "__init__.py").write_text(DOCSTRING.format(answer=answer))
    assert expected in outcomes(tmp_path, tmp_path / "repvgg_zoo")
