"""predict: from an image to names and probabilities, for names, networks and compiled networks."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap

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
from repvgg_zoo.models import RepVGG
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
    network = RepVGG((1, 1, 1, 1), (0.25, 0.25, 0.25, 0.25))
    network.spec, network.checkpoint = repvgg_zoo.model_info("RepVGG_A0"), find_default_checkpoint("RepVGG_A0.timm")
    return network


def class_names(predictions):
    return [prediction.label for prediction in predictions]


def test_the_bundled_checkpoint_has_the_accuracy_in_the_registry(digits, network):
    predictions = predict(network, list(digits[0]), topk=1)
    correct = sum(first.label == str(label) for (first,), label in zip(predictions, digits[1]))
    assert 100 * correct / len(digits[1]) == pytest.approx(find_default_checkpoint("RepVGG_N0").top1, abs=0.005)


def test_a_name_a_tag_and_a_network_in_either_form_agree(digits, network):
    image = digits[0][0]
    expected = predict(network, image)
    assert len(expected) == 5
    train = repvgg_zoo.create("RepVGG_N0", pretrained="digits")
    for other in (predict("n0", image), predict("RepVGG_N0.digits", image), predict(train, image)):
        assert class_names(other) == class_names(expected)
        # Softmax of logits that agree within 1e-6 of their size.
        assert [p.probability for p in other] == pytest.approx([p.probability for p in expected], abs=1e-5)


def test_probabilities_are_the_softmax_in_descending_order(digits, network):
    image = digits[0][3]
    logits = network(Tensor(repvgg_zoo.preprocess(network)(image)[None])).numpy()[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    predictions = predict(network, image, topk=10)
    assert [p.index for p in predictions] == list(np.argsort(-expected))
    assert [p.probability for p in predictions] == pytest.approx(sorted(expected, reverse=True))
    assert class_names(predictions) == [str(p.index) for p in predictions]
    assert predict(network, image, topk=99) == predictions
    assert predict(network, image, topk=3) == predictions[:3]


def test_a_path_an_open_file_and_a_pillow_image_give_the_same(digits, network, tmp_path):
    expected = predict(network, digits[0][5])
    pillow_image = Image.fromarray(digits[0][5])
    pillow_image.save(tmp_path / "digit.png")
    data = (tmp_path / "digit.png").read_bytes()
    for image in (tmp_path / "digit.png", str(tmp_path / "digit.png"), io.BytesIO(data), pillow_image):
        assert predict(network, image) == expected


def test_several_images_give_a_list_for_each(digits, network):
    three = digits[0][:3]
    assert (
        predict(network, list(three)) == predict(network, tuple(three)) == [predict(network, image) for image in three]
    )
    assert predict(network, []) == []


def test_imagenet_classes_have_their_synsets(thousand):
    predictions = predict(thousand, np.random.RandomState(0).randint(0, 256, (50, 60, 3), dtype=np.uint8), topk=1000)
    assert {(p.index, p.label, p.synset) for p in predictions} == {(i, *label) for i, label in enumerate(imagenet())}


def test_a_network_in_training_mode_is_run_in_eval_mode_and_put_back(digits, network):
    training = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    training.train()
    training.stage1.eval()  # a part that its user has frozen
    before = {name: part.training for name, part in training.named_modules()}
    statistics = training.stage0.rbr_dense.bn.running_mean.numpy().copy()
    assert class_names(predict(training, digits[0][0])) == class_names(predict(network, digits[0][0]))
    assert {name: part.training for name, part in training.named_modules()} == before
    assert np.array_equal(training.stage0.rbr_dense.bn.running_mean.numpy(), statistics)


def test_a_custom_head_has_numbered_classes_or_the_labels_argument(digits):
    own = repvgg_zoo.create("RepVGG_N0", pretrained=True, num_classes=3)
    assert {(p.label, p.synset) for p in predict(own, digits[0][0])} == {(f"class {i}", None) for i in range(3)}
    named = predict(own, digits[0][0], labels=["cat", "dog", "bird"])
    assert {(p.index, p.label) for p in named} == {(0, "cat"), (1, "dog"), (2, "bird")}
    with pytest.raises(ArgumentError, match="2 labels for 3 classes"):
        predict(own, digits[0][0], labels=["cat", "dog"])


class Compiled:
    """The interface of a compiled network that predict uses: specs, and a call from arrays to arrays."""

    def __init__(self, network):
        self.spec, self.checkpoint = network.spec, network.checkpoint
        self._network = network

    def __call__(self, inputs):
        assert (type(inputs), inputs.dtype, inputs.ndim) == (np.ndarray, np.float32, 4)
        return self._network(Tensor(inputs)).numpy()


def test_a_compiled_network_gives_the_same(digits, network):
    assert predict(Compiled(network), digits[0][7]) == predict(network, digits[0][7])


class Fixed(M.Module):
    """Returns the same logits for any input."""

    def __init__(self, logits):
        super().__init__()
        self.weight = M.Linear(1, 1).weight
        self.spec, self.checkpoint = repvgg_zoo.model_info("n0"), find_default_checkpoint("n0")
        self.values = np.float32(logits)

    def forward(self, x):
        return Tensor(self.values[None])


def test_large_logits_do_not_overflow_and_equal_ones_keep_their_order():
    predictions = predict(Fixed([-1e30, 1e30, 1e30]), np.zeros((8, 8), np.uint8))
    assert [(p.index, p.probability) for p in predictions] == [(1, 0.5), (2, 0.5), (0, 0.0)]
    assert [p.index for p in predict(Fixed(np.zeros(1000)), np.zeros((8, 8), np.uint8))] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(value):
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
        ({"image": [np.zeros((8, 8), np.uint8), "missing.png"]}, "'missing.png' does not exist"),
        ({"model_or_name": lambda: repvgg_zoo.create("n0", features_only=True)}, "does not return logits"),
        ({"model_or_name": lambda: repvgg_zoo.create("n0", in_chans=3)}, "takes 3 channels"),
    ],
)
def test_invalid_arguments_are_argument_errors(network, arguments, says):
    kwargs = {"model_or_name": network, "image": np.zeros((8, 8), np.uint8), **arguments}
    if callable(kwargs["model_or_name"]) and not isinstance(kwargs["model_or_name"], M.Module):
        kwargs["model_or_name"] = kwargs["model_or_name"]()
    with pytest.raises(ArgumentError, match=says):
        predict(**kwargs)


def test_a_name_without_weights_is_an_error():
    with pytest.raises(UnknownModelError):
        predict("resnet50", "image.png")
    with pytest.raises(NoWeightsError):
        predict("RepVGG_B2g2", "image.png")


def test_a_prediction_as_text():
    assert str(Prediction(207, "golden retriever", 0.8764, "n02099601")) == "golden retriever 87.6 %"


def test_neither_preprocess_nor_predict_imports_megengine(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    code = f"""
        import sys
        import numpy as np

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "megengine":
                    raise ImportError("blocked: " + name)

        sys.meta_path.insert(0, Refuse())
        import repvgg_zoo

        class Network:
            spec = repvgg_zoo.model_info("RepVGG_N0")
            checkpoint = spec.checkpoint("digits")

            def __call__(self, x):
                return np.eye(1, 10, 3, np.float32)

        path = {str(tmp_path / "black.png")!r}
        assert repvgg_zoo.preprocess("RepVGG_N0")(path).shape == (1, 32, 32)
        assert repvgg_zoo.predict(Network(), path)[0].label == "3"
        assert len(repvgg_zoo.predict("RepVGG_N0", path)) == 5
        assert "megengine" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
