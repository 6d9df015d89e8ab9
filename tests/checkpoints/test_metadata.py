"""What a file carries with it: a saved network needs no flags when it is loaded, and other programs read it as before.

The kind: everything that decides what a network computes or what its outputs mean (variant, architecture, classes,
preprocessing, source), in both formats, every layout and form, through every function that reads a file. What comes out
of a file is foreign: it has the right type and range, or an error says what is wrong.
"""

from __future__ import annotations

import json
import pickle
import tracemalloc
from contextlib import suppress
from typing import Any, Dict

import megengine
import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints import CheckpointMetadata, load_checkpoint, save_checkpoint
from repvgg_zoo.checkpoints.metadata import METADATA_KEY, from_text, to_text
from repvgg_zoo.errors import ArgumentError, CheckpointFormatError, StateError
from repvgg_zoo.registry.specs import Architecture, Preprocessing, SESpec

TINY: Dict[str, Any] = {"num_blocks": (1, 2, 1, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.5)}
NAMES = ("cat", "狗", "\x1b[31mbird")
OWN = Preprocessing(40, 48, "bicubic", "opencv", "BGR", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "round", "floor")


@pytest.fixture(scope="module")
def network():
    return repvgg_zoo.create("RepVGG_A0", num_classes=3, **TINY)


# Saved and read back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["canonical", "basecls"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
@pytest.mark.parametrize("deploy", [False, True])
def test_a_file_says_what_it_holds_and_needs_no_arguments(network, tmp_path, suffix, layout, deploy):
    saved = repvgg_zoo.to_deploy(network) if deploy else network
    path = tmp_path / f"mine{suffix}"
    save_checkpoint(path, saved, layout=layout, class_names=NAMES, preprocessing=OWN)

    checkpoint = load_checkpoint(path)
    assert checkpoint.metadata == CheckpointMetadata(
        variant="RepVGG_A0",
        architecture=repvgg_zoo.model_info("RepVGG_A0").architecture._replace(**TINY),
        class_names=NAMES,
        preprocessing=OWN,
    )
    assert not any(METADATA_KEY in key for key, _ in checkpoint.report.skipped)
    again = repvgg_zoo.create("RepVGG_A0", checkpoint=path, deploy=deploy)
    assert again.state_dict().keys() == saved.state_dict().keys()
    assert again.metadata == checkpoint.metadata
    assert again.metadata.preprocessing_source == "the file"


def test_a_published_network_keeps_its_source_and_its_classes(tmp_path):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    save_checkpoint(tmp_path / "n0.pkl", network)
    metadata = load_checkpoint(tmp_path / "n0.pkl").metadata
    digits = repvgg_zoo.model_info("RepVGG_N0").checkpoint("digits")
    assert (metadata.variant, metadata.source, metadata.source_sha256) == (
        "RepVGG_N0",
        "RepVGG_N0.digits",
        digits.file.sha256,
    )
    assert (metadata.class_names, metadata.preprocessing) == (digits.labels, digits.preprocessing)
    assert metadata.architecture is None

    mine = repvgg_zoo.create("RepVGG_N0", checkpoint=tmp_path / "n0.pkl", num_classes=3)
    save_checkpoint(tmp_path / "mine.pkl", mine)
    assert load_checkpoint(tmp_path / "mine.pkl").metadata == metadata.without_classes()


def test_a_dict_that_megengine_loaded_from_our_file_still_says_it(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network, class_names=NAMES)
    again = repvgg_zoo.create("RepVGG_A0", checkpoint=megengine.load(str(tmp_path / "mine.pkl")))
    assert again.metadata.class_names == NAMES


def test_a_dict_that_megengine_loaded_from_our_file_is_saved_with_it_again(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network, class_names=NAMES)
    save_checkpoint(tmp_path / "copy.safetensors", megengine.load(str(tmp_path / "mine.pkl")))
    assert load_checkpoint(tmp_path / "copy.safetensors").metadata == load_checkpoint(tmp_path / "mine.pkl").metadata


def test_our_state_dict_says_it_inside_of_another_programs_file(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network, class_names=NAMES)
    inner = pickle.loads((tmp_path / "mine.pkl").read_bytes())
    (tmp_path / "wrapped.pkl").write_bytes(pickle.dumps({"epoch": 3, "model": inner}))
    checkpoint = load_checkpoint(tmp_path / "wrapped.pkl")
    assert checkpoint.metadata.class_names == NAMES
    assert dict(checkpoint.report.skipped) == {"epoch": "beside model"}


def test_some_fields_of_the_preprocessing_can_be_replaced(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network, preprocessing={"image_size": 64, "resize": 64})
    known = network.metadata.preprocessing
    assert load_checkpoint(tmp_path / "mine.pkl").metadata.preprocessing == known._replace(image_size=64, resize=64)


def test_the_users_own_architecture_comes_before_the_files(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network)
    with pytest.raises(StateError):
        repvgg_zoo.create("RepVGG_A0", checkpoint=tmp_path / "mine.pkl", num_blocks=(1, 1, 1, 1))


@pytest.mark.parametrize("source", [lambda path: path, lambda path: dict(load_checkpoint(path).state_dict)])
def test_weights_of_another_variant_are_called_so(tmp_path, source):
    save_checkpoint(tmp_path / "n0.pkl", repvgg_zoo.create("RepVGG_N0", pretrained=True))
    with pytest.raises(StateError) as caught:
        repvgg_zoo.create("RepVGG_A0", checkpoint=source(tmp_path / "n0.pkl"))
    assert caught.value.hint.startswith("these are weights of RepVGG_N0; build the variant")


# Other programs ----------------------------------------------------------------------------------------------


def test_a_pickle_stays_a_dict_of_arrays_that_loads_strictly(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network, class_names=NAMES)
    stored = pickle.loads((tmp_path / "mine.pkl").read_bytes())
    assert all(isinstance(value, np.ndarray) for value in stored.values())
    assert json.loads(getattr(stored, METADATA_KEY))["class_names"] == list(NAMES)
    fresh = repvgg_zoo.create("RepVGG_A0", num_classes=3, **TINY)
    fresh.load_state_dict(megengine.load(str(tmp_path / "mine.pkl")), strict=True)


def test_a_safetensors_file_is_byte_for_byte_what_the_library_writes(network, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save

    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, network, class_names=NAMES)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata[METADATA_KEY])["variant"] == "RepVGG_A0"
    assert path.read_bytes() == save(dict(network.state_dict()), metadata)


def test_a_state_dict_alone_is_saved_alone(network, tmp_path):
    save_checkpoint(tmp_path / "mine.pkl", network.state_dict())
    assert load_checkpoint(tmp_path / "mine.pkl").metadata == CheckpointMetadata()


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"repvgg": "{}", METADATA_KEY + "2": "x"}])
def test_what_other_programs_say_about_a_file_is_theirs(network, tmp_path, metadata):
    from safetensors.numpy import save_file

    save_file(dict(network.state_dict()), tmp_path / "theirs.safetensors", metadata)
    assert load_checkpoint(tmp_path / "theirs.safetensors").metadata == CheckpointMetadata()


# Foreign text ------------------------------------------------------------------------------------------------

PREPROCESSING = json.loads(to_text(CheckpointMetadata(preprocessing=OWN)))["preprocessing"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "Expecting value"),
        ("[]", "it is a list, not an object"),
        ('{"variant": "a", "variant": "b"}', "a key occurs twice"),
        ('{"variant": 5}', "variant is 5"),
        ('{"variant": ""}', "variant is ''"),
        (json.dumps({"variant": "a" * 1001}), "not a text of 1 to 1000 characters"),
        ('{"variant": "\\ud800"}', "surrogates not allowed"),
        ('{"class_names": "cat"}', "class_names is 'cat', not a list"),
        ('{"class_names": ["cat", 5]}', "class_names[1] is 5"),
        ('{"source_sha256": "abc"}', "not 64 lowercase hex digits"),
        ('{"bn_eps": 1e-5}', "bn_eps is 1e-05, not an object"),
        ('{"bn_eps": {"stage0.rbr_dense.bn": 0}}', "bn_eps of stage0.rbr_dense.bn is 0, not above 0 and at most 1"),
        ('{"bn_eps": {"stage0.rbr_dense.bn": 1e999}}', "is inf, not above 0"),
        ('{"bn_eps": {"stage0.rbr_dense.bn": true}}', "is True, not above 0"),
        ('{"preprocessing": []}', "preprocessing is a list of 0, not an object"),
        ('{"preprocessing": {"image_size": 32}}', "preprocessing lacks resize"),
        (json.dumps({"preprocessing": {**PREPROCESSING, "image_size": 1e9}}), "not a valid int"),
        (
            json.dumps({"preprocessing": {**PREPROCESSING, "image_size": 10**9}}),
            "image_size is 1000000000, not",
        ),
        (json.dumps({"preprocessing": {**PREPROCESSING, "resize": 8}}), "resize: 8 is less than image_size"),
        (json.dumps({"preprocessing": {**PREPROCESSING, "mean": [0.5]}}), "mean: 1 values for BGR images"),
        (
            json.dumps({"preprocessing": {**PREPROCESSING, "std": [1, 1, 0]}}),
            "std is a list of 3, not positive",
        ),
        (json.dumps({"preprocessing": {**PREPROCESSING, "backend": "os.system"}}), "not one of pillow, opencv"),
        ('{"architecture": {"num_blocks": [1, 2], "width_multiplier": [1, 1, 1, 1]}}', "not a list of its length"),
        ('{"architecture": {"num_blocks": [999, 999, 999, 999], "width_multiplier": [64, 64, 64, 64]}}', "too large"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pkl"])
def test_metadata_that_are_not_valid_are_an_error_that_says_why(network, tmp_path, suffix, text, says):
    from safetensors.numpy import save_file

    path = tmp_path / f"mine{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({**network.state_dict(), METADATA_KEY: text}))
    else:
        save_file(dict(network.state_dict()), path, {METADATA_KEY: text})
    with pytest.raises(CheckpointFormatError) as caught:
        load_checkpoint(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert METADATA_KEY in caught.value.message
    assert "save_checkpoint" in caught.value.hint


def test_fields_of_a_later_version_are_left_out():
    assert from_text('{"variant": "RepVGG_A0", "mood": [1, {"a": 2}]}') == CheckpointMetadata(variant="RepVGG_A0")


def test_a_text_of_megabytes_is_not_parsed():
    with pytest.raises(ValueError, match="characters"):
        from_text("[" * (5 << 20))


@pytest.mark.parametrize(
    "text",
    [
        '{"class_names":["a"' + ',"a"' * 10_000 + "]}",
        '{"architecture":{"num_blocks":[1,1,1,1],"width_multiplier":[1,1,1,1],"builder":"a/b","options":{"a":1'
        + "".join(f',"{number}":1' for number in range(5_000))
        + "}}}",
        '{"mood":[[]' + ",[]" * 10_000 + "]}",
        '{"variant":"' + "\\u4e00" * 10_000 + '"}',
    ],
    ids=["names", "options", "an unknown field", "wide characters"],
)
def test_reading_metadata_takes_memory_in_proportion(text):
    tracemalloc.start()
    try:
        with suppress(ValueError):
            from_text(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(text) + 100_000


def test_every_field_survives_its_text():
    architecture = Architecture(
        (1, 2, 3, 4), (1, 1, 1, 2.5), 2, SESpec("before_relu", 16), "acme/wide", options=(("a", 1), ("b", ("c", "d")))
    )
    metadata = CheckpointMetadata(
        "acme/RepVGG_W", architecture, "birds", NAMES, OWN, {"stage0.rbr_dense.bn": 1e-3}, "RepVGG_A0.timm", "0" * 64
    )
    assert to_text(metadata).isascii()
    assert from_text(to_text(metadata)) == metadata


def test_a_file_cannot_ask_for_a_network_larger_than_itself(network, tmp_path):
    huge = network.metadata.architecture._replace(num_blocks=(900, 900, 900, 900), width_multiplier=(0.1,) * 4)
    text = to_text(CheckpointMetadata("RepVGG_A0", huge))
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps({**network.state_dict(), METADATA_KEY: text}))
    with pytest.raises(StateError, match="900, 900"):
        repvgg_zoo.create("RepVGG_A0", checkpoint=tmp_path / "mine.pkl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_names": ["cat", "dog"]}, "2 class names for 3 classes"),
        ({"class_names": "cat"}, "class_names is 'cat'"),
        ({"class_names": ["cat", "dog", 5]}, r"class_names\[2\] is 5"),
        ({"class_names": ["cat", "dog", ""]}, r"class_names\[2\] is ''"),
        ({"preprocessing": "timm"}, "preprocessing is not valid"),
        ({"preprocessing": {"image_sise": 64}}, "image_sise"),
        ({"preprocessing": {"image_size": "64"}}, "image_size is '64'"),
        ({"preprocessing": OWN._replace(std=(0.1, 0.1))}, "2 values for BGR images"),
    ],
)
def test_metadata_that_could_not_be_read_back_are_not_written(network, tmp_path, options, says):
    with pytest.raises(ArgumentError, match=says) as caught:
        save_checkpoint(tmp_path / "mine.safetensors", network, **options)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []
