"""Images for training and validation: each class in both, none in both, and what cannot be split is an error."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.training.samples import split_samples


def write(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(root / name / f"{number}.png")
    return root


def split(data, val=None, labels=None, seed=0):
    return split_samples(data, val, labels=labels, seed=seed)


def test_a_tenth_of_each_class_is_held_out_and_at_least_one_image(tmp_path):
    result = split(write(tmp_path, cat=30, dog=20, rare=2))
    assert result.class_names == ("cat", "dog", "rare")
    assert Counter(result.val.labels.tolist()) == {0: 3, 1: 2, 2: 1}
    keys = [sample.key for part in (result.train, result.val) for sample in part.samples]
    assert len(keys) == len(set(keys)) == 52


def test_labels_are_those_of_the_folders(tmp_path):
    result = split(write(tmp_path, cat=5, dog=5), val=0.4)
    for part in (result.train, result.val):
        assert [result.class_names[index] for index in part.labels] == [sample.label for sample in part.samples]


def test_the_split_is_the_same_for_a_seed_and_another_for_another(tmp_path):
    data = write(tmp_path, cat=20, dog=20)
    keys = [{sample.key for sample in split(data, seed=seed).val.samples} for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_images_for_validation_of_their_own_may_lack_a_class(tmp_path):
    result = split(write(tmp_path / "a", cat=3, dog=3), val=write(tmp_path / "b", dog=2))
    assert result.val.labels.tolist() == [1, 1] and len(result.train.labels) == 6


def test_the_digest_is_that_of_the_images(tmp_path):
    data = write(tmp_path, cat=3, dog=3)
    before = split(data).digest
    assert split(data).digest == before
    (data / "cat" / "2.png").unlink()
    assert split(data).digest != before


BAD = {
    "one class": (lambda root: (write(root, cat=3), None), "one class, cat"),
    "a class without images": (lambda root: (write(root, cat=3, dog=0, cow=3), None), "no images: dog"),
    "a class of one image": (lambda root: (write(root, cat=3, dog=1), None), "dog has one image"),
    "an image beside the folders": (
        lambda root: (write(root, cat=3, dog=3), shutil.copy(str(root / "cat" / "0.png"), str(root / "stray.png")))[
            0:1
        ],
        r"1 of 7 images .*stray\.png",
    ),
    "another class in val": (
        lambda root: (write(root / "a", cat=3, dog=3), write(root / "b", cat=3, wolf=3)),
        "not classes of data: wolf; those of data are cat, dog",
    ),
    "a share of all images": (lambda root: (write(root, cat=3, dog=3), 1.0), "val is 1"),
    "a share of nothing": (lambda root: (write(root, cat=3, dog=3), 0), "val is 0"),
    "a folder that does not exist": (lambda root: (write(root, cat=3, dog=3), root / "nowhere"), "does not exist"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_split_is_an_error(tmp_path, make, message):
    data, val = (*make(tmp_path), None)[:2]
    with pytest.raises(ArgumentError, match=message) as caught:
        split(data, val)
    assert caught.value.hint
