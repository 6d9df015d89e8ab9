"""create: from a name to a working network, in any form, with any head, or with an error that says why not."""

from __future__ import annotations

import logging
from contextlib import suppress

import numpy as np
import pytest
from megengine import Tensor
from safetensors.numpy import save_file

import repvgg_zoo
from repvgg_zoo._resources import hub_folder
from repvgg_zoo.builder import create
from repvgg_zoo.checkpoints import save_checkpoint
from repvgg_zoo.errors import (
    ArgumentError,
    CheckpointFormatError,
    EquivalenceError,
    FormError,
    NoWeightsError,
    StateError,
    UnknownModelError,
    UnverifiedError,
)
from repvgg_zoo.reparam.to_deploy import to_deploy

DIGITS = "RepVGG_N0.digits"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    with np.load(hub_folder() / "digits-test.npz", allow_pickle=False) as arrays:
        to_input = repvgg_zoo.preprocess(DIGITS)
        return np.stack([to_input(image) for image in arrays["images"]]), arrays["labels"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (DIGITS, {"pretrained": True}),
        ("n0", {"pretrained": "digits"}),
        ("RepVGG_N0", {"pretrained": True, "deploy": True}),
    ],
)
def test_the_bundled_checkpoint_classifies_the_test_images_in_both_forms(name, arguments, digits):
    network = create(name, **arguments)
    images, labels = digits
    right = (network(Tensor(images)).numpy().argmax(1) == labels).sum()
    assert right == 358
    assert not network.training
    assert network.spec.name == "RepVGG_N0"
    assert network.checkpoint.name == DIGITS


def test_random_weights_are_in_training_mode_and_carry_no_checkpoint():
    network = create("RepVGG_N0")
    assert network.training
    assert network.checkpoint is None
    assert network(Tensor(np.zeros((2, 1, 32, 32), np.float32))).shape == (2, 10)


def test_loading_gives_every_tensor_of_the_file_exactly(digits):
    path = repvgg_zoo.fetch(DIGITS)
    arrays = repvgg_zoo.load_checkpoint(path).state_dict
    state = create(DIGITS, pretrained=True).state_dict()
    assert set(state) == set(arrays)
    assert all(np.array_equal(state[key].ravel(), arrays[key].ravel()) for key in state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
@pytest.mark.parametrize("deploy", [False, True])
def test_a_file_of_ones_own_loads_in_the_form_it_was_saved_in(tmp_path, suffix, deploy):
    source = create(DIGITS, pretrained=True, deploy=deploy)
    path = tmp_path / f"mine{suffix}"
    save_checkpoint(path, source)
    loaded = create("RepVGG_N0", checkpoint=path, deploy=deploy)
    assert loaded.checkpoint is None
    state = source.state_dict()
    assert all(np.array_equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_deploy_file_cannot_become_a_train_network(tmp_path):
    save_checkpoint(tmp_path / "deploy.safetensors", create(DIGITS, pretrained=True, deploy=True))
    with pytest.raises(FormError, match="deploy weights") as caught:
        create("RepVGG_N0", checkpoint=tmp_path / "deploy.safetensors")
    assert (caught.value.expected, caught.value.actual) == ("train", "deploy")
    assert "deploy=True" in caught.value.hint


@pytest.mark.parametrize("deploy", [False, True])
def test_another_number_of_classes_keeps_the_trunk_and_resets_the_head(deploy, caplog):
    whole = create(DIGITS, pretrained=True, deploy=deploy).state_dict()
    with caplog.at_level(logging.WARNING, "repvgg_zoo"):
        network = create(DIGITS, pretrained=True, deploy=deploy, num_classes=4)
    assert "not loaded: linear, which has 10 classes in the file and 4 in the network" in caplog.text
    state = network.state_dict()
    assert state["linear.weight"].shape == (4, 128)
    assert np.abs(state["linear.weight"]).max() > 0
    assert all(np.array_equal(state[key], whole[key]) for key in state if not key.startswith("linear"))


@pytest.mark.parametrize("deploy", [False, True])
def test_more_input_channels_give_the_same_answer_to_gray_images(deploy, digits):
    images = digits[0][:8]
    gray = create(DIGITS, pretrained=True, deploy=deploy)
    color = create(DIGITS, pretrained=True, deploy=deploy, in_chans=3)
    expected = gray(Tensor(images)).numpy()
    actual = color(Tensor(np.repeat(images, 3, axis=1))).numpy()
    # A third thrice is one, up to float32 rounding of the stem's sums, which eight layers pass on.
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_fewer_input_channels_give_the_same_answer_to_gray_images(tmp_path):
    small = {"num_classes": 10, "width_multiplier": (0.25,) * 4, "num_blocks": (1, 1, 1, 1)}
    color = create("RepVGG_A0", **small)
    color.eval()
    save_checkpoint(tmp_path / "color.safetensors", color)
    gray = create("RepVGG_A0", checkpoint=tmp_path / "color.safetensors", in_chans=1, **small)
    image = np.random.RandomState(0).randn(2, 1, 32, 32).astype(np.float32)
    expected = color(Tensor(np.repeat(image, 3, axis=1))).numpy()
    assert np.abs(gray(Tensor(image)).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("deploy", "error"), [(False, StateError), (True, EquivalenceError)])
@pytest.mark.parametrize("in_chans", [None, 1, 5])
@pytest.mark.parametrize("branch", ["rbr_dense", "rbr_1x1"])
def test_stem_kernels_that_disagree_on_their_channels_are_refused(branch, in_chans, deploy, error, tmp_path):
    small = {"num_classes": 10, "width_multiplier": (0.25,) * 4, "num_blocks": (1, 1, 1, 1)}
    arrays = create("RepVGG_A0", **small).state_dict()
    key = f"stage0.{branch}.conv.weight"
    arrays[key] = np.ones((arrays[key].shape[0], 5, *arrays[key].shape[2:]), np.float32)
    save_file(arrays, tmp_path / "wrong.safetensors")
    with pytest.raises(error, match=r"stage0\.rbr_"):
        create("RepVGG_A0", checkpoint=tmp_path / "wrong.safetensors", deploy=deploy, in_chans=in_chans, **small)


def test_a_backbone_loads_the_part_that_it_has_without_a_warning(caplog):
    repvgg_zoo.fetch(DIGITS)
    with caplog.at_level(logging.INFO, "repvgg_zoo"):
        backbone = create(DIGITS, pretrained=True, features_only=True, out_indices=(1, 2))
    assert caplog.text == ""
    assert not any(key.startswith(("linear", "stage3", "stage4")) for key in backbone.state_dict())
    whole = create(DIGITS, pretrained=True)
    image = Tensor(np.random.RandomState(0).randn(1, 1, 32, 32).astype(np.float32))
    assert np.array_equal(backbone(image)["stage2"].numpy(), whole.extract_features(image)["stage2"].numpy())


def test_a_created_network_converts_and_saves_and_comes_back(tmp_path):
    network = create("RepVGG_B1g4", num_blocks=(1, 2, 2, 1), width_multiplier=(0.5,) * 4, num_classes=7)
    network.eval()
    save_checkpoint(tmp_path / "deploy.safetensors", to_deploy(network))
    again = create(
        "RepVGG_B1g4",
        checkpoint=tmp_path / "deploy.safetensors",
        deploy=True,
        num_blocks=(1, 2, 2, 1),
        width_multiplier=(0.5,) * 4,
    )
    image = Tensor(np.random.RandomState(0).randn(1, 3, 32, 32).astype(np.float32))
    expected = network(image).numpy()
    assert again.num_classes == 7
    assert np.abs(again(image).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_file_of_another_variant_is_refused_with_every_difference():
    with pytest.raises(StateError) as caught:
        create("RepVGG_A0", checkpoint=repvgg_zoo.fetch(DIGITS))
    assert len(caught.value.missing) > 50
    assert len(caught.value.shape_mismatches) > 50


MISSHAPEN = {
    "stage0.rbr_dense.conv.weight": [(), (16,), (16, 0, 3, 3), (16, 3, 1, 1)],
    "stage1.0.rbr_1x1.conv.weight": [(), (3, 3), (16, 16, 0, 0)],
    "stage2.1.rbr_identity.running_var": [(), (1,), (5, 2)],
    "linear.weight": [(), (10,), (10, 1)],
    "linear.bias": [(), (3,)],
}


@pytest.fixture(scope="module")
def digits_arrays():
    """The arrays of a file of RepVGG_N0."""
    return repvgg_zoo.load_checkpoint(repvgg_zoo.fetch(DIGITS)).arrays


# Every shape with the plain call, and the first shape of each key with every option.
WRONG_SHAPES = [(key, shape, {}) for key, shapes in MISSHAPEN.items() for shape in shapes] + [
    (key, shapes[0], options)
    for key, shapes in MISSHAPEN.items()
    for options in ({"num_classes": 4}, {"in_chans": 1}, {"features_only": True})
]


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize(("key", "shape", "options"), WRONG_SHAPES, ids=str)
def test_a_tensor_of_the_wrong_shape_is_named_whatever_is_asked_for(digits_arrays, key, shape, deploy, options):
    arrays = {**digits_arrays, key: np.ones(shape, np.float32)}
    if key.startswith("linear") and {"features_only", "num_classes"} & set(options):
        with suppress(StateError):  # that head is not used, or at most compared
            create("RepVGG_N0", checkpoint=arrays, deploy=deploy, **options)
        return
    with pytest.raises((StateError, EquivalenceError)) as caught:
        create("RepVGG_N0", checkpoint=arrays, deploy=deploy, **options)
    assert key in caught.value.message or key.replace("rbr_dense.conv", "rbr_reparam") in caught.value.message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"linear.weight": (10**9, 0)}, "head"),
        ({"linear.weight": (10**6, 1), "linear.bias": (10**6,)}, "head"),
        ({"stage0.rbr_dense.conv.weight": (0, 10**9, 3, 3)}, "stem"),
        ({"stage0.rbr_dense.conv.weight": (1, 10**6, 3, 3), "stage0.rbr_1x1.conv.weight": (1, 10**6, 1, 1)}, "stem"),
    ],
    ids=str,
)
def test_no_head_or_stem_is_built_that_is_much_larger_than_the_file(tmp_path, changes, part):
    arrays = dict(create("RepVGG_A0").state_dict())
    arrays.update((key, np.ones(shape, np.float16)) for key, shape in changes.items())
    small = {key: array[:1] if array.ndim == 4 and key not in changes else array for key, array in arrays.items()}
    save_checkpoint(tmp_path / "bad.safetensors", small)
    with pytest.raises(StateError, match=f"was not built: the {part}"):
        create("RepVGG_A0", checkpoint=tmp_path / "bad.safetensors")


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("key", ["stage2.1.rbr_identity.weight", "stage2.1.rbr_dense.conv.weight", "linear.bias"])
def test_a_missing_tensor_is_named_in_both_forms(tmp_path, key, deploy):
    arrays = create(DIGITS, pretrained=True).state_dict()
    del arrays[key]
    save_checkpoint(tmp_path / "bad.safetensors", arrays)
    with pytest.raises((StateError, EquivalenceError), match=key):
        create("RepVGG_N0", checkpoint=tmp_path / "bad.safetensors", deploy=deploy)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "RepVGG_Z9"}, UnknownModelError, "RepVGG_Z9"),
        ({"name": "RepVGG_N0", "pretrained": "imagenet"}, UnknownModelError, "has no checkpoint 'imagenet'"),
        ({"name": "RepVGG_B2g2", "pretrained": True}, NoWeightsError, "no pretrained weights"),
        ({"name": "RepVGGplus_L2pse", "pretrained": True}, UnverifiedError, "no digest"),
        ({"name": "RepVGG_N0", "pretrained": True, "checkpoint": "x.pkl"}, ArgumentError, "two sources"),
        ({"name": "RepVGG_N0", "depth": 3}, ArgumentError, "no argument depth"),
        ({"name": "RepVGG_N0", "out_indices": (1,)}, ArgumentError, "without a head"),
        ({"name": "RepVGG_N0", "checkpoint": __file__}, CheckpointFormatError, "not a readable checkpoint"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_work_raise_an_error_with_a_hint(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        create(**arguments)
    assert caught.value.hint
