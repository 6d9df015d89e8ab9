"""The networks are the paper's: shapes, counts, state keys, options."""

from __future__ import annotations

import copy
import itertools
import pickle

import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.models import RepVGG, RepVGGBlock, RepVGGplus, SEBlock
from repvgg_zoo.registry.specs import SESpec

from ..networks import count_macs, count_params, randomised

TINY = {"num_blocks": (1, 2, 4, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 10}
SE_BEFORE, SE_AFTER = SESpec("before_relu", 16), SESpec("after_relu", 4)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40)])
@pytest.mark.parametrize("se", [None, SE_BEFORE, SE_AFTER])
def test_any_image_size_gives_one_row_of_logits_for_each_image(se, size):
    network = RepVGG(**TINY, se=se)
    assert network(Tensor(np.zeros((2, 3, *size), np.float32))).shape == (2, 10)


@pytest.mark.parametrize(
    ("depths", "grouped"),
    [
        ((4, 6, 16, 1), ["1.1", "1.3", "2.1", "2.3", "2.5"] + [f"3.{b}" for b in range(1, 16, 2)]),
        ((2, 4, 14, 1), ["1.1", "2.1", "2.3"] + [f"3.{b}" for b in range(1, 14, 2)]),
    ],
    ids=["B", "A"],
)
def test_every_second_layer_is_grouped_but_in_the_stem_and_stage_4(depths, grouped):
    network = RepVGG(depths, (0.25,) * 4, groups=4)
    blocks = {name: m for name, m in network.named_modules() if isinstance(m, RepVGGBlock)}
    assert sorted(name for name, block in blocks.items() if block.groups == 4) == sorted(f"stage{g}" for g in grouped)
    assert {block.groups for block in blocks.values()} == {1, 4}


def test_identity_branches_exist_only_where_shape_and_stride_allow():
    network = RepVGG((2, 2, 2, 1), (1, 1, 1, 1))
    with_identity = {n for n, m in network.named_modules() if isinstance(m, RepVGGBlock) and m.rbr_identity}
    assert with_identity == {"stage1.1", "stage2.1", "stage3.1"}


def test_state_keys_and_shapes_are_the_official_ones():
    state = RepVGG((1, 2, 1, 1), (1, 1, 1, 1), groups=2, se=SE_BEFORE).state_dict()
    assert state["stage0.rbr_dense.conv.weight"].shape == (64, 3, 3, 3)
    assert state["stage2.0.rbr_1x1.conv.weight"].shape == (2, 64, 32, 1, 1)
    assert state["stage2.0.rbr_1x1.bn.running_var"].shape == (128,)
    assert state["stage2.1.rbr_identity.weight"].shape == (128,)
    assert state["stage0.se.down.weight"].shape == (4, 64, 1, 1)
    assert state["linear.weight"].shape == (1000, 512)
    deployed = RepVGG((1, 2, 1, 1), (1, 1, 1, 1), groups=2, se=SE_BEFORE, deploy=True).state_dict()
    assert {key.rsplit("stage0.", 1)[-1] for key in deployed if key.startswith("stage0.")} == {
        "rbr_reparam.weight",
        "rbr_reparam.bias",
        "se.down.weight",
        "se.down.bias",
        "se.up.weight",
        "se.up.bias",
    }


class TestRepVGGplus:
    def test_training_gives_the_main_and_three_auxiliary_logits(self):
        network = RepVGGplus(**TINY, se=SE_AFTER)
        outputs = network(Tensor(np.zeros((2, 3, 32, 32), np.float32)))
        assert sorted(outputs) == ["main", "stage1_aux", "stage2_aux", "stage3_first_aux"]
        assert {value.shape for value in outputs.values()} == {(2, 10)}

    @pytest.mark.parametrize("deploy", [False, True])
    def test_evaluation_and_the_deploy_form_give_plain_logits(self, deploy):
        network = RepVGGplus(**TINY, se=SE_AFTER, deploy=deploy)
        if not deploy:
            network.eval()
        assert network(Tensor(np.zeros((2, 3, 32, 32), np.float32))).shape == (2, 10)

    def test_state_keys_are_the_official_ones(self):
        keys = set(RepVGGplus(**TINY, se=SE_AFTER).state_dict())
        assert {
            "stage1.blocks.0.rbr_dense.conv.weight",
            "stage3_first.blocks.1.rbr_identity.running_mean",
            "stage3_second.blocks.0.post_se.down.weight",
            "stage3_first_aux.0.conv.weight",
            "stage1_aux.0.bn.weight",
            "stage2_aux.3.bias",
            "linear.bias",
        } <= keys


class TestFeatures:
    @pytest.mark.parametrize("network", [RepVGG, RepVGGplus])
    def test_channels_and_reductions_are_data_and_hold_for_the_maps(self, network):
        model = network(**TINY, features_only=True)
        features = model(Tensor(np.zeros((1, 3, 64, 64), np.float32)))
        assert list(features) == ["stage0", "stage1", "stage2", "stage3", "stage4"]
        for info in model.feature_info:
            assert features[info.name].shape == (1, info.channels, 64 // info.reduction, 64 // info.reduction)

    @pytest.mark.parametrize("network", [RepVGG, RepVGGplus])
    def test_stages_beyond_the_last_index_are_not_built(self, network):
        model = network(**TINY, features_only=True, out_indices=(3, 1))
        assert [info.name for info in model.feature_info] == ["stage1", "stage3"]
        assert list(model(Tensor(np.zeros((1, 3, 32, 32), np.float32)))) == ["stage1", "stage3"]
        assert not any(key.startswith(("stage4", "linear", "stage1_aux")) for key in model.state_dict())

    @pytest.mark.parametrize("indices", [(), (5,), (-1,), (0, 7)])
    def test_stages_that_do_not_exist_are_an_error(self, indices):
        with pytest.raises(ArgumentError, match="do not exist") as caught:
            RepVGG(**TINY, features_only=True, out_indices=indices)
        assert caught.value.actual == list(indices)

    def test_indices_without_features_only_are_an_error(self):
        with pytest.raises(ArgumentError, match="without a head"):
            RepVGG(**TINY, out_indices=(1,))


class TestBlock:
    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize(("out_channels", "stride"), [(8, 1), (16, 2)])
    def test_the_equivalent_kernel_has_the_blocks_output_and_gradients(self, groups, out_channels, stride):
        block = randomised(RepVGGBlock(8, out_channels, stride=stride, groups=groups))
        block.eval()
        x = Tensor(np.random.RandomState(0).randn(2, 8, 9, 7).astype(np.float32))
        with GradManager().attach(list(block.parameters())) as gradients:
            kernel, bias = block.get_equivalent_kernel_bias()
            fused = F.relu(F.conv2d(x, kernel, bias, stride, 1, groups=groups))
            gradients.backward(fused.sum())
        expected = block(x).numpy()
        # 100 float32 roundings of the output's scale.
        assert np.abs(fused.numpy() - expected).max() <= 1.2e-5 * np.abs(expected).max()
        assert all(p.grad is not None and np.abs(p.grad.numpy()).max() > 0 for p in block.parameters())

    @pytest.mark.parametrize("groups", [1, 2])
    def test_custom_L2_is_the_official_formula(self, groups):
        block = randomised(RepVGGBlock(4, 4, groups=groups))
        state = {key: value.astype(np.float64) for key, value in block.state_dict().items()}
        k3 = state["rbr_dense.conv.weight"].reshape(4, -1, 3, 3)
        k1 = state["rbr_1x1.conv.weight"].reshape(4, -1)
        t3, t1 = (
            (state[f"{b}.bn.weight"] / np.sqrt(state[f"{b}.bn.running_var"] + 1e-5))[:, None]
            for b in ("rbr_dense", "rbr_1x1")
        )
        outer = (k3**2).sum() - (k3[:, :, 1, 1] ** 2).sum()
        expected = outer + ((k3[:, :, 1, 1] * t3 + k1 * t1) ** 2 / (t3**2 + t1**2)).sum()
        assert block.get_custom_L2().item() == pytest.approx(expected, rel=1e-5)

    def test_squeeze_and_excitation_scales_by_a_gate_of_the_channel_means(self):
        se = SEBlock(8, 2)
        x = np.random.RandomState(0).randn(2, 8, 5, 9).astype(np.float32)
        state = {key: value.reshape(value.shape[0], -1) for key, value in se.state_dict().items() if "weight" in key}
        bias = {key: value.reshape(-1) for key, value in se.state_dict().items() if "bias" in key}
        hidden = np.maximum(x.mean((2, 3)) @ state["down.weight"].T + bias["down.bias"], 0)
        gate = 1 / (1 + np.exp(-(hidden @ state["up.weight"].T + bias["up.bias"])))
        assert np.allclose(se(Tensor(x)).numpy(), x * gate[:, :, None, None], rtol=1e-5, atol=1e-6)


def test_weights_start_as_torch_starts_them():
    network = RepVGG((1, 1, 1, 1), (1, 1, 1, 1), groups=2)
    for name, tensor in network.named_parameters():
        values = tensor.numpy()
        if ".bn." in name or "rbr_identity" in name:
            assert (values == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("weight") and values.size > 1000:
            bound = 1 / np.sqrt(np.prod(values.shape[-3:]) if values.ndim > 2 else values.shape[1])
            assert 0.95 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
            # A uniform distribution's deviation; 5 % is over five deviations of the estimate at 1,000 samples.
            assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_counting_agrees_with_a_network_counted_by_hand():
    network = RepVGG((1, 1, 1, 1), (0.25,) * 4, num_classes=10, deploy=True)
    channels = [(3, 16), (16, 16), (16, 32), (32, 64), (64, 128)]
    assert count_params(network) == sum(9 * i * o + o for i, o in channels) + 128 * 10 + 10
    sizes = [16, 8, 4, 2, 1]
    expected = sum(9 * i * o * s * s for (i, o), s in zip(channels, sizes)) + 1280
    assert count_macs(network, 32) == expected


# MegEngine's own layers ---------------------------------------------------------------------------------------

NETWORKS = {
    "RepVGG": lambda **options: RepVGG(**TINY, groups=2, se=SE_BEFORE, **options),
    "RepVGGplus": lambda **options: RepVGGplus(**TINY, se=SE_AFTER, **options),
}
every_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


def described(layer: M.Module) -> dict:
    """The plain attributes of a layer and the shapes of its tensors, without its names and what quantization does."""
    plain = (int, float, bool, str, tuple, type(None))
    attributes = {key: value for key, value in vars(layer).items() if type(value) in plain and "name" not in key}
    attributes.pop("quantize_disabled")
    return {**attributes, **{key: tensor.shape for key, tensor in layer.named_tensors()}}


@every_network
@pytest.mark.parametrize("init_weights", [True, False])
def test_layers_are_megengines_and_equal_to_those_that_it_builds(build, init_weights):
    for name, layer in build(init_weights=init_weights).named_modules():
        if isinstance(layer, M.Conv2d):
            options = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "groups")}
            expected = M.Conv2d(layer.in_channels, layer.out_channels, bias=layer.bias is not None, **options)
        elif isinstance(layer, M.Linear):
            expected = M.Linear(layer.in_features, layer.out_features)
        else:
            continue
        assert type(layer) is type(expected), name
        assert described(layer) == described(expected), name


@every_network
def test_blocks_without_weights_share_no_memory(build):
    network = build(init_weights=False)
    blocks = [module for module in network.modules() if isinstance(module, RepVGGBlock)]
    for one, other in itertools.combinations(blocks, 2):
        assert {id(tensor) for tensor in one.tensors()}.isdisjoint({id(tensor) for tensor in other.tensors()})
    before = {key: tensor.numpy().copy() for key, tensor in network.named_tensors()}
    blocks[-2].rbr_dense.bn.running_var[...] = 7
    blocks[-2].rbr_dense.conv.weight[...] = 7
    changed = [key for key, tensor in network.named_tensors() if not np.array_equal(tensor.numpy(), before[key])]
    assert len(changed) == 2 and all("rbr_dense" in key for key in changed)


@every_network
def test_a_network_survives_deepcopy_and_pickle(build):
    network = build()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert repr(other) == repr(network)
        state = other.state_dict()
        assert all(np.array_equal(state[key], value) for key, value in network.state_dict().items())
