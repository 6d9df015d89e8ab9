"""The catalog is made from the registry: it leaves nothing out, and its code is valid."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from PIL import Image

from repvgg_zoo.cli import main
from repvgg_zoo.cli.parser import COMMANDS, command_parser
from repvgg_zoo.registry.load import shipped_registry
from tools.catalog import html
from tools.catalog.architecture import drawing, stages_of
from tools.catalog.details import checkpoint_tables
from tools.catalog.pages import variant_page, write_pages
from tools.catalog.plot import accuracy_at, plot, views
from tools.catalog.records import Setting, Timing, read_settings
from tools.catalog.table import catalog_table, reference, source

ROOT = Path(__file__).resolve().parents[2]
MODELS = {model.name: model for model in shipped_registry().models}


def blocks(name: str, language: str) -> List[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", variant_page(MODELS[name]), re.DOTALL | re.MULTILINE)


def commands(name: str) -> List[List[str]]:
    """The command lines of a page, without the program's name."""
    lines = [shlex.split(line) for block in blocks(name, "sh") for line in block.splitlines()]
    return [words[1:] for words in lines if words[0] == "repvgg-zoo"]


@pytest.mark.parametrize("name", MODELS)
def test_the_code_of_a_variants_page_is_valid(name: str) -> None:
    for block in blocks(name, "python"):
        compile(block, name, "exec")
        assert f'"{name}' in block
    for command, *words in commands(name):
        module = importlib.import_module(f"repvgg_zoo.cli.commands.{COMMANDS[command].module}")
        command_parser(command, module).parse_args(words)
    assert len(blocks(name, "python")) >= 3 and len(commands(name)) >= 3


def test_the_code_of_the_bundled_variants_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the hub's, which runs in the test of the model card, and the measurement of speed, which takes long."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 60), 60).save("image.jpg")
    namespace: Dict[str, object] = {}
    for block in blocks("RepVGG_N0", "python"):
        if "megengine.hub" not in block:
            exec(block, namespace)
    assert namespace["logits"].shape == (1, 10)  # type: ignore[attr-defined]
    assert Path("RepVGG_N0.onnx").stat().st_size > 500_000
    Path("RepVGG_N0.onnx").unlink()
    for words in commands("RepVGG_N0"):
        if words[0] != "bench":
            assert main(words) == 0, capsys.readouterr().err
    assert Path("RepVGG_N0.onnx").exists()


def test_a_variant_without_a_digest_says_how_to_allow_it() -> None:
    for name, model in MODELS.items():
        is_unverified = model.default is not None and model.checkpoint(model.default).file.integrity == "none"
        assert ("export REPVGG_ZOO_ALLOW_UNVERIFIED=1" in variant_page(model)) == is_unverified, name


def test_every_checkpoint_has_a_row_and_a_place_that_the_row_leads_to() -> None:
    table = catalog_table(tuple(MODELS.values()))
    for name, model in MODELS.items():
        assert model.checkpoints or f">{name}</a>" in table
        tables = checkpoint_tables(model)
        for checkpoint in model.checkpoints:
            anchor = f"checkpoint-{checkpoint.tag}"
            assert f'href="{html.page(f"catalog/{name}")}#{anchor}">{checkpoint.name}</a>' in table
            assert f'id="{anchor}"' in tables and html.escape(checkpoint.license) in tables
            assert all(html.escape(text) in tables for text in checkpoint.file.sources)
            assert (checkpoint.file.sha256 or checkpoint.file.sha256_prefix or "No digest") in tables


@pytest.mark.parametrize("name", MODELS)
def test_the_stages_add_up_to_the_registrys_figures(name: str) -> None:
    model = MODELS[name]
    stages = stages_of(model)
    assert [stage.name for stage in stages] == [f"stage{index}" for index in range(5)]
    assert tuple(len(stage.blocks) for stage in stages[1:]) == model.architecture.num_blocks
    head = stages[-1].channels * model.architecture.num_classes
    assert sum(stage.params.deploy for stage in stages) + head + model.architecture.num_classes == model.params.deploy
    assert sum(stage.macs.train for stage in stages) + head == model.macs.train
    assert drawing(model).count('class="block') == sum(len(stage.blocks) for stage in stages) + 2 + (
        model.architecture.groups > 1
    )


SETTINGS = [
    Setting(
        "A <CPU>", 1, ("2030-01-02",), (Timing("RepVGG_A0", "float32", 224, 9.5), Timing("RepVGG_A0", "int8", 224, 4.5))
    ),
    Setting("A <CPU>", 2, ("2030-01-02",), (Timing("RepVGG_N0", "float32", 32, 0.5),)),
]


def test_the_plot_has_the_variants_with_an_accuracy_on_imagenet() -> None:
    macs, params, one, two = views(tuple(MODELS.values()), SETTINGS)
    plotted = {point.variant for point in macs.points}
    assert plotted == {point.variant for point in params.points}
    assert plotted == {name for name, model in MODELS.items() if model.paper is not None}
    assert [(point.series, point.x) for point in one.points] == [("float32", 9.5), ("int8", 4.5)]
    assert two.points == (), "RepVGG_N0's accuracy is on digits"
    figure = html.finish(plot(tuple(MODELS.values()), SETTINGS), {}, lambda name: f"{name}.html")
    assert 'href="catalog/RepVGG_A0.html"' in figure
    assert 'aria-label="RepVGG_A0: top-1 72.41 %, 4.5 ms in int8"' in figure
    assert "ms on A &lt;CPU&gt;, 1 thread" in figure and "<CPU>" not in figure
    assert figure.count("data-view=") == 3, "a view without points is left out"


def test_an_accuracy_is_drawn_at_the_cost_of_its_own_image_size() -> None:
    model = MODELS["RepVGG_D2se"]
    assert model.checkpoint(str(model.default)).preprocessing.image_size == 224 and model.architecture.image_size == 320
    assert accuracy_at(model, 224) == model.checkpoint(str(model.default)).top1
    assert accuracy_at(model, 320) == model.paper.top1 == 83.55  # type: ignore[union-attr]
    assert accuracy_at(model, 256) is None
    (point,) = (point for point in views([model], [])[0].points)
    assert point.y == 83.55


def test_a_processors_newest_records_are_used(tmp_path: Path) -> None:
    def write(date: str, cpu: str, benchmark: str, ms: float, runtime: str) -> None:
        machine = {"date": date, "cpu": cpu}
        cells = {runtime: {"ms": {"median": ms}}, "torch": {"ms": {"median": 1.0}}}
        rows = [
            {
                "benchmark": benchmark,
                "variant": "RepVGG_A0",
                "batch": batch,
                "threads": 2,
                "image_size": 224,
                "runtimes": cells,
            }
            for batch in (1, 8)
        ]
        text = json.dumps({"machine": machine, "commits": {}, "rows": rows})
        (tmp_path / f"{date}-{cpu}-{benchmark}.json").write_text(text)

    write("2030-01-01", "old", "inference", 9.0, "ours")
    write("2030-01-02", "new", "inference", 8.0, "ours")
    write("2030-01-03", "new", "inference", 7.0, "ours")
    write("2030-01-02", "new", "int8", 3.0, "ours int8")
    new, old = read_settings(tmp_path)
    assert old == Setting("old", 2, ("2030-01-01",), (Timing("RepVGG_A0", "float32", 224, 9.0),))
    assert new.timings == (Timing("RepVGG_A0", "float32", 224, 7.0), Timing("RepVGG_A0", "int8", 224, 3.0))
    assert (new.cpu, new.dates) == ("new", ("2030-01-02", "2030-01-03"))


REFERENCES = {
    "owner/repo@0123abc:a/b.csv (accuracy)": "https://github.com/owner/repo/blob/0123abc/a/b.csv",
    "https://example.org/a.bin (sha256)": "https://example.org/a.bin",
    "measured here: train.py": None,
}


@pytest.mark.parametrize("text", REFERENCES)
def test_where_a_value_was_read_is_a_link_if_it_has_an_address(text: str) -> None:
    address = REFERENCES[text]
    assert reference(text) == text if address is None else f'<a href="{address}">' in reference(text)


def test_a_source_is_a_link_if_a_browser_can_follow_it() -> None:
    assert 'href="https://drive.google.com/file/d/xyz/view"' in source("gdrive:xyz")
    assert 'href="https://example.org/a?b&amp;c"' in source("https://example.org/a?b&c")
    assert source("hub/file.bin") == "hub/file.bin"


def test_labels_are_translated_and_escaped_and_their_values_are_not_lost() -> None:
    text = html.element("p", html.label("%s of <%s>", "a&b", 3), html.label("all"))
    assert html.labels(text) == ["%s of <%s>", "all"]
    assert html.finish(text, {"all": "全部"}, str) == "<p>a&amp;b of &lt;3&gt;全部</p>"


PO = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

msgid "stage %s"
msgstr "阶段 %s"
"""


@pytest.mark.parametrize(
    ("builder", "output", "expected"),
    [
        ("html", "index.html", ("阶段 4", "Params, train form", "129,280")),
        ("gettext", "index.pot", ('msgid "stage %s"', 'msgid "Params, train form"')),
    ],
)
def test_the_labels_are_translated_with_the_docs(
    tmp_path: Path, builder: str, output: str, expected: Tuple[str, ...]
) -> None:
    catalogs = tmp_path / "locale" / "zh_CN" / "LC_MESSAGES"
    catalogs.mkdir(parents=True)
    (catalogs / "index.po").write_text(PO, encoding="utf-8")
    settings = "extensions = ['tools.catalog.extension']\nlocale_dirs = ['locale']\nexclude_patterns = ['catalog']\n"
    (tmp_path / "conf.py").write_text(settings)
    (tmp_path / "index.rst").write_text("Title\n=====\n\n.. catalog:: stages RepVGG_N0\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", builder, "-D", "language=zh_CN", ".", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=str(tmp_path), env=environment, check=True, timeout=120)
    text = (tmp_path / "out" / output).read_text(encoding="utf-8")
    assert [part for part in expected if part not in text] == []


def test_pages_of_variants_that_are_gone_are_removed_and_others_are_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    write_pages(MODELS.values(), folder)
    untouched = folder / "RepVGG_A0.md"
    before = untouched.stat().st_mtime_ns
    (folder / "RepVGG_Gone.md").touch()
    write_pages(MODELS.values(), folder)
    assert {path.stem for path in folder.iterdir()} == set(MODELS)
    assert untouched.stat().st_mtime_ns == before
