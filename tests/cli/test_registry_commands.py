"""list and info: the registry as a table and as JSON."""

from __future__ import annotations

import json

import pytest

import repvgg_zoo
from repvgg_zoo.cli.commands.list import pareto_front
from repvgg_zoo.cli.describe import describe


def test_the_table_has_all_variants_and_fits_80_columns(run):
    result = run("list")
    lines = result.out.splitlines()
    assert result.code == 0 and result.err == ""
    assert [line.split()[0] for line in lines[1:17]] == repvgg_zoo.list_models()
    assert max(map(len, lines)) <= 80
    assert "RepVGG_A0           8.31M   1.36G  224  72.41    224  official   sha256    37 MB" in lines
    assert "RepVGG_A1          12.79M   2.36G  224  74.47    224  openmmlab  prefix   ~56 MB" in lines


def test_the_figures_in_json_are_not_rounded(run):
    rows = run("list", "--json").json
    a0 = next(row for row in rows if row["name"] == "RepVGG_A0")
    assert (a0["params"], a0["macs"], a0["top1"]) == (8309384, 1361451008, 72.41)
    assert a0["top1_stated_by"] == "DingXiaoH/RepVGG, the paper's authors"
    b2g2 = next(row for row in rows if row["name"] == "RepVGG_B2g2")
    assert b2g2["top1"] is None and b2g2["no_weights"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["B1*"], {"filter": "B1*"}),
        (["B1*", "a0"], {"filter": ["B1*", "a0"]}),
        (["--exclude", "*g4", "--exclude", "A*"], {"exclude": ["*g4", "A*"]}),
        (["--pretrained"], {"pretrained": True}),
        (["--tag", "openmmlab*"], {"pretrained": "openmmlab*"}),
        (["--min-top1", "79"], {"min_top1": 79}),
        (["--max-params", "10M"], {"max_params": 10_000_000}),
        (["--max-macs", "2.4g"], {"max_macs": 2_400_000_000}),
        (["--max-macs", "1400000000"], {"max_macs": 1_400_000_000}),
    ],
)
def test_filters_are_those_of_list_models(run, argv, expected):
    names = [row["name"] for row in run("list", *argv, "--json").json]
    assert names == repvgg_zoo.list_models(**expected)
    assert 0 < len(names) < 16


def test_a_filter_without_matches_is_not_an_error(run):
    assert (run("list", "Z*").code, run("list", "Z*").out) == (0, "no variant passes these filters\n")
    assert run("list", "Z*", "--json").json == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(
    ("key", "field", "largest_first"),
    [("params", "params", False), ("macs", "macs", False), ("top1", "top1", True), ("size", None, False)],
)
def test_rows_are_sorted_by_a_column_and_those_without_a_value_come_last(
    run, key, field, largest_first, checkpoints, reverse
):
    options = [*(["--checkpoints"] if checkpoints else []), *(["--reverse"] if reverse else [])]
    rows = run("list", "--sort", key, *options, "--json").json
    values = [row[field] if field else row["size"] or row["estimated_size"] for row in rows]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=largest_first != reverse) and values == known + [None] * values.count(None)
    assert {row["name"] for row in rows} == {row["name"] for row in run("list", *options, "--json").json}


def test_names_are_in_natural_order_and_may_be_reversed(run):
    names = [row["name"] for row in run("list", "--reverse", "--json").json]
    assert names == repvgg_zoo.list_models()[::-1]
    assert "did you mean top1?" in run("list", "--sort", "top-1").err


def test_each_checkpoint_has_a_row_with_its_size_license_and_integrity(run):
    rows = run("list", "--checkpoints", "--json").json
    specs = {spec.name: spec for name in repvgg_zoo.list_models() for spec in repvgg_zoo.model_info(name).checkpoints}
    assert len(rows) == len(specs) == 70
    for row in rows:
        spec = specs[row["name"]]
        assert (row["license"], row["integrity"], row["size"]) == (spec.license, spec.file.integrity, spec.file.size)
        assert (row["top1"], row["top5"], row["publisher"]) == (spec.top1, spec.top5, spec.publisher)
        assert row["is_default"] == (repvgg_zoo.model_info(row["variant"]).default == row["tag"])
        assert row["size"] is None or row["size"] == pytest.approx(row["estimated_size"], rel=0.03)
    lines = run("list", "--checkpoints").out.splitlines()
    assert "RepVGG_A0.official         72.41  90.49  224  sha256    37 MB  MIT" in lines
    assert len([line for line in lines if line.startswith("RepVGG")]) == 70, "a row is a line in a pipe"


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["a0", "--tag", "openmmlab*"], ["RepVGG_A0.openmmlab", "RepVGG_A0.openmmlab_own"]),
        (["--min-top1", "84"], ["RepVGGplus_L2pse.official"]),
        (["b2g2"], []),
    ],
)
def test_filters_apply_to_checkpoints(run, argv, names):
    rows = run("list", "--checkpoints", *argv, "--json").json
    assert [row["name"] for row in rows if row["name"] != "RepVGG_N0.digits"] == names


@pytest.mark.parametrize(
    ("words", "name", "field"),
    [
        (["a0"], "RepVGG_A0", "name"),
        (["RepVGG-B1g2"], "RepVGG_B1g2", "name"),
        (["repvgg_a0.rvgg"], "RepVGG_A0.timm", "alias"),
        (["create_RepVGG_B3g4"], "RepVGG_B3g4", "name"),
        (["paddle"], "RepVGG_A0.paddleclas", "name"),
        (["GOOGLE drive"], "RepVGG_D2se", "notes"),
        (["apache", "openmmlab", "b1g4"], "RepVGG_B1g4.openmmlab", "license"),
        (["baidu"], None, None),
        (["handwritten"], "RepVGG_N0.digits", "dataset"),
    ],
)
def test_search_takes_names_aliases_licenses_and_notes(run, words, name, field):
    result = run("search", *words)
    rows = {row["name"]: row for row in run("search", *words, "--json").json}
    assert result.code == 0
    if name is None:
        assert not rows and result.out.startswith(f"nothing matches {' '.join(words)!r}")
    else:
        assert field in rows[name]["matches"] and name in result.out


def test_a_search_without_a_match_names_the_closest_models(run):
    assert (
        run("search", "repvgg_a4").out == "nothing matches 'repvgg_a4'; did you mean RepVGG_A2, RepVGG_A1, RepVGG_A0?\n"
    )


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["RepVGG_A4"], "no variant passes these filters; did you mean RepVGG_A2, RepVGG_A1, RepVGG_A0?"),
        (["--tag", "tim"], "no variant passes these filters; did you mean --tag timm?"),
        (
            ["a0", "--checkpoints", "--tag", "baseclass"],
            "no checkpoint passes these filters; did you mean --tag basecls?",
        ),
        (["a0", "--min-top1", "99"], "no variant passes these filters"),
        (["B*", "--tag", "digits"], "no variant passes these filters"),
    ],
)
def test_a_misspelt_filter_gets_the_closest_name(run, argv, hint):
    assert (run("list", *argv).code, run("list", *argv).out) == (0, f"{hint}\n")


def test_the_pareto_front_has_the_variants_that_no_other_beats(run):
    models = [repvgg_zoo.model_info(name) for name in repvgg_zoo.list_models(pretrained=True)]
    names = [row["name"] for row in run("list", "--pareto", "--json").json]
    assert names == pareto_front(models)
    # B1 (78.37 at 11.8 G) loses to B2g4 (79.37 at 11.3 G), B2 to B3g4.
    assert "RepVGG_B1" not in names and "RepVGG_B2" not in names
    # Digits are not compared with ImageNet, nor D2se's top-1 at 224 px with its MACs at 320 px.
    assert {"RepVGG_N0", "RepVGG_D2se", "RepVGG_A0", "RepVGGplus_L2pse"} <= set(names)


def test_info_shows_the_description_wrapped_for_a_terminal(run):
    result = run("info", "repvgg-a0")
    expected = describe(repvgg_zoo.model_info("RepVGG_A0"))
    assert result.code == 0 and result.out.split() == expected.split()
    prose, _, code = result.out.partition("Example:")
    assert max(map(len, prose.splitlines())) <= 80
    assert code == expected.partition("Example:")[2], "code is not wrapped"


@pytest.mark.parametrize("name", [*repvgg_zoo.list_models(), "RepVGG_A0.timm", "d2se.openmmlab", "l2pse.official"])
def test_info_of_every_name_fits_80_columns(run, name):
    result = run("info", name)
    prose = result.out.partition("Example:")[0]
    too_long = [line for line in prose.splitlines() if len(line) > 80 and max(map(len, line.split())) < 60]
    assert result.code == 0 and not too_long
    assert run("info", name, "--json").json["name"].lower().endswith(name.lower().rpartition("_")[2].split(".")[-1])


def test_info_of_a_checkpoint_has_its_file_and_sources(run):
    checkpoint = repvgg_zoo.model_info("RepVGG_A0").checkpoint("official")
    result = run("info", "a0.official").out
    for text in (checkpoint.file.name, checkpoint.file.sha256, *checkpoint.file.sources, *checkpoint.provenance):
        assert text in result
    payload = run("info", "a0.official", "--json").json
    assert payload["file"]["sha256"] == checkpoint.file.sha256 and payload["integrity"] == "sha256"


def test_an_unknown_name_is_reported_with_the_closest_ones(run):
    result = run("info", "RepVGG_A4")
    assert (result.code, result.out) == (3, "")
    assert "error: unknown model 'RepVGG_A4'\nhint:  did you mean RepVGG_A" in result.err
    error = run("info", "RepVGG_A4", "--json")
    assert (error.code, error.err) == (3, "")
    assert error.json["error"]["type"] == "UnknownModelError" and "RepVGG_A0" in error.json["error"]["suggestions"]


def test_json_is_one_document_with_a_newline(run):
    text = run("info", "n0", "--json").out
    assert text.endswith("}\n") and json.loads(text)
