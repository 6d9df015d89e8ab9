"""Images for a file of one's own: its preprocessing and its classes are those that belong to its weights.

The kind: a file or a network whose preprocessing or classes are not those of the variant's default checkpoint, because
it was fine-tuned, is another publisher's, or got another head. Nothing is guessed silently: what is not known is
numbered, and where a preprocessing is from can be read.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any, Dict

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor
from megengine.quantization import quantize_qat

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.checkpoints.layouts import LAYOUTS as PUBLISHERS
from repvgg_zoo.checkpoints.metadata import metadata_of_spec
from repvgg_zoo.checkpoints.save import to_publisher_state_dict
from repvgg_zoo.errors import ArgumentError, MissingFileError
from repvgg_zoo.image.labels import imagenet
from repvgg_zoo.registry.specs import Preprocessing

from ..networks import randomised

TINY: Dict[str, Any] = {"num_blocks": (1, 1, 1, 1), "width_multiplier": (0.25,) * 4}
OWN = Preprocessing(32, 36, "bilinear", "pillow", "BGR", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
IMAGE = np.random.RandomState(0).randint(0, 256, (40, 50, 3), np.uint8)
NAMES = ("cat", "dog", "\x1b[31mbird")


@pytest.fixture(scope="module")
def network():
    network = randomised(repvgg_zoo.create("RepVGG_A0", num_classes=3, **TINY))
    network.eval()
    return network


@pytest.fixture(scope="module")
def fine_tuned(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "birds.safetensors"
    save_checkpoint(path, network, class_names=NAMES, preprocessing=OWN)
    return path


# A fine-tuned file needs no flags ----------------------------------------------------------------------------

WAYS = {
    "a path": str,
    "a path object": lambda path: path,
    "a Checkpoint": load_checkpoint,
    "a network": lambda path: repvgg_zoo.create("RepVGG_A0", checkpoint=path),
    "a deployed network": lambda path: repvgg_zoo.to_deploy(repvgg_zoo.create("RepVGG_A0", checkpoint=path)),
    "a compiled network": lambda path: repvgg_zoo.compile(repvgg_zoo.create("RepVGG_A0", checkpoint=path)),
    "a compiled file": repvgg_zoo.compile,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_fine_tuned_file_needs_no_flags_as(network, fine_tuned, way):
    model = WAYS[way](fine_tuned)
    to_input = repvgg_zoo.preprocess(model)
    assert (to_input.preprocessing, to_input.source) == (OWN, "the file")
    logits = network(Tensor(repvgg_zoo.preprocess(fine_tuned)(IMAGE)[None])).numpy()[0]
    predictions = repvgg_zoo.predict(model, IMAGE)
    assert [p.index for p in predictions] == list(np.argsort(-logits))
    assert [p.label for p in predictions] == [NAMES[p.index] for p in predictions]
    assert getattr(model, "shape", (1, 3, 32, 32)) == (1, 3, 32, 32)


def test_a_compiled_file_is_compared_once(fine_tuned):
    with repvgg_zoo.compile(fine_tuned) as compiled:
        assert compiled.spec.name == "RepVGG_A0"
        assert compiled.metadata.class_names == NAMES
        assert compiled.error < 1e-4


def test_a_name_from_a_file_is_escaped_as_text(fine_tuned):
    texts = [str(prediction) for prediction in repvgg_zoo.predict(fine_tuned, IMAGE)]
    assert any("\\x1b[31mbird" in text for text in texts)
    assert not any("\x1b" in text for text in texts)


@pytest.mark.parametrize("function", [repvgg_zoo.compile, repvgg_zoo.preprocess])
def test_a_file_that_does_not_exist_is_not_a_model(function):
    with pytest.raises(MissingFileError, match=r"birds\.pth does not exist"):
        function("birds.pth")


# A file in a publisher's layout ------------------------------------------------------------------------------


def foreign(network, layout, path):
    """A file as the publisher's own program writes it."""
    arrays = to_publisher_state_dict(network.state_dict(), layout)
    path.write_bytes(pickle.dumps({str(key): np.array(value) for key, value in arrays.items()}))
    return path


LAYOUTS = [
    ("basecls", "BGR", "opencv", "RepVGG_A0.basecls, as the file has the layout basecls"),
    ("asthestarsfalll", "BGR", "opencv", "RepVGG_A0.basecls, as the file has the layout asthestarsfalll"),
    ("timm", "RGB", "pillow", "RepVGG_A0.timm, as the file has the layout timm"),
    ("openmmlab", "RGB", "pillow", "RepVGG_A0.openmmlab, as the file has the layout openmmlab"),
    ("official", "RGB", "pillow", "RepVGG_A0.official, as the file has the layout official"),
    ("canonical", "RGB", "pillow", "RepVGG_A0.official, the default checkpoint of RepVGG_A0"),
]


@pytest.mark.parametrize(("layout", "color_order", "backend", "source"), LAYOUTS)
def test_a_publishers_file_is_preprocessed_as_the_publisher_does_it(
    network, tmp_path, layout, color_order, backend, source
):
    path = foreign(network, PUBLISHERS[layout], tmp_path / "theirs.pkl")
    checkpoint = load_checkpoint(path, layout=layout)
    theirs = repvgg_zoo.create("RepVGG_A0", checkpoint=checkpoint, **TINY)
    to_input = repvgg_zoo.preprocess(theirs)
    assert (to_input.preprocessing.color_order, to_input.preprocessing.backend) == (color_order, backend)
    assert to_input.source == source
    assert f"{color_order}, resized to 256 bilinear by {backend}, from {source}" in repr(to_input)

    # A copy in another layout is of the same weights.
    save_checkpoint(tmp_path / "copy.safetensors", theirs)
    assert repvgg_zoo.preprocess(tmp_path / "copy.safetensors").preprocessing == to_input.preprocessing


def test_a_publishers_file_of_an_unknown_variant_is_preprocessed_as_most_of_the_publishers(network, tmp_path):
    path = foreign(network, "basecls", tmp_path / "theirs.pkl")
    to_input = repvgg_zoo.preprocess(path)
    assert (to_input.preprocessing.color_order, to_input.preprocessing.image_size) == ("BGR", 224)
    assert to_input.source == "Megvii BaseCls, as the file has the layout basecls"
    save_checkpoint(tmp_path / "copy.safetensors", load_checkpoint(path))
    assert repvgg_zoo.preprocess(tmp_path / "copy.safetensors").preprocessing == to_input.preprocessing


def test_a_publisher_of_color_images_does_not_decide_for_a_gray_network(tmp_path):
    digits = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    to_input = repvgg_zoo.preprocess(foreign(digits, "timm", tmp_path / "n0.pkl"))
    assert to_input.preprocessing == digits.checkpoint.preprocessing
    assert to_input.source == "RepVGG_N0.digits, the default checkpoint of RepVGG_N0"


def test_a_preprocessing_that_nobody_knows_is_an_error(network, tmp_path):
    with pytest.raises(ArgumentError, match="is not known") as caught:
        repvgg_zoo.preprocess(foreign(network, "canonical", tmp_path / "theirs.pkl"))
    assert "preprocessing=" in caught.value.hint


# The labels of a head that is another one --------------------------------------------------------------------


def replaced():
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    network.linear = M.Linear(network.linear.in_features, 10)
    return network


def with_foreign_head(tmp_path):
    arrays = dict(repvgg_zoo.create("RepVGG_N0", num_classes=9).state_dict())
    (tmp_path / "nine.pkl").write_bytes(pickle.dumps(arrays))
    return repvgg_zoo.create("RepVGG_N0", checkpoint=tmp_path / "nine.pkl")


FOREIGN_HEADS = {
    "random weights": lambda path: repvgg_zoo.create("RepVGG_N0"),
    "random weights with as many classes": lambda path: repvgg_zoo.create("RepVGG_N0", num_classes=10),
    "another number of classes": lambda path: repvgg_zoo.create("RepVGG_N0", pretrained=True, num_classes=9),
    "a head that was put in its place": lambda path: replaced(),
    "the same in the deploy form": lambda path: repvgg_zoo.to_deploy(replaced()),
    "the same, compiled": lambda path: repvgg_zoo.compile(replaced()),
    "a file with nine classes": with_foreign_head,
}


@pytest.mark.parametrize("head", FOREIGN_HEADS)
def test_a_foreign_head_has_numbered_classes(tmp_path, head):
    predictions = repvgg_zoo.predict(FOREIGN_HEADS[head](tmp_path), np.zeros((8, 8), np.uint8), topk=10)
    assert [p.label for p in predictions] == [f"class {p.index}" for p in predictions]


def named():
    network = repvgg_zoo.create("RepVGG_N0")
    network.metadata = replace(network.metadata, class_names=tuple(map(str, range(10))))
    return network


OWN_HEADS = {
    "a network whose user has named its classes": lambda path: named(),
    "the network": lambda path: repvgg_zoo.create("RepVGG_N0", pretrained=True),
    "its deploy form": lambda path: repvgg_zoo.to_deploy(repvgg_zoo.create("RepVGG_N0", pretrained=True)),
    "compiled": lambda path: repvgg_zoo.compile("RepVGG_N0"),
    "made ready for quantization": lambda path: quantize_qat(repvgg_zoo.create("n0", pretrained=True, deploy=True)),
    "asked for the classes that it has": lambda path: repvgg_zoo.create("n0", pretrained=True, num_classes=10),
    "its own file": lambda path: save_n0(path),
}


def save_n0(folder):
    save_checkpoint(folder / "n0.pkl", repvgg_zoo.create("RepVGG_N0", pretrained=True), layout="official")
    return folder / "n0.pkl"


@pytest.mark.parametrize("head", OWN_HEADS)
def test_the_published_head_has_its_names(tmp_path, head):
    predictions = repvgg_zoo.predict(OWN_HEADS[head](tmp_path), np.zeros((8, 8), np.uint8), topk=10)
    assert [p.label for p in predictions] == [str(p.index) for p in predictions]


def test_a_file_from_elsewhere_with_a_thousand_classes_is_one_of_imagenet(tmp_path):
    network = repvgg_zoo.create("RepVGG_A0", **TINY)
    theirs = repvgg_zoo.create("RepVGG_A0", checkpoint=foreign(network, "timm", tmp_path / "a0.pkl"), **TINY)
    first = repvgg_zoo.predict(theirs, IMAGE)[0]
    assert (first.label, first.synset) == imagenet()[first.index]
    save_checkpoint(tmp_path / "own.pkl", network)  # trained on other classes, which its user does not name
    own = repvgg_zoo.create("RepVGG_A0", checkpoint=tmp_path / "own.pkl")
    assert repvgg_zoo.predict(own, IMAGE)[0].label.startswith("class ")


def test_the_classes_of_imagenet_keep_their_synsets_in_a_file(tmp_path):
    network = repvgg_zoo.create("RepVGG_A0", **TINY)
    checkpoint = foreign(network, "timm", tmp_path / "a0.pkl")
    published = repvgg_zoo.model_info("RepVGG_A0").checkpoint("timm")

    metadata = replace(
        metadata_of_spec(published),
        architecture=network.metadata.architecture,
        preprocessing=OWN,
        source_sha256="0" * 64,
    )
    save_checkpoint(tmp_path / "a0.safetensors", replace(load_checkpoint(checkpoint), metadata=metadata))
    first = repvgg_zoo.predict(tmp_path / "a0.safetensors", IMAGE)[0]
    assert (first.label, first.synset) == imagenet()[first.index]
