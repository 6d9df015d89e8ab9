"""Listing, looking up names, and registering; none of it needs MegEngine."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import repvgg_zoo
from repvgg_zoo._requirements import has_megengine_wheels
from repvgg_zoo.errors import ArgumentError, NoWeightsError, UnknownModelError
from repvgg_zoo.registry.api import find_default_checkpoint, find_model
from repvgg_zoo.registry.names import find_checkpoint, natural_key

PAPER = [
    "RepVGG_A0", "RepVGG_A1", "RepVGG_A2", "RepVGG_B0", "RepVGG_B1", "RepVGG_B1g2", "RepVGG_B1g4", "RepVGG_B2",
    "RepVGG_B2g2", "RepVGG_B2g4", "RepVGG_B3", "RepVGG_B3g2", "RepVGG_B3g4", "RepVGG_D2se",
]  # fmt: skip


def test_every_variant_is_listed_in_natural_order():
    assert repvgg_zoo.list_models() == [*PAPER, "RepVGG_N0", "RepVGGplus_L2pse"]


@pytest.mark.parametrize(
    ("name", "variant", "tag"),
    [
        ("RepVGG_B1g2", "RepVGG_B1g2", None),
        ("RepVGG-B1g2", "RepVGG_B1g2", None),
        ("RepVGGB1g2", "RepVGG_B1g2", None),
        ("repvgg_b1g2", "RepVGG_B1g2", None),
        ("create_RepVGG_B1g2", "RepVGG_B1g2", None),
        ("B1G2", "RepVGG_B1g2", None),
        ("d2se", "RepVGG_D2se", None),
        ("d2", "RepVGG_D2se", None),
        ("RepVGGplus-L2pse", "RepVGGplus_L2pse", None),
        ("repvggplus_l2pse.official", "RepVGGplus_L2pse", "official"),
        ("RepVGG_A0.timm", "RepVGG_A0", "timm"),
        ("a0.OPENMMLAB-OWN", "RepVGG_A0", "openmmlab_own"),
        ("repvgg_a0.rvgg_in1k", "RepVGG_A0", "timm"),
        ("repvgg-A0_8xb32_in1k", "RepVGG_A0", "openmmlab_own"),
    ],
)
def test_a_name_is_found_in_all_spellings_of_the_community(name, variant, tag):
    model, found_tag = find_model(name)
    assert (model.name, found_tag) == (variant, tag)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("RepVGG_A4", "RepVGG_A0"),
        ("repvg_b1g2", "RepVGG_B1g2"),
        ("D2s", "RepVGG_D2se"),
        ("RepVGG_A0.tim", "RepVGG_A0.timm"),
    ],
)
def test_an_unknown_name_comes_with_the_closest_ones(name, suggestion):
    with pytest.raises(UnknownModelError) as caught:
        find_model(name)
    assert suggestion in caught.value.suggestions
    assert suggestion.rpartition(".")[2] in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "RepVGG_A0.", "resnet50"])
def test_invalid_names_are_unknown_models_too(name):
    with pytest.raises(UnknownModelError):
        find_model(name)


@pytest.mark.parametrize("name", [5, None, b"RepVGG_A0"])
def test_a_name_that_is_not_text_is_an_argument_error(name):
    with pytest.raises(ArgumentError, match="is not a model's name"):
        find_model(name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"filter": "B1*"}, ["RepVGG_B1", "RepVGG_B1g2", "RepVGG_B1g4"]),
        ({"filter": "repvgg-b1*"}, ["RepVGG_B1", "RepVGG_B1g2", "RepVGG_B1g4"]),
        ({"filter": ["*g2", "a[0-1]"], "exclude": "B3*"}, ["RepVGG_A0", "RepVGG_A1", "RepVGG_B1g2", "RepVGG_B2g2"]),
        ({"filter": ("A0", "A0")}, ["RepVGG_A0"]),
        ({"filter": (name for name in ["A1", "A0"])}, ["RepVGG_A0", "RepVGG_A1"]),
        ({"filter": []}, []),
        ({"filter": "A9"}, []),
        ({"exclude": ["*"]}, []),
        ({"exclude": []}, [*PAPER, "RepVGG_N0", "RepVGGplus_L2pse"]),
        ({"pretrained": False}, ["RepVGG_B2g2", "RepVGG_B3g2"]),
        ({"pretrained": "basecls", "filter": "A*"}, ["RepVGG_A0", "RepVGG_A1", "RepVGG_A2"]),
        ({"min_top1": 80.3}, ["RepVGG_B3", "RepVGG_D2se", "RepVGG_N0", "RepVGGplus_L2pse"]),
        ({"max_params": 13_000_000}, ["RepVGG_A0", "RepVGG_A1", "RepVGG_N0"]),
        ({"max_macs": 2_400_000_000, "exclude": "N*"}, ["RepVGG_A0", "RepVGG_A1"]),
    ],
)
def test_filters_select_what_they_describe(arguments, expected):
    assert repvgg_zoo.list_models(**arguments) == expected


def test_natural_order_counts_numbers_and_puts_short_names_first():
    names = ["B10", "B2", "B1g4", "B1", "b1g2", "A0"]
    assert sorted(names, key=natural_key) == ["A0", "B1", "b1g2", "B1g4", "B2", "B10"]


@pytest.mark.parametrize("name", ["RepVGG_B2g2", "RepVGG_B3g2"])
def test_a_variant_without_weights_has_its_own_error(name):
    with pytest.raises(NoWeightsError, match="no pretrained weights") as caught:
        find_default_checkpoint(name)
    assert len(str(caught.value)) > 100


def test_the_default_checkpoint_has_the_strongest_official_integrity():
    rank = ["sha256", "sha256_prefix", "none"].index
    for name in repvgg_zoo.list_models(pretrained=True):
        model = repvgg_zoo.model_info(name)
        candidates = [c for c in model.checkpoints if c.official_weights] or list(model.checkpoints)
        best = min(rank(c.file.integrity) for c in candidates)
        chosen = find_checkpoint(model)
        assert chosen in candidates
        assert rank(chosen.file.integrity) == best


def run_isolated(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_listing_and_looking_up_work_where_megengine_is_not_installed():
    code = """
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("megengine", "numpy", "cv2", "requests"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Blocker())
        import repvgg_zoo
        assert len(repvgg_zoo.list_models()) == 16
        assert repvgg_zoo.model_info("b1g2").params.deploy == 41360104
        try:
            from repvgg_zoo import to_deploy
        except ImportError as error:
            print(type(error).__name__, error.hint)
    """
    cure = "pip install" if has_megengine_wheels() else "uv venv --python 3.10"
    assert f"DependencyError {cure}" in run_isolated(textwrap.dedent(code))


def test_importing_reads_no_data_opens_no_socket_and_imports_no_framework():
    code = """
        import sys
        events = []
        def watch(event, args):
            if event == "socket.connect" or event == "socket.getaddrinfo":
                events.append(event)
            if event == "open" and str(args[0]).endswith((".yaml", ".json", ".safetensors")):
                events.append(args[0])
        sys.addaudithook(watch)
        import repvgg_zoo
        heavy = {"megengine", "numpy", "yaml", "requests", "cv2", "PIL"} & set(sys.modules)
        assert not events and not heavy, (events, heavy)
        assert {"create", "list_models"} <= set(dir(repvgg_zoo))
        try:
            repvgg_zoo.nothing
        except AttributeError as error:
            print(error)
    """
    assert "no attribute 'nothing'" in run_isolated(textwrap.dedent(code))
