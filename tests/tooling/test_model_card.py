"""The model card for MegEngine/Hub follows that hub's rules, and its code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

import repvgg_zoo
from repvgg_zoo.registry.load import shipped_registry
from tools.model_card import model_card

from ..hubconf.github import ROOT, GitHub

(PATH,) = (ROOT / "hub" / "models").glob("*.md")
TEXT = PATH.read_text(encoding="utf-8")
COMMAND = f"python -m tools.model_card > {PATH.relative_to(ROOT)}"
# The rules, as scripts/parser.py, model.py, consts.py and tags.py of MegEngine/Hub state them.
LANGUAGES = ("zh_CN", "en_US")
TAGS = {"vision", "detection", "classification", "gan", "nlp"}
FIELDS = {"template", "title", "summary", "author", "tags", "github-link"}


def parsed(text: str) -> Tuple[Dict[str, object], Dict[str, List[str]]]:
    """Front matter and sections; the lines before the first section are the section ""."""
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "---"
    end = lines.index("---", 1)
    sections: Dict[str, List[str]] = {"": []}
    name = ""
    for line in lines[end + 1 :]:
        mark = re.match(r"^\s*<!--\s*section:\s*(.+)\s*-->\s*$", line)
        if mark is None:
            sections[name].append(line)
        else:
            name = mark.group(1).strip()
            assert name not in sections, f"a second section {name}"
            sections[name] = []
    return yaml.safe_load("\n".join(lines[1:end])), sections


FRONT, SECTIONS = parsed(TEXT)
MARKDOWN = MarkdownIt("commonmark").enable("table")


def blocks(section: str) -> List[str]:
    tokens = MARKDOWN.parse("\n".join(SECTIONS[section]))
    return [token.content for token in tokens if token.type == "fence" and token.info == "python"]


def table(section: str) -> List[List[str]]:
    rows = [line.strip("|").split("|") for line in SECTIONS[section] if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_it_is_generated_from_the_registry():
    assert model_card(shipped_registry().models) == TEXT, f"run {COMMAND}"


def test_its_file_name_follows_the_hubs_rule():
    assert re.fullmatch(r"[a-z0-9-]+_vision_repvgg\.md", PATH.name)


def test_the_front_matter_has_every_field_and_no_other():
    assert set(FRONT) == FIELDS
    assert FRONT["template"] == "hub1"
    assert all(isinstance(FRONT[field], str) for field in ("title", "author", "github-link"))
    assert set(FRONT["summary"]) == set(LANGUAGES) and all(isinstance(text, str) for text in FRONT["summary"].values())
    assert isinstance(FRONT["tags"], list) and set(FRONT["tags"]) <= TAGS
    assert FRONT["github-link"].startswith("https://github.com/")


def test_only_one_block_of_code_precedes_the_first_section():
    tokens = MARKDOWN.parse("\n".join(SECTIONS[""]))
    assert [(token.type, token.info) for token in tokens] == [("fence", "python")]
    assert tokens[0].content.rstrip().splitlines()[-1] == "model.eval()"


def test_the_sections_are_the_two_languages_the_required_one_first():
    assert list(SECTIONS) == ["", *LANGUAGES]


def test_both_languages_say_the_same_in_code_and_figures():
    def bare(section):
        return [re.sub(r"\s*#.*", "", block) for block in blocks(section)]

    assert bare("zh_CN") == bare("en_US")
    assert table("zh_CN")[1:] == table("en_US")[1:]
    for figure in (r"\d+\.\d+", "RepVGG[\\w]+", r"https?://[^\s)\"]+"):
        assert sorted(re.findall(figure, "\n".join(SECTIONS["zh_CN"]))) == sorted(
            re.findall(figure, "\n".join(SECTIONS["en_US"]))
        )
    assert not re.search(r"[\u4e00-\u9fff]", "\n".join(SECTIONS["en_US"]))


def test_the_table_has_the_hubs_columns_and_the_registrys_results():
    heads, _, *rows = table("en_US")
    assert heads[:3] == ["model", "Top1 acc", "Top5 acc"]
    published = [name for name in repvgg_zoo.list_models(pretrained=True) if name != "RepVGG_N0"]
    assert [row[0] for row in rows] == published
    for name, top1, top5, params, tag in rows:
        checkpoint = repvgg_zoo.model_info(name).checkpoint(tag)
        assert tag == repvgg_zoo.model_info(name).default
        assert (float(top1), None if top5 == "-" else float(top5)) == (checkpoint.top1, checkpoint.top5)
        assert float(params.split()[0]) == pytest.approx(repvgg_zoo.model_info(name).params.deploy / 1e6, abs=0.005)


def test_every_model_in_the_first_block_loads_without_extra_settings():
    named = re.findall(r'"(RepVGG\w+)", pretrained=True', blocks("")[0])
    assert named[0] == "RepVGG_A0" and len(named) == len(set(named))
    for name in named:
        spec = repvgg_zoo.model_info(name)
        assert spec.checkpoint(spec.default).file.integrity != "none"


@pytest.mark.parametrize("language", LANGUAGES)
def test_its_code_runs_through_the_real_megengine_hub(language: str, github: GitHub, tmp_path: Path) -> None:
    """As it stands, but for two things that need the internet: the weights are those of the bundled variant, and the
    image comes from this disk."""
    Image.effect_noise((300, 200), 60).save(tmp_path / "image.jpg")
    code = "\n".join([*blocks(""), *blocks(language), 'print("ran to its end")'])
    code = code.replace('"RepVGG_A0"', '"RepVGG_N0"')
    code, replaced = re.subn(r'"https://data\.megengine[^"]*"', repr((tmp_path / "image.jpg").as_uri()), code)
    assert replaced == 1 and "RepVGG_N0" in code
    done = github.run(tmp_path / "user", "-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "ran to its end"
    predictions = [line.split() for line in lines[:5]]
    assert {label for label, _ in predictions} <= set("0123456789")
    probabilities = [float(probability) for _, probability in predictions]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1.000001
