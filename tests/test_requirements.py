"""Requirement ranges are read from where they are stated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from repvgg_zoo._requirements import Requirement, has_megengine_wheels, requirement, requirements

ROOT = Path(__file__).resolve().parents[1]


CAPS = {"numpy": "2", "cv2": "4.12"} if has_megengine_wheels() else {"numpy": None}
LOWER = {"numpy": "1.21.2", "cv2": "4.5.5.64", "filelock": "3.12", "PIL": "9.1"}


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [(name, LOWER[name], cap) for name, cap in {**CAPS, "filelock": None, "PIL": None}.items()],
)
def test_a_range_is_found_by_distribution_or_module(name, lower, upper):
    result = requirement(name)
    assert (result.lower, result.upper) == (lower, upper)
    assert requirement(result.name) == requirement(result.import_name) == result


def test_every_bound_is_stated_in_pyproject_toml():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(requirements()) >= 9
    for one in requirements().values():
        for bound in filter(None, (one.lower and f">={one.lower}", one.upper and f"<{one.upper}")):
            assert re.search(rf'"{one.name}(>=[^"<;]*,?)?{re.escape(bound)}', text), (one, bound)


def test_a_package_that_is_not_required_has_no_bounds():
    assert str(requirement("scipy")) == "scipy" and requirement("scipy") == Requirement("scipy", None, None)


def test_an_installed_package_reads_its_own_metadata(tmp_path):
    """Metadata has its own order of bounds, and requirements of extras."""
    info = tmp_path / "repvgg_zoo-0.1.0.dist-info"
    info.mkdir()
    stated = ("numpy<2,>=1.21.2", "pillow>=9.1", 'torch>=2; extra == "peers"')
    requires = "".join(f"Requires-Dist: {line}\n" for line in stated)
    (info / "METADATA").write_text(f"Metadata-Version: 2.3\nName: repvgg-zoo\nVersion: 0.1.0\n{requires}")
    package = tmp_path / "repvgg_zoo"
    package.mkdir()
    for name in ("__init__.py", "_escape.py", "_requirements.py", "errors.py"):
        (package / name).write_text((ROOT / "repvgg_zoo" / name).read_text(encoding="utf-8"))
    code = """
        from repvgg_zoo._requirements import requirements
        print(*requirements().values())
    """
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}  # before the package that is installed here
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=str(tmp_path),
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "numpy>=1.21.2,<2 pillow>=9.1\n", done.stderr
