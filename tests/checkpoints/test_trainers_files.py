"""Files as trainers write them load as they are: what is beside the weights is never made, and is in nobody's way.

The kind of fault: a file is refused for something that loading its weights does not need, or the weights are looked for
in one place only.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import os
import pathlib
import pickle
import uuid

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.checkpoints.formats import read_file
from repvgg_zoo.errors import ArgumentError, LayoutError, UnsafePickleError

from ..networks import randomised

WEIGHTS = {
    key: np.array(value)
    for key, value in randomised(repvgg_zoo.create("RepVGG_N0", num_blocks=(1, 1, 2, 1), width_multiplier=(0.125,) * 4))
    .state_dict()
    .items()
}
AVERAGED = {key: value + 1 for key, value in WEIGHTS.items()}


class Config(dict):
    """Like yacs's CfgNode and mmengine's ConfigDict: a dict of a class of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.frozen = True


class History:
    """Like mmengine's HistoryBuffer: an object with arrays in its state."""

    def __init__(self):
        self.log = np.ones(5)
        self.functions = {"mean": np.mean}


class Keywords:
    def __new__(cls, *, a):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"a": [1, 2]}


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


BESIDE = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/data")),
    "config": Config(model=Config(depth=50), names=["a"]),
    "history": History(),
    "keywords": Keywords(a=1),
    "Counter": collections.Counter("hello"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2]),
    "set": {1, "a", (2, 3)},
    "frozenset": frozenset({4}),
    "tuple keys": {(1, 2): "a", ("x",): {"y": 2}},
    "other keys": {1.5: 1, None: 2, True: 3, b"x": 4, 2**70: 5},
    "datetime": [datetime.datetime(2026, 1, 2), datetime.timedelta(3)],
    "Decimal": decimal.Decimal("1.5"),
    "UUID": uuid.UUID(int=5),
    "array of objects' class": np.random.RandomState(0),
    "ordinary": {"epoch": 3, "acc": 71.2, "names": ["a"], "best": None, "complex": (1, [2, {"x": 3}])},
}


def write(path, payload, protocol=4):
    path.write_bytes(pickle.dumps(payload, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("what", BESIDE)
def test_values_of_any_class_beside_the_weights_are_in_nobodys_way(tmp_path, what, protocol):
    for order in (1, -1):
        entries = {"state_dict": WEIGHTS, "extra": BESIDE[what]}
        path = write(tmp_path / "net.pkl", dict(list(entries.items())[::order]), protocol)
        checkpoint = load_checkpoint(path)
        assert {key: value.tobytes() for key, value in checkpoint.state_dict.items()} == {
            key: value.tobytes() for key, value in WEIGHTS.items()
        }
        assert dict(checkpoint.report.skipped)["extra"] == "beside state_dict"


def test_values_that_would_run_code_are_never_made(tmp_path):
    evil = RunsCode(str(tmp_path / "made"))
    path = write(tmp_path / "net.pkl", {"args": evil, "state_dict": WEIGHTS, "more": [evil, {"x": evil}]})
    assert len(load_checkpoint(path).state_dict) == len(WEIGHTS)
    assert not (tmp_path / "made").exists()
    assert read_file(path)[1]["args"].name.endswith("mkdir")


@pytest.mark.parametrize(
    "place",
    [
        lambda evil: {"state_dict": {**WEIGHTS, "x": evil}},
        lambda evil: {**WEIGHTS, "x": [evil]},
        lambda evil: {**WEIGHTS, "stage0.rbr_dense.bn.weight": evil},
        lambda evil: {"state_dict": evil},
        lambda evil: {"model": evil, "epoch": 3},
        lambda evil: evil,
        lambda evil: [evil],
    ],
)
def test_such_a_value_among_the_weights_or_instead_of_them_is_refused_by_name(tmp_path, place):
    path = write(tmp_path / "net.pkl", place(RunsCode(str(tmp_path / "made"))))
    with pytest.raises((UnsafePickleError, LayoutError)) as caught:
        load_checkpoint(path)
    assert not (tmp_path / "made").exists()
    assert caught.value.path == str(path)
    if not isinstance(caught.value, LayoutError):
        assert caught.value.blocked[0].endswith("mkdir")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"net": state, "acc": 93.1, "epoch": 10},
        lambda state: {"weights": state},
        lambda state: {"model_state": state, "optimizer_state": {"x": np.ones(3)}},
        lambda state: {"generator": {"model": state, "steps": 4}},
        lambda state: {"model": {"type": "ImageClassifier"}, "model_state_dict": state},
        lambda state: {"model": {"scale": np.ones(2)}, "my_own_name": state},
        lambda state: {"a": {"b": {"c": {"d": state}}}},
        lambda state: {"ema_state_dict": AVERAGED, "weights": state},
        lambda state: {"params_ema": AVERAGED, "params": state},
        lambda state: {"model_ema": AVERAGED, "net": state},
        lambda state: {"state_dict": state, "n_averaged": np.array(5)},
    ],
)
def test_the_weights_are_found_under_any_name(tmp_path, wrap):
    checkpoint = load_checkpoint(write(tmp_path / "net.pkl", wrap(WEIGHTS)))
    assert all(np.array_equal(checkpoint.state_dict[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("state_dict_ema", "ema"),
        ("state_dict_ema", "state_dict_ema"),
        ("model_ema", "ema"),
        ("params_ema", "ema"),
        ("ema_state_dict", "ema"),
        ("ema", "ema"),
    ],
)
def test_averaged_weights_are_loaded_when_they_are_asked_for(tmp_path, name, state):
    path = write(tmp_path / "net.pkl", {"state_dict": WEIGHTS, name: AVERAGED})
    plain, averaged = load_checkpoint(path), load_checkpoint(path, state=state)
    assert np.array_equal(plain.state_dict["linear.bias"], WEIGHTS["linear.bias"])
    assert np.array_equal(averaged.state_dict["linear.bias"], AVERAGED["linear.bias"])
    assert dict(plain.report.skipped)[name] == "beside state_dict"
    assert dict(averaged.report.skipped)["state_dict"] == f"beside {name}"


@pytest.mark.parametrize(
    ("trainer", "plain", "mark"),
    [("mmengine", "ema_state_dict", "message_hub"), ("Lightning", "current_model_state", "averaging_state")],
)
def test_a_trainer_that_saves_the_average_as_the_state_dict_is_recognized(tmp_path, trainer, plain, mark):
    content = {"state_dict": AVERAGED, plain: {f"module.{key}": WEIGHTS[key] for key in WEIGHTS}, mark: {"steps": 2}}
    path = write(tmp_path / "net.pkl", content)
    for state, expected in ((None, AVERAGED), ("ema", AVERAGED), ("state_dict", AVERAGED), (plain, WEIGHTS)):
        assert np.array_equal(load_checkpoint(path, state=state).state_dict["linear.bias"], expected["linear.bias"])
    skipped = dict(load_checkpoint(path).report.skipped)
    assert skipped[plain] == "plain weights, beside averaged ones in state_dict"
    assert skipped[mark] == "beside state_dict"


def test_a_path_of_keys_picks_a_nested_state(tmp_path):
    path = write(tmp_path / "net.pkl", {"a": {"model": WEIGHTS}, "b": {"model": AVERAGED}})
    assert np.array_equal(load_checkpoint(path, state="b.model").state_dict["linear.bias"], AVERAGED["linear.bias"])


def test_a_state_that_the_file_does_not_have_is_an_error_with_the_choices(tmp_path):
    beside = {"scores": {"best": np.ones(3)}}
    path = write(tmp_path / "net.pkl", {"state_dict": WEIGHTS, "ema": AVERAGED, "callbacks": beside})
    with pytest.raises(ArgumentError, match="no state dict 'swa'") as caught:
        load_checkpoint(path, state="swa")
    assert caught.value.expected == ["state_dict", "ema"]
