"""The examples work as described."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_zoo._resources import hub_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(ROOT / "examples"))
    import train_digits

    yield train_digits
    sys.path.remove(str(ROOT / "examples"))


def test_the_demo_classifies_with_the_bundled_checkpoint_and_draws_an_image(tmp_path):
    output = tmp_path / "digits.png"
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--output-image", str(output)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("358 of 360 test images correct: top-1 99.44 %") == 3
    assert "verified" in result.stdout
    with Image.open(output) as drawn:
        assert drawn.size > (800, 300)
        assert len(drawn.getcolors(maxcolors=1 << 24)) > 10


def test_the_shipped_test_images_are_the_recipes_test_split(recipe):
    _, (images, labels) = recipe.digits()
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as shipped:
        assert np.array_equal(shipped["images"], images)
        assert np.array_equal(shipped["labels"], labels)


def test_the_split_is_stratified_and_no_image_is_in_both_parts(recipe):
    (train_images, train_labels), (test_images, test_labels) = recipe.digits()
    assert (len(train_images), len(test_images)) == (1437, 360)
    share = np.bincount(test_labels) / (np.bincount(test_labels) + np.bincount(train_labels))
    assert np.abs(share - 0.2).max() < 0.005


def test_the_recipe_preprocesses_images_as_the_registry_says(recipe):
    import repvgg_zoo

    images = recipe.digits()[1][0][:5]
    to_input = repvgg_zoo.preprocess("RepVGG_N0.digits")
    assert np.allclose(np.stack([to_input(image) for image in images]), recipe.preprocess(images), atol=1e-6)


def test_the_recipe_learns_and_gives_the_same_weights_for_the_same_seed(recipe):
    (images, labels), _ = recipe.digits()
    some = (images[:320], labels[:320])
    assert recipe.accuracy(recipe.train(some, epochs=4, seed=1), recipe.preprocess(some[0]), some[1]) > 50
    few = (images[:64], labels[:64])
    states = [recipe.train(few, epochs=2, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert all(np.array_equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(np.array_equal(states[0][key], states[2][key]) for key in states[0])
