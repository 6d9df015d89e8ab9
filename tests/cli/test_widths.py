"""Wide terminals are used, narrow ones break lines between words, and what is piped does not depend on either.

The kind: output on a terminal of another width than ours.
"""

from __future__ import annotations

import re

import pytest

from repvgg_zoo.cli.console import columns, table, wrap

from .terminal import Terminal

HEADS = ["name", "top-1", "license"]
ROWS = [["RepVGG_A0.timm", "72.43", "MIT"], ["RepVGG_B1.openmmlab", "78.37", "Apache-2.0 (repository), MIT (weights)"]]


def on_terminal(width: int, *argv: str) -> str:
    """Return what a command prints on a terminal of this width, without styles."""
    terminal = Terminal(*argv, columns=width)
    terminal.finish()
    return re.sub("\033\\[[0-9;]*m", "", terminal.screen)


@pytest.mark.parametrize(
    ("argv", "width"),
    [
        (["list", "--checkpoints"], 62),
        (["list", "A*"], 30),
        (["list", "--help"], 50),
        (["--help"], 50),
        (["info", "RepVGG_A1"], 50),
        (["info", "RepVGG_Z1"], 30),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_narrow_terminal_gets_whole_words(run, argv, width):
    screen = on_terminal(width, *argv)
    piped = run(*argv)
    # Lines of code are for copying, and no line is shorter than its longest word.
    prose, _, code = screen.partition("Example:")
    for line in prose.splitlines():
        assert columns(line) <= width or len(line.split()) <= 2, line
    assert set((piped.out + piped.err).split()) - set(screen.split()) <= {"name"}, "no word is lost or cut"
    assert code in piped.out


def test_a_wide_terminal_gets_wide_paragraphs_and_tables():
    screen = on_terminal(150, "list", "--checkpoints", "B1")
    assert "RepVGG_B1.openmmlab" in screen and "Apache-2.0 (repository), MIT (the source weights)\n" in screen
    assert 100 < max(map(len, screen.splitlines())) <= 150
    assert 100 < max(map(len, on_terminal(150, "info", "RepVGG_A1").partition("Example:")[0].splitlines())) <= 150


def test_what_is_piped_does_not_depend_on_a_width(run, monkeypatch):
    lines = ("list --checkpoints", "info RepVGG_A1", "list --help", "--help")
    before = [run(*line.split()).out for line in lines]
    monkeypatch.setenv("COLUMNS", "30")
    assert [run(*line.split()).out for line in lines] == before


def test_a_table_that_is_too_wide_continues_its_text_below_itself():
    assert table(HEADS, ROWS, right=["top-1"], width=50) == [
        "name                 top-1  license",
        "RepVGG_A0.timm       72.43  MIT",
        "RepVGG_B1.openmmlab  78.37  Apache-2.0",
        "                            (repository), MIT",
        "                            (weights)",
    ]


def test_a_table_whose_words_do_not_fit_is_a_paragraph_for_each_row():
    assert table(HEADS, ROWS, right=["top-1"], width=30) == [
        "RepVGG_A0.timm",
        "  top-1 72.43  license MIT",
        "RepVGG_B1.openmmlab",
        "  top-1 78.37",
        "  license Apache-2.0",
        "  (repository), MIT (weights)",
    ]


@pytest.mark.parametrize("width", range(1, 60))
def test_a_table_of_any_width_has_all_words(width):
    text = " ".join(table(HEADS, ROWS, right=["top-1"], width=width))
    assert {word for row in ROWS for cell in row for word in cell.split()} <= set(text.split())


@pytest.mark.parametrize(
    ("line", "width", "expected"),
    [
        ("a bb ccc", None, ["a bb ccc"]),
        ("a bb ccc", 4, ["a bb", "ccc"]),
        ("  license  MIT and much more", 23, ["  license  MIT and much", "           more"]),
        ("  known as  a b", 13, ["  known as  a", "b"]),
        ("averylongword b", 5, ["averylongword", "b"]),
        ("旷视 旷视", 5, ["旷视", "旷视"]),
        ("", 5, [""]),
        ("hint:  aa bb ccc", 14, ["hint:  aa bb", "       ccc"]),
    ],
)
def test_lines_are_broken_between_words(line, width, expected):
    assert wrap(line, width) == expected


def test_letters_of_two_columns_are_aligned():
    assert table(["a", "b"], [["旷视", "1"], ["xy", "2"]]) == ["a     b", "旷视  1", "xy    2"]
