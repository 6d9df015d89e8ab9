"""Where MegEngine has no wheels, what needs it says so, and all else works: a day's work on one checkpoint.

The other tests of `./dev test` on such an interpreter are of what never needs it.
"""

from __future__ import annotations

import importlib.util
import platform
import sys

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo._requirements import has_megengine_wheels, requirements
from repvgg_zoo.cli import main
from repvgg_zoo.errors import UnavailableError

no_wheels = pytest.mark.skipif(has_megengine_wheels(), reason="MegEngine has wheels for this interpreter")


def test_megengine_is_installed_exactly_where_it_has_wheels():
    assert (importlib.util.find_spec("megengine") is not None) == has_megengine_wheels()
    names = {"megengine", "opencv-python", "setuptools"}
    assert names & requirements().keys() == (names if has_megengine_wheels() else set())


@no_wheels
@pytest.mark.parametrize("name", ["create", "to_deploy", "compare_forms"])
def test_what_needs_megengine_names_the_pythons_that_have_it(name):
    with pytest.raises(UnavailableError, match="has no wheel for CPython") as caught:
        getattr(repvgg_zoo, name)
    assert caught.value.expected == "CPython 3.8 to 3.10 on x86_64"
    assert platform.machine() in caught.value.actual
    assert not hasattr(repvgg_zoo, name)


@no_wheels
def test_the_doctor_warns_and_finds_nothing_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path))
    assert main(["doctor", "python", "packages", "megengine"]) == 0
    printed = capsys.readouterr().out
    assert "warn  Python" in printed
    assert "FAIL" not in printed


def test_a_checkpoint_is_fetched_converted_compiled_and_applied_without_megengine(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = repvgg_zoo.fetch("RepVGG_N0")
    checkpoint = repvgg_zoo.load_checkpoint(path)
    repvgg_zoo.save_checkpoint("own.safetensors", checkpoint)
    image = np.random.RandomState(0).randint(0, 256, (8, 8), dtype=np.uint8)
    results = [repvgg_zoo.predict(model, image, topk=1)[0] for model in ("RepVGG_N0", "own.safetensors")]
    assert results[0].index == results[1].index
    assert abs(results[0].probability - results[1].probability) < 1e-5
    assert repvgg_zoo.cost("RepVGG_N0").params.deploy > 200_000
    assert has_megengine_wheels() or "megengine" not in sys.modules
