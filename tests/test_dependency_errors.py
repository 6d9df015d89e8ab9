"""The kind: a required package is missing or there, and cannot be imported; the error names it and says what to type.

The best-known one is OpenCV on a machine without libGL, such as a container.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Tuple

import pytest

from repvgg_zoo._requirements import needed_by
from repvgg_zoo.errors import DependencyError

ROOT = Path(__file__).resolve().parents[1]
NO_LIBGL = "libGL.so.1: cannot open shared object file: No such file or directory"
CALLS = """
import repvgg_zoo
import numpy as np
from repvgg_zoo.image.resize import resize_with_opencv

image = np.zeros((8, 8), np.uint8)
for call in (
    lambda: exec("from repvgg_zoo import create"),
    lambda: repvgg_zoo.create,  # a second attempt says the same
    lambda: repvgg_zoo.to_deploy,
    lambda: resize_with_opencv(image, (4, 4), "bicubic"),
):
    try:
        call()
    except (repvgg_zoo.errors.DependencyError, repvgg_zoo.errors.UnavailableError) as error:
        print(error.message, error.hint, sep="|")
"""


def run_without_libgl(tmp_path: Path, *argv: str) -> Tuple[int, str, str]:
    """Run Python where OpenCV cannot load libGL."""
    (tmp_path / "cv2.py").write_text(f"raise ImportError({NO_LIBGL!r})\n")
    env = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "REPVGG_ZOO_HOME": str(tmp_path / "cache"),
        "MGE_DEFAULT_DEVICE": "cpux",
    }
    process = subprocess.run([sys.executable, *argv], env=env, cwd=str(tmp_path), capture_output=True, timeout=60)
    return process.returncode, process.stdout.decode(), process.stderr.decode()


def test_every_call_that_needs_opencv_says_how_to_do_without_libgl(tmp_path):
    code, out, err = run_without_libgl(tmp_path, "-c", CALLS)
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 4
    for line in lines:
        message, hint = line.split("|")
        assert NO_LIBGL in message and "pip install 'opencv-python-headless>=" in hint
    assert lines[0].startswith("create needs MegEngine, which cannot be imported: ") and "cv2" in lines[-1]


@pytest.mark.parametrize("line", ["compare RepVGG_N0", "bench RepVGG_N0 --json"])
def test_a_command_that_needs_opencv_says_how_to_do_without_libgl(tmp_path, line):
    code, out, err = run_without_libgl(tmp_path, "-m", "repvgg_zoo", *line.split())
    error = json.loads(out)["error"] if "--json" in line else {"message": err, "hint": err, "type": "DependencyError"}
    assert code == 7 and error["type"] == "DependencyError"
    assert NO_LIBGL in error["message"] and "pip uninstall opencv-python" in error["hint"]


def fail_in(package: str, error: ImportError) -> None:
    """Raise the error as a line of a package's module does."""
    exec("raise error", {"__name__": f"{package}.module", "error": error})


@pytest.mark.parametrize(
    ("package", "error", "message", "hint"),
    [
        ("megengine", ImportError(NO_LIBGL), "create needs MegEngine, which cannot be imported: libGL", "headless"),
        ("megengine", ImportError("numpy.core.multiarray failed to import"), "multiarray", "numpy>=1.21.2,<2"),
        ("megengine", ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources"), "pkg_", "setupt"),
        ("megengine", ImportError("half of it is missing"), "half of it is missing", "--force-reinstall 'megengine"),
        ("llvmlite", ImportError("libLLVM is broken"), "create needs llvmlite", "--force-reinstall 'llvmlite"),
        (
            "repvgg_zoo",
            ModuleNotFoundError("no", name="megengine.module"),
            "MegEngine, which is not",
            "pip install 'megengine>=",
        ),
        ("repvgg_zoo", ModuleNotFoundError("no", name="cv2"), "cv2, which is not installed", "'opencv-python>="),
    ],
)
def test_an_import_that_fails_names_the_package_and_its_cure(package, error, message, hint):
    with pytest.raises(DependencyError) as caught, needed_by("create"):
        fail_in(package, error)
    assert message in caught.value.message and hint in caught.value.hint and caught.value.__cause__ is error


def test_an_import_that_fails_elsewhere_is_left_alone():
    error = ModuleNotFoundError("No module named 'acme'", name="acme")
    with pytest.raises(ModuleNotFoundError) as caught, needed_by("create"):
        fail_in("acme_plugin", error)
    assert caught.value is error
