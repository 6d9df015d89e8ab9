"""Networks that were changed after they were built.

The kind of fault: a user changes a network with MegEngine's own means (dilated stages for segmentation, another stride
or padding, BN without parameters, a bias, float16), and re-parameterization goes by what the network was built with.
Either the change is carried to the deploy form, or the error names the attribute that cannot be.
"""

from __future__ import annotations

import megengine.module as M
import numpy as np
import pytest
from megengine import Parameter, Tensor
from megengine.quantization import quantize_qat

from repvgg_zoo import compare_forms, to_deploy
from repvgg_zoo.errors import EquivalenceError
from repvgg_zoo.models import RepVGG, RepVGGBlock
from repvgg_zoo.registry.specs import SESpec

from ..networks import fill, randomised

TINY = {"num_blocks": (1, 3, 2, 2), "width_multiplier": (0.25, 0.25, 0.25, 0.25), "num_classes": 10}
IMAGES = np.random.RandomState(0).randn(2, 3, 32, 32).astype(np.float32)
BOUND = 1e-5


def block(widths=(8, 8), **options):
    return randomised(RepVGGBlock(*widths, **options))


def set_dense(block, **attributes):
    for name, value in attributes.items():
        setattr(block.rbr_dense.conv, name, value)
    return block


def set_point(block, **attributes):
    for name, value in attributes.items():
        setattr(block.rbr_1x1.conv, name, value)
    return block


def set_bn(block, branch, **options):
    bn = M.BatchNorm2d(8, **options)
    if bn.running_var is not None:
        fill(bn.running_var, 2.0)
        fill(bn.running_mean, 0.5)
    if branch == "rbr_identity":
        block.rbr_identity = bn
    else:
        getattr(block, branch).bn = bn
    return block


def with_bias(block, branch):
    conv = getattr(block, branch).conv
    conv.bias = Parameter(np.random.RandomState(1).randn(1, 8, 1, 1).astype(np.float32))
    return block


CARRIED = {
    "another stride": lambda: set_point(set_dense(block((8, 16)), stride=(2, 2)), stride=(2, 2)),
    "a stride taken away": lambda: set_point(set_dense(block((8, 16), stride=2), stride=1), stride=(1, 1)),
    "a stride for each axis": lambda: set_point(set_dense(block((8, 16)), stride=(1, 2)), stride=(1, 2)),
    "dilation": lambda: set_dense(block(), dilation=(2, 2), padding=(2, 2)),
    "dilation as a number": lambda: set_dense(block(), dilation=4, padding=4),
    "dilation of one axis": lambda: set_dense(block(), dilation=(1, 2), padding=(1, 2)),
    "dilation of a grouped block": lambda: set_dense(block(groups=2), dilation=(2, 2), padding=(2, 2)),
    "more padding": lambda: set_point(set_dense(block((8, 16)), padding=(2, 2)), padding=(1, 1)),
    "another padding mode": lambda: set_dense(block(), padding_mode="reflect"),
    "BN without parameters in the 3x3 branch": lambda: set_bn(block(), "rbr_dense", affine=False),
    "BN without parameters in the 1x1 branch": lambda: set_bn(block(), "rbr_1x1", affine=False),
    "an identity branch without parameters": lambda: set_bn(block(), "rbr_identity", affine=False),
    "a frozen BN": lambda: set_bn(block(), "rbr_dense", freeze=True),
    "a bias in the 3x3 branch": lambda: with_bias(block(), "rbr_dense"),
    "a bias in the 1x1 branch": lambda: with_bias(block(), "rbr_1x1"),
}


@pytest.mark.parametrize("case", CARRIED)
def test_a_change_is_carried_to_the_deploy_form(case):
    changed = CARRIED[case]()
    changed.eval()
    x = Tensor(np.random.RandomState(0).randn(2, 8, 9, 7).astype(np.float32))
    expected, deployed = changed(x).numpy(), to_deploy(changed)
    assert isinstance(deployed.rbr_reparam, M.Conv2d) and deployed.rbr_dense is None
    assert np.abs(deployed(x).numpy() - expected).max() <= BOUND * np.abs(expected).max()
    assert compare_forms(changed, x).end_to_end.relative <= BOUND


@pytest.mark.parametrize("case", [case for case in CARRIED if "padding" not in case and "stride" not in case])
def test_a_change_is_carried_to_the_equivalent_kernel(case):
    changed = CARRIED[case]()
    changed.eval()
    kernel, bias = changed.get_equivalent_kernel_bias()
    convolution = to_deploy(changed).rbr_reparam
    assert np.allclose(kernel.numpy(), convolution.weight.numpy(), rtol=1e-4, atol=1e-6)
    assert np.allclose(bias.numpy(), convolution.bias.numpy(), rtol=1e-4, atol=1e-6)


REFUSED = {
    "a stride of the 3x3 branch alone": (
        lambda: set_dense(block((8, 16)), stride=(2, 2)),
        "rbr_1x1.conv.stride is (1, 1), and that of rbr_dense.conv (2, 2)",
    ),
    "dilation without padding": (lambda: set_dense(block(), dilation=(2, 2)), "rbr_1x1.conv.padding"),
    "no padding": (lambda: set_dense(block((8, 16)), padding=0), "rbr_1x1.conv.padding"),
    "padding of the 1x1 branch alone": (lambda: set_point(block((8, 16)), padding=1), "rbr_1x1.conv.padding is 1"),
    "padding modes that differ where both branches pad": (
        lambda: set_point(set_dense(block((8, 16)), padding=(2, 2), padding_mode="replicate"), padding=(1, 1)),
        "rbr_1x1.conv.padding_mode is 'zeros', and that of rbr_dense.conv 'replicate'",
    ),
    "a stride beside an identity branch": (
        lambda: set_point(set_dense(block(), stride=(2, 2)), stride=(2, 2)),
        "rbr_dense.conv.stride is (2, 2), but there is an identity branch",
    ),
    "more padding beside an identity branch": (
        lambda: set_point(set_dense(block(), padding=(2, 2)), padding=(1, 1)),
        "rbr_dense.conv has padding=(2, 2) and dilation=(1, 1), which differ, but there is an identity branch",
    ),
    "BN without running statistics": (
        lambda: set_bn(block(), "rbr_1x1", track_running_stats=False),
        "rbr_1x1.bn keeps no running statistics",
    ),
    "an identity branch without running statistics": (
        lambda: set_bn(block(), "rbr_identity", track_running_stats=False),
        "rbr_identity keeps no running statistics",
    ),
    "a layer of another kind": (
        lambda: setattr(changed := block(), "rbr_identity", M.Identity()) or changed,
        "rbr_identity is a Identity, not a BatchNorm2d",
    ),
    "fake quantization": (lambda: quantize_qat(block()), "rbr_dense is a megengine.module.qat"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("convert", [to_deploy, lambda m: to_deploy(m, inplace=True, check=False), compare_forms])
def test_what_cannot_be_carried_is_named_and_nothing_is_changed(case, convert):
    build, message = REFUSED[case]
    network = M.Sequential(block(), build())
    before = list(network.state_dict())
    arguments = (np.ones((1, 8, 5, 5), np.float32),) if convert is compare_forms else ()
    with pytest.raises(EquivalenceError) as caught:
        convert(network, *arguments)
    assert f"1.{message}" in caught.value.message
    assert all(line.startswith("1.") for line in caught.value.actual)
    assert caught.value.hint
    assert list(network.state_dict()) == before


def test_a_network_with_dilated_stages_is_the_same_in_the_deploy_form():
    network = randomised(RepVGG(**TINY, se=SESpec("before_relu", 4)))
    network.eval()
    set_point(set_dense(network.stage4[0], stride=(1, 1)), stride=(1, 1))
    set_dense(network.stage4[1], dilation=(2, 2), padding=(2, 2))
    expected = network.extract_features(Tensor(IMAGES))["stage4"].numpy()
    assert expected.shape[2:] == (2, 2)
    actual = to_deploy(network).extract_features(Tensor(IMAGES))["stage4"].numpy()
    assert np.abs(actual - expected).max() <= BOUND * np.abs(expected).max()
    assert compare_forms(network, IMAGES).end_to_end.relative <= BOUND


# float16 ------------------------------------------------------------------------------------------------------


def in_float16(network, keep=()):
    for name, tensor in network.named_tensors():
        if not any(part in name for part in keep):
            tensor._reset(type(tensor)(tensor.numpy().astype(np.float16)))
    network.eval()
    return network


def test_the_check_of_a_wide_float16_block_is_not_about_how_float16_sums_round():
    to_deploy(in_float16(block((768, 768))))


@pytest.mark.parametrize("keep", [(), (".bn.", "rbr_identity")], ids=["everything", "all but BN"])
@pytest.mark.parametrize("se", [None, SESpec("before_relu", 4), SESpec("after_relu", 4)])
def test_a_float16_network_has_a_deploy_form_that_agrees(se, keep):
    network = in_float16(randomised(RepVGG(**TINY, se=se)), keep)
    deployed = to_deploy(network)
    assert {tensor.dtype for tensor in deployed.tensors()} == {np.dtype(np.float16)}
    x = Tensor(IMAGES.astype(np.float16))
    assert network(x).dtype == deployed(x).dtype == np.float16
    for inputs in (IMAGES, IMAGES.astype(np.float64), x, Tensor(IMAGES)):
        report = compare_forms(network, inputs)
        assert report.worst_block.relative <= 1e-2
        assert 0 < report.end_to_end.relative <= 2e-2
