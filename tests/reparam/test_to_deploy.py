"""to_deploy keeps the numbers and nothing else: no branch, buffer or hidden tensor, and no half-converted module."""

from __future__ import annotations

import logging

import megengine.module as M
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megengine import Tensor

from repvgg_zoo.errors import ArgumentError, EquivalenceError, FormError
from repvgg_zoo.models import RepVGG, RepVGGBlock, RepVGGplus
from repvgg_zoo.registry.specs import SESpec
from repvgg_zoo.reparam.equivalence import compare_forms
from repvgg_zoo.reparam.fusion import fuse_state_dict
from repvgg_zoo.reparam.to_deploy import to_deploy

from ..networks import fill, randomised

TINY = {"num_blocks": (1, 3, 4, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 10}
SES = [None, SESpec("before_relu", 4), SESpec("after_relu", 4)]
# Float32 rounds to 6e-8; a block adds up to 9 * in_channels products.
BOUND = 1e-5


def relative(reference: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(reference - other).max() / np.abs(reference).max())


@settings(max_examples=30, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    widths=st.tuples(st.sampled_from([8, 16]), st.sampled_from([8, 16])),
    stride=st.sampled_from([1, 2]),
    se=st.sampled_from(SES),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**16),
)
def test_every_kind_of_block_gives_the_same_numbers_in_both_forms(groups, widths, stride, se, size, seed):
    block = randomised(RepVGGBlock(*widths, groups=groups, stride=stride, se=se), seed)
    block.eval()
    x = Tensor(np.random.RandomState(seed).randn(2, widths[0], *size).astype(np.float32))
    branches, fused = block.forward_branches(x).numpy(), to_deploy(block).forward_branches(x).numpy()
    assert relative(branches, fused) <= BOUND


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 4}, {"se": SES[1]}, {"se": SES[2]}], ids=str)
@pytest.mark.parametrize("network", [RepVGG, RepVGGplus])
def test_the_result_has_exactly_the_tensors_of_the_deploy_form(network, options):
    if network is RepVGGplus and "groups" in options:
        options = {}
    deployed = to_deploy(randomised(network(**TINY, **options)))
    fresh = network(**TINY, **options, deploy=True)
    assert {k: v.shape for k, v in deployed.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    assert {name for name, _ in deployed.named_modules()} == {name for name, _ in fresh.named_modules()}
    fresh.load_state_dict(deployed.state_dict(), strict=True)
    x = Tensor(np.random.RandomState(0).randn(1, 3, 32, 32).astype(np.float32))
    assert np.array_equal(fresh(x).numpy(), deployed(x).numpy())


def test_fused_arrays_are_those_of_the_converted_network():
    for network in (randomised(RepVGG(**TINY, groups=2)), randomised(RepVGGplus(**TINY, se=SES[2]))):
        expected = to_deploy(network).state_dict()
        fused = fuse_state_dict(network.state_dict())
        assert set(fused) == set(expected)
        assert all(np.array_equal(fused[key], expected[key]) for key in fused)


def test_a_copy_leaves_the_source_bit_for_bit_as_it_was():
    network = randomised(RepVGG(**TINY))
    before = network.state_dict()
    deployed = to_deploy(network)
    after = network.state_dict()
    assert deployed is not network
    assert list(before) == list(after)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert network.training


def test_in_place_converts_the_module_itself_and_frees_the_branches():
    network = randomised(RepVGG(**TINY))
    assert to_deploy(network, inplace=True) is network
    assert not any("rbr_dense" in key or "rbr_1x1" in key or "rbr_identity" in key for key in network.state_dict())


def test_converting_twice_changes_nothing():
    once = to_deploy(randomised(RepVGG(**TINY)))
    twice = to_deploy(once)
    assert all(np.array_equal(value, twice.state_dict()[key]) for key, value in once.state_dict().items())


class Nested(M.Module):
    """Blocks in a Sequential, a list, a dict, a shared place and another network, beside a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence = M.Sequential(RepVGGBlock(3, 8), M.Conv2d(8, 8, 1))
        self.items = [RepVGGBlock(8, 8), [RepVGGBlock(8, 8, groups=2)]]
        self.named = {"a": RepVGGBlock(8, 8)}
        self.shared = self.items[0]
        self.backbone = RepVGG(**{**TINY, "in_chans": 8}, features_only=True, out_indices=(2,))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.named["a"](self.items[1][0](self.items[0](self.sequence(x)))))
        return self.backbone(x)["stage2"]


def test_blocks_are_found_at_any_depth_and_shared_ones_converted_once():
    network = randomised(Nested())
    network.eval()
    x = Tensor(np.random.RandomState(0).randn(1, 3, 32, 32).astype(np.float32))
    deployed = to_deploy(network)
    blocks = [part for part in deployed.modules() if isinstance(part, RepVGGBlock)]
    assert len(blocks) == 4 + 5
    assert all(block.deploy for block in blocks)
    assert deployed.shared is deployed.items[0]
    assert np.array_equal(deployed.sequence.state_dict()["1.weight"], network.sequence.state_dict()["1.weight"])
    assert relative(network(x).numpy(), deployed(x).numpy()) <= BOUND


def test_training_mode_is_fused_by_running_statistics_with_a_warning(caplog):
    network = randomised(RepVGG(**TINY))
    x = Tensor(np.random.RandomState(0).randn(4, 3, 32, 32).astype(np.float32))
    with caplog.at_level(logging.WARNING, "repvgg_zoo"):
        deployed = to_deploy(network)
    assert "training mode" in caplog.text
    assert network.training
    assert not deployed.training
    network.eval()
    assert relative(network(x).numpy(), deployed(x).numpy()) <= BOUND


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("stage3.2.rbr_dense.conv.weight", np.nan, "holds NaN"),
        ("stage2.1.rbr_identity.running_mean", np.inf, "holds NaN or infinity"),
        ("stage1.0.rbr_1x1.bn.running_var", -1.0, "negative"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_weights_that_cannot_be_fused_are_named_and_left_unchanged(tensor, value, message, inplace):
    network = randomised(RepVGG(**TINY))
    fill(dict(network.named_tensors())[tensor], value)
    before = list(network.state_dict())
    with pytest.raises(EquivalenceError, match=message) as caught:
        to_deploy(network, inplace=inplace)
    assert tensor in str(caught.value)
    assert list(network.state_dict()) == before


def test_a_variance_near_zero_is_fused_exactly():
    block = randomised(RepVGGBlock(8, 8))
    block.eval()
    fill(block.rbr_dense.bn.running_var, 1e-12)
    x = Tensor(np.random.RandomState(0).randn(1, 8, 5, 5).astype(np.float32))
    assert relative(block(x).numpy(), to_deploy(block)(x).numpy()) <= BOUND


def test_a_kernel_too_large_for_float16_is_refused():
    block = randomised(RepVGGBlock(4, 4))
    for tensor in block.tensors():
        tensor._reset(type(tensor)(tensor.numpy().astype(np.float16)))
    fill(block.rbr_dense.bn.running_var, 0)
    fill(block.rbr_dense.bn.weight, 6e4)
    with pytest.raises(EquivalenceError, match="overflows float16"):
        to_deploy(block, check=False)


def test_float16_weights_are_fused_in_float32_and_stored_as_float16():
    block = randomised(RepVGGBlock(8, 8))
    exact = fuse_state_dict(block.state_dict())
    half = fuse_state_dict({key: value.astype(np.float16) for key, value in block.state_dict().items()})
    for key, value in half.items():
        assert value.dtype == np.float16
        # Each source tensor and the result are rounded to 2**-11 of their size; four of them meet in a kernel.
        assert np.abs(value - exact[key]).max() <= 4 * 2.0**-11 * np.abs(exact[key]).max()


@pytest.mark.parametrize("thing", [M.Conv2d(3, 3, 3), "RepVGG_A0", None])
def test_anything_without_blocks_is_an_argument_error(thing):
    with pytest.raises(ArgumentError):
        to_deploy(thing)


def test_the_check_catches_a_block_with_another_forward_pass():
    class Scaled(RepVGGBlock):
        def forward_branches(self, x: Tensor) -> Tensor:
            return super().forward_branches(x) * 1.001

    network = M.Sequential(randomised(RepVGGBlock(3, 8)), randomised(Scaled(8, 8)))
    with pytest.raises(EquivalenceError, match="block 1 changes its output") as caught:
        to_deploy(network, inplace=True)
    assert caught.value.actual > BOUND
    assert not any(block.deploy for block in network.modules() if isinstance(block, RepVGGBlock))


def test_forward_hooks_on_a_block_survive():
    network = randomised(RepVGG(**TINY))
    seen = []
    network.stage0.register_forward_hook(lambda *_: seen.append(1))
    to_deploy(network, inplace=True)(Tensor(np.zeros((1, 3, 32, 32), np.float32)))
    assert seen == [1]


class TestCompareForms:
    def test_it_reports_every_block_in_order_and_the_whole(self):
        report = compare_forms(randomised(RepVGG(**TINY)), np.random.RandomState(0).randn(2, 3, 32, 32).astype("f4"))
        assert [block.name for block in report.blocks][:3] == ["stage0", "stage1.0", "stage2.0"]
        assert len(report.blocks) == 10
        assert report.worst_block.relative <= BOUND
        assert report.end_to_end.relative <= BOUND
        assert f"worst block: {report.worst_block.name}" in str(report)

    def test_it_names_the_block_that_differs(self):
        class Scaled(RepVGGBlock):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * (1 if self.deploy else 1.01)

        network = M.Sequential(RepVGGBlock(3, 8), Scaled(8, 8), RepVGGBlock(8, 8))
        report = compare_forms(randomised(network), np.ones((1, 3, 8, 8), np.float32))
        assert report.worst_block.name == "1"
        assert report.worst_block.relative == pytest.approx(0.01 / 1.01, rel=1e-3)
        assert report.end_to_end.relative > 1e-4

    def test_modes_are_put_back_as_they_were_part_by_part(self, caplog):
        network = randomised(RepVGG(**TINY))
        network.stage1.eval()
        before = [part.training for part in network.modules()]
        compare_forms(network, np.zeros((1, 3, 32, 32), np.float32))
        assert [part.training for part in network.modules()] == before
        assert "training mode" not in caplog.text

    def test_a_deploy_form_has_nothing_to_compare_with(self):
        with pytest.raises(FormError, match="no train form to compare"):
            compare_forms(RepVGG(**TINY, deploy=True), np.zeros((1, 3, 32, 32), np.float32))

    def test_a_module_of_ones_own_needs_inputs(self):
        with pytest.raises(ArgumentError, match="inputs are needed"):
            compare_forms(randomised(RepVGG(**TINY)))
