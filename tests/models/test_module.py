"""Our modules are MegEngine's, only quicker: what is built, named and found is the same."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections import OrderedDict

import megengine.module as M
import numpy as np
import pytest
from megengine import Parameter, Tensor

from repvgg_zoo.models import RepVGG, RepVGGBlock, RepVGGplus
from repvgg_zoo.models.module import Module, Sequential, twin
from repvgg_zoo.registry.specs import SESpec

TINY = {"num_blocks": (1, 3, 4, 1), "width_multiplier": (0.25,) * 4, "num_classes": 10}
NETWORKS = {
    "RepVGG": lambda **options: RepVGG(**TINY, groups=2, se=SESpec("before_relu", 16), **options),
    "RepVGGplus": lambda **options: RepVGGplus(**TINY, se=SESpec("after_relu", 4), **options),
}
every_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


def facts(network: M.Module) -> list:
    """Everything plain that is known of each module, and the names and shapes of the tensors."""
    plain = (int, float, bool, str, tuple, list, type(None))
    modules = [
        (name, type(module), {key: value for key, value in vars(module).items() if type(value) in plain})
        for name, module in network.named_modules()
    ]
    tensors = [
        (key, type(tensor), tensor.shape, tensor._name, tensor._short_name, tensor._prefix)
        for key, tensor in network.named_tensors()
    ]
    return [modules, tensors, repr(network)]


@every_network
@pytest.mark.parametrize("deploy", [False, True])
def test_blocks_that_are_twins_differ_in_nothing_from_blocks_built_one_by_one(build, deploy):
    twins, single = (build(deploy=deploy, init_weights=init) for init in (False, True))
    # Lists of blocks and of features compare by what is in them, which is told by name.
    for found in facts(twins)[0] + facts(single)[0]:
        found[2].pop("blocks", None)
    assert facts(twins)[1:] == facts(single)[1:]
    for one, other in zip(facts(twins)[0], facts(single)[0]):
        one[2].pop("blocks", None), other[2].pop("blocks", None)
        assert one == other


@every_network
def test_twins_share_nothing_that_one_of_them_could_change(build):
    network = build(init_weights=False)
    blocks = [module for module in network.modules() if isinstance(module, RepVGGBlock)]
    for one, other in itertools.combinations(blocks, 2):
        inside = [{id(leaf) for leaf in block._flatten()} for block in (one, other)]
        assert inside[0].isdisjoint(inside[1])
        assert one._modules is not other._modules and one._forward_hooks is not other._forward_hooks
    before = {key: tensor.numpy().copy() for key, tensor in network.named_tensors()}
    blocks[-2].rbr_dense.bn.running_var[...] = 7
    blocks[-2].rbr_dense.conv.weight[...] = 7
    changed = [key for key, tensor in network.named_tensors() if not np.array_equal(tensor.numpy(), before[key])]
    assert len(changed) == 2 and all("rbr_dense" in key for key in changed)


@every_network
@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize("with_parent", [True, False])
def test_a_search_finds_what_megengines_own_finds(build, recursive, with_parent):
    network = build()
    network.extra = {"list": [Parameter(np.zeros(1)), Tensor(np.zeros(2))], "module": M.BatchNorm2d(3)}
    network.pair = (M.Identity(), Tensor(np.zeros(1)))
    network.ordered = OrderedDict(one=Tensor(np.zeros(1)))
    options = {"recursive": recursive, "with_key": True, "with_parent": with_parent, "prefix": "net"}
    expected, found = list(M.Module._flatten(network, **options)), list(network._flatten(**options))
    assert [(one[0], len(one)) for one in found] == [(one[0], len(one)) for one in expected]
    assert all(a is b for one, other in zip(found, expected) for a, b in zip(one[1:], other[1:]))
    assert any(one[0] == "net.extra.list.1" for one in found)


def test_what_is_set_deleted_and_set_again_is_kept_as_megengine_keeps_it():
    class Ours(Module):
        def forward(self, x):
            return x

    class Theirs(M.Module):
        def forward(self, x):
            return x

    def change(module):
        module.layer, module.number = M.Identity(), 3
        module.layer = None  # no module any more
        module.number = M.Identity()
        module.weight = Parameter(np.zeros(2))
        module.layers = [M.Identity(), M.Identity()]
        del module.number
        return [key for key, _ in module._flatten(with_key=True)], repr(module).replace("Theirs", "Ours")

    assert change(Ours()) == change(Theirs())


def test_appended_modules_have_the_names_of_those_given_at_once():
    outer, other = (RepVGG(**TINY, deploy=True) for _ in range(2))
    parts = [M.Conv2d(3, 3, 1), M.ReLU()]
    outer.extra = Sequential()
    for part in parts:
        outer.extra.append(part)
    other.extra = M.Sequential(M.Conv2d(3, 3, 1), M.ReLU())
    assert [key for key, _ in outer.named_tensors()] == [key for key, _ in other.named_tensors()]
    assert outer.extra[0]._name == other.extra[0]._name == "extra.0"
    assert [tensor._name for tensor in outer.extra.tensors()] == [tensor._name for tensor in other.extra.tensors()]
    assert len(outer.extra) == 2 and outer.extra[1] is parts[1]
    x = Tensor(np.ones((1, 3, 2, 2), np.float32))
    assert outer.extra(x).shape == (1, 3, 2, 2)


def test_a_network_survives_deepcopy_and_pickle():
    network = RepVGG(**TINY)
    for made in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert repr(made) == repr(network)
        state = made.state_dict()
        assert all(np.array_equal(state[key], value) for key, value in network.state_dict().items())


def test_a_twin_of_a_named_module_gets_its_own_name_where_it_is_put():
    block = RepVGGBlock(8, 8, deploy=True, init_weights=False)
    row = Sequential()
    row.append(block)
    row.append(twin(block))
    assert [tensor._name for tensor in row.tensors()] == [
        f"{index}.rbr_reparam.{name}" for index in (0, 1) for name in ("bias", "weight")
    ]
