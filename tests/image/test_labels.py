"""The class names of a checkpoint: ImageNet-1k's, or those that the registry lists."""

from __future__ import annotations

import re

import pytest

import repvgg_zoo
from repvgg_zoo.errors import RegistryError
from repvgg_zoo.image.labels import Label, imagenet, labels_of
from repvgg_zoo.registry.api import find_default_checkpoint
from repvgg_zoo.registry.parser import parse_registry
from tests.registry.sample import SAMPLE


def test_imagenet_has_the_classes_of_the_challenge_in_its_order():
    classes = imagenet()
    assert len(classes) == 1000
    # The logits' order is that of the synsets.
    assert [label.synset for label in classes] == sorted({label.synset for label in classes})
    assert all(re.fullmatch(r"n\d{8}", label.synset) for label in classes)
    known = {
        0: "tench",
        1: "goldfish",
        151: "Chihuahua",
        207: "golden retriever",
        285: "Egyptian cat",
        999: "toilet tissue",
    }
    assert {index: classes[index].name for index in known} == known


def test_names_are_short_and_unique():
    names = [label.name for label in imagenet()]
    assert len({name.casefold() for name in names}) == 1000
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z'. -]{1,30}", name) for name in names)
    assert (names[134], names[517]) == ("crane bird", "crane")
    assert (names[638], names[639]) == ("maillot", "maillot tank suit")


def test_a_checkpoint_has_the_names_of_imagenet_or_its_own():
    assert labels_of(find_default_checkpoint("RepVGG_N0.digits")) == tuple(Label(str(digit)) for digit in range(10))
    for name in repvgg_zoo.list_models(exclude="*N0"):
        for checkpoint in repvgg_zoo.model_info(name).checkpoints:
            assert labels_of(checkpoint) == imagenet()


def test_unknown_names_are_not_guessed():
    a0 = find_default_checkpoint("RepVGG_A0")
    assert labels_of(a0._replace(num_classes=21841)) == ()
    assert labels_of(a0._replace(dataset="a thousand birds")) == ()


OWN = SAMPLE.replace("files/x1.pth", "https://example.org/x1.pth").replace(
    "        top1: 71.5\n", "        num_classes: 3\n        labels: [cat, dog, {third}]\n", 1
)


def test_a_custom_registry_can_name_its_classes():
    model = parse_registry(OWN.replace("{third}", '"2"').encode()).models[0]
    assert labels_of(model.checkpoint("lab")) == (Label("cat"), Label("dog"), Label("2"))


@pytest.mark.parametrize(
    ("third", "says"), [("bird, fish", "4 labels for 3 classes"), ("2", "in quotes"), ("''", "empty")]
)
def test_invalid_names_are_an_error_with_a_line_number(third, says):
    with pytest.raises(RegistryError, match=says) as caught:
        parse_registry(OWN.replace("{third}", third).encode())
    assert caught.value.line == OWN[: OWN.index("labels:")].count("\n") + 1
