"""The tables for those who come from elsewhere: our side of each row runs, and each name is understood.

As written, but with the bundled RepVGG_N0 in the place of RepVGG_A0, whose weights would be downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import megengine
import numpy as np
import pytest

import repvgg_zoo

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
# The names of RepVGG_A0 in the code, without case; a tag goes with its name.
A0 = re.compile(r"\b(create_)?repvgg[_-]a0(_8xb32_in1k|\.rvgg_in1k)?\b", re.IGNORECASE)


def rows() -> Dict[str, List[Tuple[str, str]]]:
    """Return the rows of each section's table."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: [
            (left, right) for left, right in re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
        ][1:]
        for section in sections
    }


ROWS = rows()
CODE = [
    (section, code)
    for section, pairs in ROWS.items()
    for _, cell in pairs
    for code in re.findall(r"`([^`]+)`", cell)
    if re.match(r"repvgg_zoo\.|model\.|\[", code)
]


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """What the code refers to, and the folder that it runs in."""
    folder = tmp_path_factory.mktemp("coming_from")
    images = [np.random.RandomState(seed).randint(0, 256, (8, 8)).astype(np.uint8) for seed in range(16)]
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    layouts = {"mine.pth": "timm", "epoch_100.pth": "openmmlab", "RepVGG-A0-train.pth": "official"}
    for name, layout in {**layouts, "basecls.pkl": "basecls"}.items():
        repvgg_zoo.save_checkpoint(folder / name, network, layout=layout)
    return {"repvgg_zoo": repvgg_zoo, "images": images, "image": images[0], "model": network, "folder": folder}


@pytest.mark.parametrize(("section", "code"), CODE)
def test_our_side_of_a_row_runs(
    section: str, code: str, namespace: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(namespace["folder"])
    variables = dict(namespace)
    if "inplace" in code:
        variables["model"] = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    if "feature_info" in code:
        variables["model"] = repvgg_zoo.create("RepVGG_N0", features_only=True)
    code = A0.sub("RepVGG_N0", code).replace('"basecls")', '"digits")', "pretrained=" in code)
    code = code.replace('checkpoint="RepVGG_N0-train.pth"', 'checkpoint="RepVGG-A0-train.pth"')
    result = eval(code, variables)
    assert result is not None or "save_checkpoint" in code
    if code == 'repvgg_zoo.create("RepVGG_N0", pretrained=True)':
        assert not result.training and result(megengine.Tensor(np.zeros((1, 1, 32, 32), np.float32))).shape == (1, 10)


def test_every_library_has_a_table_whose_rows_have_code_on_both_sides() -> None:
    assert list(ROWS) == ["timm", "torchvision", "BaseCls", "mmpretrain", "The authors' repository", "Names"]
    assert all("`" in left and "`" in right for pairs in ROWS.values() for left, right in pairs)
    assert len(CODE) >= 35


@pytest.mark.parametrize(("left", "right"), ROWS["Names"])
def test_a_name_from_elsewhere_is_ours(left: str, right: str) -> None:
    from repvgg_zoo.registry.api import find_model

    spec, tag = find_model(re.findall(r"`(.+)`", left)[0])
    assert (spec.name if tag is None else f"{spec.name}.{tag}") == right.strip("`")
