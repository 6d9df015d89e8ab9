"""The wheel and the sdist are the same bytes wherever they are built, and their long description has no dead links.

The kind of fault: file times, umasks or leftovers of the builder's machine in a distribution, which nobody can then
compare with its source; and links that lead nowhere outside the repository.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

import repvgg_zoo
from tools.build import ROOT, build, commit_time
from tools.long_description import absolute_links
from tools.repository import repository, tracked

Built = Dict[str, bytes]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Built, Built, Path]:
    """Both distributions of two copies of the checkout, by their names: the second one is another user's."""
    folder = tmp_path_factory.mktemp("builds")
    results: List[Built] = []
    for user in ("one", "two"):
        root = folder / user
        for name in tracked():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(ROOT / name), str(path))
            is_program = bool((ROOT / name).stat().st_mode & 0o100)
            if user == "two":
                path.chmod(0o700 if is_program else 0o600)
                os.utime(str(path), (10**9, 10**9))
            elif is_program:
                path.chmod(0o755)
        if user == "two":
            (root / "dist").mkdir()
            (root / "dist" / "leftover").touch()
            (root / "repvgg_zoo" / "__pycache__").mkdir()
            (root / "repvgg_zoo" / "__pycache__" / "leftover.pyc").touch()
        paths = build(root, root / "dist", time=commit_time(ROOT))
        results.append({path.name: path.read_bytes() for path in paths})
    return results[0], results[1], folder


def test_two_builds_are_the_same_bytes(builds: Tuple[Built, Built, Path]) -> None:
    one, two, _ = builds
    version = repvgg_zoo.__version__
    assert list(one) == [f"repvgg_zoo-{version}-py3-none-any.whl", f"repvgg_zoo-{version}.tar.gz"]
    assert one == two


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(builds: Tuple[Built, Built, Path]) -> None:
    one, _, folder = builds
    wheel, sdist = one
    with tarfile.open(str(folder / "one" / "dist" / sdist)) as archive:
        archive.extractall(str(folder / "sdist"))
    (root,) = (folder / "sdist").iterdir()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time(ROOT)}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "again")]
    subprocess.run(command, cwd=str(root), env=environment, stdout=subprocess.DEVNULL, check=True)
    assert (folder / "again" / wheel).read_bytes() == one[wheel]


def test_every_link_of_the_long_description_works_outside_the_repository(builds: Tuple[Built, Built, Path]) -> None:
    one, _, folder = builds
    wheel = folder / "one" / "dist" / next(iter(one))
    with zipfile.ZipFile(str(wheel)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload(decode=True)
    assert isinstance(text, bytes)
    links = re.findall(r"\]\(([^)\s]+)\)", text.decode("utf-8"))
    assert len(links) > 20
    ref = f"v{repvgg_zoo.__version__}"
    bases = (
        f"https://github.com/{repository()}/blob/{ref}/",
        f"https://raw.githubusercontent.com/{repository()}/{ref}/",
    )
    for link in links:
        assert link.startswith("https://"), link
        for base in bases:
            if link.startswith(base):
                assert (ROOT / link[len(base) :].partition("#")[0]).exists(), link
    assert f"{bases[1]}docs/demo.png" in links and f"{bases[0]}README.zh-CN.md" in links
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL", []))
    assert urls["Source"] == f"https://github.com/{repository()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](docs/a.md)", "[a](https://github.com/o/r/blob/v1/docs/a.md)"),
        ("[a](docs/a.md#b)", "[a](https://github.com/o/r/blob/v1/docs/a.md#b)"),
        ("![a](a.png)", "![a](https://raw.githubusercontent.com/o/r/v1/a.png)"),
        ("[`a[0]` b](a.md)", "[`a[0]` b](https://github.com/o/r/blob/v1/a.md)"),
        ("[a\nb](a.md)", "[a\nb](https://github.com/o/r/blob/v1/a.md)"),
        ("[a](https://a.example)", "[a](https://a.example)"),
        ("[a](#b)", "[a](#b)"),
        ('`pip install "a[b]"` (c)', '`pip install "a[b]"` (c)'),
    ],
)
def test_relative_links_become_urls(text: str, expected: str) -> None:
    assert absolute_links(text, "https://github.com/o/r", "v1") == expected
