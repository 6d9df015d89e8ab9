"""Labels are matched with the classes of a network by their names, whatever the order of folders or lines."""

from __future__ import annotations

import pytest

from repvgg_zoo.data.labels import match_labels
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.image.labels import Label, imagenet

IMAGENET = imagenet()
PETS = tuple(map(Label, ["Maine_Coon", "beagle", "Great Dane"]))
TWICE = tuple(map(Label, ["crane", "dog", "crane"]))
NUMBERS = tuple(map(Label, ["10", "9", "1"]))
UNKNOWN = ()


def match(labels, classes, num_classes=None):
    return match_labels(labels, classes, num_classes or len(classes), "x.pth")


MATCHES = {
    "synsets": (["n02099601", "n01440764"], IMAGENET, [207, 0]),
    "class names": (["golden retriever", "tench"], IMAGENET, [207, 0]),
    "synsets with names, as Stanford Dogs": (["n02099601-golden_retriever", "n01440764 tench"], IMAGENET, [207, 0]),
    "indices": (["207", "0", "999"], IMAGENET, [207, 0, 999]),
    "indices with zeros before them": (["007", "010"], IMAGENET, [7, 10]),
    "another case": (["maine_coon", "Beagle"], PETS, [0, 1]),
    "dashes, underscores and spaces": (["maine-coon", "great_dane"], PETS, [0, 2]),
    "names that are numbers": (["1", "10", "9"], NUMBERS, [2, 0, 1]),
    "indices where no names are known": (["2", "0"], UNKNOWN, [2, 0]),
    "an index where a name is ambiguous": (["2", "dog"], TWICE, [2, 1]),
}


@pytest.mark.parametrize(("labels", "classes", "expected"), MATCHES.values(), ids=MATCHES)
def test_labels_may_be(labels, classes, expected):
    num_classes = len(classes) or 3
    assert list(match(labels, classes, num_classes).values()) == expected
    assert match(labels[::-1], classes, num_classes) == match(labels, classes, num_classes)


def test_the_own_spelling_of_a_name_comes_before_a_similar_one():
    classes = tuple(map(Label, ["a b", "a-b"]))
    assert match(["a-b", "a b"], classes) == {"a-b": 1, "a b": 0}


ERRORS = {
    "a name that is none": (["beagle", "poodle"], PETS, "1 of 2 labels are not classes of x.pth: 'poodle'"),
    "an index that is too large": (["1", "3"], PETS, "not classes of x.pth: '3'"),
    "an index of many digits": (["1", "000000000009"], PETS, "not classes of x.pth: '000000000009'"),
    "an index where names are numbers": (["0"], NUMBERS, "not classes of x.pth: '0'"),
    "a name where names are not known": (["cat"], UNKNOWN, "its class names are not known"),
    "the name of two classes": (["crane"], TWICE, "'crane' may be the classes 0 \\(crane\\) and 2 \\(crane\\)"),
    "similar to two classes": (["A-B"], tuple(map(Label, ["a b", "a-b"])), "may be the classes 0"),
    "a digit of another script": (["²"], UNKNOWN, "not classes"),
}


@pytest.mark.parametrize(("labels", "classes", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_shows_the_labels_and_the_classes_for(labels, classes, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        match(labels, classes, len(classes) or 3)
    assert caught.value.actual == labels
    assert all(label in caught.value.message for label in labels)
    assert all(name in caught.value.message for name in caught.value.expected)
    assert caught.value.hint


def test_a_long_list_is_shortened_and_the_hint_has_the_closest_name():
    with pytest.raises(ArgumentError, match="and 990 more") as caught:
        match(["golden retreiver"], IMAGENET)
    assert "did you mean 'golden retriever'?" in caught.value.hint
