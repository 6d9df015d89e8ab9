"""Run the notebooks of the docs, and compare or renew what their cells print.

``python -m tests.examples.notebook`` renews them. Numbers are not compared, as machines differ in the last digits; what
must be right in a number, the cells assert.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


def run(path: Path, folder: Path) -> Any:
    """Return the notebook at ``path`` after it ran in ``folder``, from an empty cache; raise if a cell fails."""
    notebook = nbformat.read(str(path), as_version=4)
    (folder / "work").mkdir()
    variables = {
        "REPVGG_ZOO_HOME": str(folder / "cache"),
        "MGE_DEFAULT_DEVICE": "cpux",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
    }
    with mock.patch.dict(os.environ, variables):
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder / "work")}}).execute()
    return notebook


def printed(notebook: Any) -> List[Tuple[str, Dict[str, str]]]:
    """Return the code of each cell, and its text and HTML without numbers and progress bars."""
    result = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = {}
            for output in cell.outputs:
                if output.output_type == "stream":
                    texts.setdefault(output.name, "")
                    texts[output.name] += output.text
                else:
                    texts.update({kind: "".join(text) for kind, text in output.data.items() if "text" in kind})
            texts.pop("stderr", None)
            if "text/html" in texts:
                texts.pop("text/plain", None)  # which may have digests, and is not shown
            result.append((cell.source, {kind: NUMBER.sub("#", text) for kind, text in texts.items()}))
    return result


def renew(path: Path) -> None:
    """Run a notebook and write it with what its cells printed."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(path, Path(folder))
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for one in NOTEBOOKS:
        renew(one)
