"""The repository's name is stated once: wherever it is mentioned it is that of pyproject.toml, and a tool changes it.

The kind of fault: a fork, or a repository that moves, whose docs, help texts and model card send readers elsewhere.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

from tools.repository import ROOT, rename, repository, tracked

# How a page or a program refers to a repository of this name.
MENTIONS = (
    r"github(?:usercontent)?\.com/([\w.-]+/repvgg_zoo)\b",
    r"\b([\w.-]+/repvgg_zoo):\w",
    r"--repo ([\w.-]+/repvgg_zoo)\b",
)
PLACES = ("README.md", "README.zh-CN.md", "SECURITY.md", "CITATION.cff", "docs/installation.md", "docs/hub.md")
PLACES += ("hub/models/repvgg-zoo_vision_repvgg.md", "repvgg_zoo/cli/describe.py", ".github/ISSUE_TEMPLATE/config.yml")


def mentions(root: Path) -> Dict[str, List[str]]:
    """Return the repositories of this name that each file mentions."""
    result = {}
    for name in tracked(root):
        text = (root / name).read_bytes().decode("utf-8", errors="ignore")
        repositories = [match for pattern in MENTIONS for match in re.findall(pattern, text)]
        if repositories and name != "tests/tooling/test_repository.py":
            result[name] = repositories
    return result


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, List[str]]:
    """A copy of all files in which the repository was renamed, and the files that were changed."""
    root = tmp_path_factory.mktemp("fork")
    for name in tracked():
        if not name.startswith("benchmarks/results/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(ROOT / name), str(root / name))
    return root, rename("acme/zoo", root, files=[name for name in tracked() if (root / name).exists()])


def test_every_mention_is_the_repository_of_pyproject() -> None:
    everywhere = mentions(ROOT)
    assert set(PLACES) <= everywhere.keys()
    assert {name for names in everywhere.values() for name in names} == {repository()}


def test_the_tool_renames_it_everywhere(fork: Tuple[Path, List[str]]) -> None:
    root, changed = fork
    assert repository(root) == "acme/zoo"
    assert {*PLACES, "pyproject.toml", "README.md"} <= set(changed)
    left = [path for path in root.rglob("*") if path.is_file() and repository().encode() in path.read_bytes()]
    assert left == []
    assert 'hub.load("acme/zoo:main"' in (root / "repvgg_zoo" / "cli" / "describe.py").read_text(encoding="utf-8")
