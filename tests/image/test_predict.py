"""predict: from a picture to names and probabilities, for names, networks and compiled networks alike."""

from __future__ import annotations

import io

import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor
from PIL import Image

import repvgg_zoo
from repvgg_zoo import Prediction, predict
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.errors import ArgumentError, NoWeightsError, UnknownModelError
from repvgg_zoo.image.labels import imagenet
from repvgg_zoo.registry.api import find_default_checkpoint


@pytest.fixture(scope="module")
def digits():
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


@pytest.fixture(scope="module")
def network():
    return repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)


@pytest.fixture(scope="module")
def thousand():
    """A small network with a thousand classes and random weights, which stands for RepVGG_A0's checkpoints."""
    network = repvgg_zoo.create("RepVGG_A0", num_blocks=(1, 1, 1, 1), width_multiplier=(0.25, 0.25, 0.25, 0.25))
    network.checkpoint = find_default_checkpoint("RepVGG_A0.timm")
    return network


def class_names(predictions):
    return [prediction.label for prediction in predictions]


def test_the_bundled_checkpoint_is_as_right_as_the_registry_says(digits, network):
    found = predict(network, list(digits[0]), topk=1)
    right = sum(first.label == str(label) for (first,), label in zip(found, digits[1]))
    assert 100 * right / len(digits[1]) == pytest.approx(find_default_checkpoint("RepVGG_N0").top1, abs=0.005)


def test_a_name_a_tag_and_a_network_in_either_form_agree(digits, network):
    image = digits[0][0]
    expected = predict(network, image)
    assert len(expected) == 5
    train = repvgg_zoo.create("RepVGG_N0", pretrained="digits")
    for other in (predict("n0", image), predict("RepVGG_N0.digits", image), predict(train, image)):
        assert class_names(other) == class_names(expected)
        # Softmax of logits that agree within 1e-6 of their size.
        assert [p.probability for p in other] == pytest.approx([p.probability for p in expected], abs=1e-5)


def test_probabilities_are_softmax_of_the_logits_likeliest_first(digits, network):
    image = digits[0][3]
    logits = network(Tensor(repvgg_zoo.preprocess(network)(image)[None])).numpy()[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    found = predict(network, image, topk=10)
    assert [p.index for p in found] == list(np.argsort(-expected))
    assert [p.probability for p in found] == pytest.approx(sorted(expected, reverse=True))
    assert class_names(found) == [str(p.index) for p in found]
    assert predict(network, image, topk=99) == found
    assert predict(network, image, topk=3) == found[:3]


def test_a_path_an_open_file_and_a_pillow_image_are_one_picture(digits, network, tmp_path):
    expected = predict(network, digits[0][5])
    picture = Image.fromarray(digits[0][5])
    picture.save(tmp_path / "digit.png")
    data = (tmp_path / "digit.png").read_bytes()
    for image in (tmp_path / "digit.png", str(tmp_path / "digit.png"), io.BytesIO(data), picture):
        assert predict(network, image) == expected


def test_several_pictures_give_a_list_for_each(digits, network):
    three = digits[0][:3]
    assert predict(network, list(three)) == predict(network, tuple(three)) == [predict(network, one) for one in three]
    assert predict(network, []) == []


def test_imagenets_classes_come_with_their_synsets(thousand):
    found = predict(thousand, np.random.RandomState(0).randint(0, 256, (50, 60, 3), dtype=np.uint8), topk=1000)
    assert {(p.index, p.label, p.synset) for p in found} == {(i, *label) for i, label in enumerate(imagenet())}


def test_a_network_in_training_mode_is_evaluated_and_put_back(digits, network):
    training = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    training.train()
    training.stage1.eval()  # a part that its user has frozen
    before = {name: part.training for name, part in training.named_modules()}
    statistics = training.stage0.rbr_dense.bn.running_mean.numpy().copy()
    assert class_names(predict(training, digits[0][0])) == class_names(predict(network, digits[0][0]))
    assert {name: part.training for name, part in training.named_modules()} == before
    assert np.array_equal(training.stage0.rbr_dense.bn.running_mean.numpy(), statistics)


def test_a_head_of_ones_own_has_numbers_or_the_names_that_are_given(digits):
    own = repvgg_zoo.create("RepVGG_N0", pretrained=True, num_classes=3)
    assert {(p.label, p.synset) for p in predict(own, digits[0][0])} == {(f"class {i}", None) for i in range(3)}
    named = predict(own, digits[0][0], labels=["cat", "dog", "bird"])
    assert {(p.index, p.label) for p in named} == {(0, "cat"), (1, "dog"), (2, "bird")}
    with pytest.raises(ArgumentError, match="2 labels for 3 classes"):
        predict(own, digits[0][0], labels=["cat", "dog"])


class Compiled:
    """What a compiled network is to predict: its specs, and a call from arrays to arrays."""

    def __init__(self, network):
        self.spec, self.checkpoint = network.spec, network.checkpoint
        self._network = network

    def __call__(self, inputs):
        assert (type(inputs), inputs.dtype, inputs.ndim) == (np.ndarray, np.float32, 4)
        return self._network(Tensor(inputs)).numpy()


def test_a_compiled_network_is_as_good(digits, network):
    assert predict(Compiled(network), digits[0][7]) == predict(network, digits[0][7])


class Fixed(M.Module):
    """Gives the same logits for anything."""

    def __init__(self, logits):
        super().__init__()
        self.weight = M.Linear(1, 1).weight
        self.spec, self.checkpoint = repvgg_zoo.model_info("n0"), find_default_checkpoint("n0")
        self.values = np.float32(logits)

    def forward(self, x):
        return Tensor(self.values[None])


def test_great_logits_do_not_overflow_and_equal_ones_keep_their_order():
    found = predict(Fixed([-1e30, 1e30, 1e30]), np.zeros((8, 8), np.uint8))
    assert [(p.index, p.probability) for p in found] == [(1, 0.5), (2, 0.5), (0, 0.0)]
    assert [p.index for p in predict(Fixed(np.zeros(1000)), np.zeros((8, 8), np.uint8))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(value):
    with pytest.raises(ArgumentError, match="not finite"):
        predict(Fixed([0, value]), np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"topk": 0}, "topk is 0"),
        ({"topk": True}, "topk is True"),
        ({"topk": 2.0}, "topk is 2.0"),
        ({"model_or_name": object()}, "neither a name nor a network"),
        ({"model_or_name": M.Conv2d(1, 1, 1)}, "neither a name nor a network"),
        ({"image": np.zeros((2, 8, 8, 1), np.uint8)}, "list of images"),
        ({"image": [np.zeros((8, 8), np.uint8), "missing.png"]}, "no file 'missing.png'"),
        ({"model_or_name": lambda: repvgg_zoo.create("n0", features_only=True)}, "no logits"),
        ({"model_or_name": lambda: repvgg_zoo.create("n0", in_chans=3)}, "takes 3 channels"),
    ],
)
def test_what_cannot_work_is_an_argument_error(network, arguments, says):
    given = {"model_or_name": network, "image": np.zeros((8, 8), np.uint8), **arguments}
    if callable(given["model_or_name"]) and not isinstance(given["model_or_name"], M.Module):
        given["model_or_name"] = given["model_or_name"]()
    with pytest.raises(ArgumentError, match=says):
        predict(**given)


def test_names_without_weights_say_so(tmp_path):
    with pytest.raises(UnknownModelError):
        predict("resnet50", "picture.png")
    with pytest.raises(NoWeightsError):
        predict("RepVGG_B2g2", "picture.png")


def test_a_prediction_reads_well():
    assert str(Prediction(207, "golden retriever", 0.8764, "n02099601")) == "golden retriever 87.6 %"
