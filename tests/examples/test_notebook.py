"""The notebooks run from their first cell to their last, and show what their cells print."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from .notebook import NOTEBOOKS, printed, run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_its_cells_print(path: Path, tmp_path: Path) -> None:
    expected = printed(nbformat.read(str(path), as_version=4))
    for (source, before), (_, now) in zip(expected, printed(run(path, tmp_path))):
        assert now == before, f"{source}\n./dev python -m tests.examples.notebook renews the notebooks"
    tables = [texts for _, texts in expected if "text/html" in texts]
    assert len(tables) >= 5, "objects show themselves as tables"
