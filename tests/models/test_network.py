"""What users do with a network that create returned, with MegEngine's own means.

The kind of fault: the network is a Module, and yet what works with any Module does not: loading the arrays of a
checkpoint, training the deploy form, or asking an editor what it has.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.optimizer import SGD

import repvgg_zoo
from repvgg_zoo.errors import FormError

TINY = {"num_blocks": (1, 2, 2, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 10}
DIGITS = Tensor(np.random.RandomState(0).rand(4, 1, 32, 32).astype(np.float32))

every_form = pytest.mark.parametrize("deploy", [False, True])


def built(deploy=False, **options):
    return repvgg_zoo.create("RepVGG_B1g2", deploy=deploy, **TINY, **options)


# load_state_dict ----------------------------------------------------------------------------------------------


def as_in_the_network(arrays):
    """BN tensors of (1, C, 1, 1), as MegEngine holds them and its older versions saved them."""
    is_bn = ("bn.", "rbr_identity")
    return {
        k: v.reshape(1, -1, 1, 1) if v.ndim == 1 and any(part in k for part in is_bn) else v for k, v in arrays.items()
    }


def with_counters(arrays):
    """num_batches_tracked, which torch saves for each BN."""
    bns = [key[: -len("running_var")] for key in arrays if key.endswith("running_var")]
    return {**arrays, **{f"{bn}num_batches_tracked": np.array(7, np.int64) for bn in bns}}


FILES = {
    "as saved": lambda arrays: arrays,
    "shapes of MegEngine's tensors": as_in_the_network,
    "counters": with_counters,
    "float16": lambda arrays: {key: array.astype(np.float16) for key, array in arrays.items()},
    "float64": lambda arrays: {key: array.astype(np.float64) for key, array in arrays.items()},
}


@every_form
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("attribute", ["arrays", "state_dict"])
def test_a_network_loads_what_load_checkpoint_returns(tmp_path, kind, deploy, attribute):
    source = built(deploy)
    np.savez(tmp_path / "mine.npz", **FILES[kind](source.state_dict()))
    checkpoint = repvgg_zoo.load_checkpoint(tmp_path / "mine.npz")
    network = built(deploy)
    network.load_state_dict(getattr(checkpoint, attribute))
    assert {tensor.dtype for tensor in network.tensors()} == {np.dtype(np.float32)}
    state = network.state_dict()
    for key, expected in source.state_dict().items():
        assert np.allclose(state[key], expected, rtol=1e-3, atol=1e-6), key
    x = Tensor(np.zeros((1, 3, 32, 32), np.float32))
    assert np.isfinite(network(x).numpy()).all()


def test_the_arrays_of_a_checkpoint_are_a_dict_of_its_own():
    checkpoint = repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0.digits"))
    arrays = checkpoint.arrays
    arrays.pop("linear.bias")
    assert type(arrays) is dict and "linear.bias" in checkpoint.state_dict


def test_a_part_of_a_network_and_a_function_are_loaded_as_megengine_does():
    source, network = built(), built()
    trunk = {key: array for key, array in source.state_dict().items() if not key.startswith("linear")}
    with pytest.raises(KeyError, match="linear"):
        network.load_state_dict(trunk)
    network.load_state_dict(trunk, strict=False)
    assert np.array_equal(
        network.state_dict()["stage4.0.rbr_dense.conv.weight"], trunk["stage4.0.rbr_dense.conv.weight"]
    )
    network.load_state_dict(lambda key, _: source.state_dict()[key])
    assert np.array_equal(network.linear.weight.numpy(), source.linear.weight.numpy())


# Training the deploy form -------------------------------------------------------------------------------------


def train_one_step(network):
    network.train()
    parameters = list(network.parameters())
    before = [parameter.numpy().copy() for parameter in parameters]
    optimizer = SGD(parameters, lr=0.1)
    with GradManager().attach(parameters) as gradients:
        gradients.backward((network(DIGITS) ** 2).mean())
    optimizer.step()
    network.eval()
    return [not np.array_equal(parameter.numpy(), old) for parameter, old in zip(parameters, before)]


def published():
    return repvgg_zoo.create("RepVGG_N0", pretrained=True, deploy=True)


def converted():
    return repvgg_zoo.to_deploy(repvgg_zoo.create("RepVGG_N0", pretrained=True))


@pytest.mark.parametrize("build", [published, converted])
def test_a_deploy_network_is_fine_tuned_saved_and_loaded_again(build, tmp_path):
    network = build()
    assert all(train_one_step(network))
    repvgg_zoo.save_checkpoint(tmp_path / "tuned.safetensors", network)
    again = repvgg_zoo.create("RepVGG_N0", checkpoint=tmp_path / "tuned.safetensors", deploy=True)
    assert np.array_equal(again(DIGITS).numpy(), network(DIGITS).numpy())
    other = repvgg_zoo.create("RepVGG_N0", checkpoint=tmp_path / "tuned.safetensors", deploy=True, num_classes=3)
    assert all(train_one_step(other))
    with pytest.raises(FormError):
        repvgg_zoo.create("RepVGG_N0", checkpoint=tmp_path / "tuned.safetensors")


# Types --------------------------------------------------------------------------------------------------------

TYPED = """
import repvgg_zoo

network = repvgg_zoo.create("RepVGG_A0")
reveal_type(network)
reveal_type(network.spec.name)
reveal_type(network.checkpoint)
reveal_type(network.feature_info[0].channels)
reveal_type(network.num_classes)
reveal_type(network.metadata)
"""


def test_a_type_checker_knows_what_a_network_has(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    root = Path(repvgg_zoo.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "typed.py")]
    command += ["--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run(command, cwd=str(root), capture_output=True, text=True, check=False)
    types = [line.partition('"')[2].rstrip('"') for line in done.stdout.splitlines() if "Revealed type" in line]
    expected = ["models.network.Network", "str", "specs.CheckpointSpec", "int", "int", "metadata.CheckpointMetadata"]
    assert len(types) == len(expected), done.stdout
    assert all(name in revealed for name, revealed in zip(expected, types)), types


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"features_only": True}, {"deploy": True}], ids=str)
@pytest.mark.parametrize("name", ["RepVGG_B1g2", "RepVGGplus_L2pse"])
def test_every_network_has_what_its_type_says(name, options):
    network = repvgg_zoo.create(name, **{**TINY, **options})
    assert isinstance(network, repvgg_zoo.Network)
    for attribute in repvgg_zoo.Network.__annotations__:
        assert hasattr(network, attribute), attribute
    assert (network.spec.name, network.checkpoint) == (name, None)
    assert network.num_classes == options.get("num_classes", 10)
