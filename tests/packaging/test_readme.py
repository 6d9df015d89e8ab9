"""README.md's lines do what they say, from a wheel in a new environment, on every Python; both languages say the same.

As written, but for two things that need the internet: RepVGG_A0 is the bundled RepVGG_N0, and the files that the lines
name are made first. Without MegEngine, lines that need it end in an error that says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from repvgg_zoo._requirements import has_megengine_wheels

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")}
TEXT = TEXTS["README.md"].replace("RepVGG_A0", "RepVGG_N0")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ONE_SCREEN = 81  # lines

# Makes the files that the lines name, runs every line, and prints what each one ended with.
PROGRAM = """
import contextlib, io, json, os, pathlib, shlex
import numpy as np
from PIL import Image
import repvgg_zoo
from repvgg_zoo.cli import main

os.mkdir("readme"); os.chdir("readme"); os.mkdir("photos")
random = np.random.RandomState(0)
for digit in "01":
    os.makedirs("val/" + digit)
    os.makedirs("train/" + digit)
for name in [
    "cat.jpg",
    "val/0/a.png",
    "val/1/b.png",
    *(f"photos/{index}.png" for index in range(16)),
    *(f"train/{index % 2}/{index}.png" for index in range(24)),
]:
    Image.fromarray(random.randint(0, 256, (8, 8)).astype(np.uint8)).save(name)
checkpoint = repvgg_zoo.load_checkpoint(repvgg_zoo.fetch("RepVGG_N0"))
for name in ("repvgg.pth", "mine.safetensors"):
    repvgg_zoo.save_checkpoint(name, checkpoint)
with open("acme.yaml", "w") as file, contextlib.redirect_stdout(file):
    main(["registry", "draft", "mine.safetensors", "--name", "acme/RepVGG_N0"])

def ended(call):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            result = call()
        except (Exception, SystemExit) as error:
            return type(error).__name__ + ": " + str(error)
    return out.getvalue() if result else "ok"

def run(command):
    arguments = shlex.split(command)
    if arguments[0] == "predict":
        arguments += ["--model", "RepVGG_N0"]  # the default is of ImageNet
    if arguments[0] == "finetune":
        arguments += ["--mode", "probe"]  # the head alone, in a second
    if arguments[0] == "export":
        arguments += ["--force"]  # the Python line wrote the file
    return main(arguments)

cases = json.loads(CASES)
results = {block: ended(lambda: exec(block, {})) for block in cases["blocks"]}
for code in cases["python"]:
    quick = code[:-1] + ', mode="probe")' if code.startswith("finetune") else code
    results[code] = ended(lambda: eval("repvgg_zoo." + quick) and None)
results.update({command: ended(lambda: run(command)) for command in cases["shell"]})
print(json.dumps(results))
"""


def rows() -> List[Tuple[str, str]]:
    """Return the Python and the shell column of the table of tasks."""
    table = TEXT[TEXT.index("## Tasks") :].partition("\n\n```")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if "](" in line]
    return [(python.partition("`")[2].partition("`")[0], shell.strip(" `|")) for _, python, shell in cells]


# What the doctor finds depends on the machine.
PYTHON, SHELL = ([cell for cell in column if cell and cell != "doctor"] for column in zip(*rows()))
NEEDS_MEGENGINE = [*(code for code in [*BLOCKS, *PYTHON] if "create(" in code), "compare RepVGG_N0"]


@pytest.fixture(scope="session")
def results(installed: Any) -> Dict[str, str]:
    cases = json.dumps({"blocks": BLOCKS, "python": PYTHON, "shell": SHELL})
    done = installed.run(PROGRAM.replace("CASES", repr(cases)), MGE_DEFAULT_DEVICE="cpux")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("code", [*BLOCKS, *PYTHON, *SHELL])
def test_a_line_of_the_readme_works(results: Dict[str, str], code: str) -> None:
    if code in NEEDS_MEGENGINE and not has_megengine_wheels():
        assert "needs MegEngine, which has no wheel" in results[code]
    else:
        assert results[code] == "ok"


def test_the_readme_begins_with_two_lines_of_python_and_how_to_install() -> None:
    for text in TEXTS.values():
        first, second = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[:2]
        assert (first[0], len(first[1].replace("\n\n", "\n").splitlines()), second[0]) == ("python", 2, "sh")
        assert second[1].startswith("pip install")


@pytest.mark.parametrize("name", TEXTS)
def test_the_readme_is_one_screen_of_what_matters(name: str) -> None:
    assert len(TEXTS[name].splitlines()) <= ONE_SCREEN


def test_both_languages_have_the_same_code_and_links() -> None:
    def without_words(text: str) -> List[str]:
        code = "".join(re.findall(r"^```\w+\n.*?^```$", text, re.MULTILINE | re.DOTALL))
        lines = [re.sub(r"\s*#.*", "", line) for line in code.splitlines()]
        cells = re.findall(r"`[^`]+`", text[text.index("| ---") if "| ---" in text else text.index("|---") :])
        cells = cells[: cells.index("`doctor`") + 1]
        links = sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - set(TEXTS))
        return [*lines, *cells, *links]

    english, chinese = map(without_words, TEXTS.values())
    assert chinese == english


@pytest.mark.parametrize("name", TEXTS)
def test_every_claim_has_a_link_to_its_record(name: str) -> None:
    claims = re.split(r"^- ", TEXTS[name], flags=re.MULTILINE)[1:]
    assert len(claims) == 6 and all("](" in claim for claim in claims)


def test_the_figures_are_those_of_their_records() -> None:
    records = {
        "1.7e-6": "tests/peers/test_networks.py",
        "7.2e-7": "docs/guides/images.md",
        "358": "docs/guides/quantization.md",
    }
    for figure, record in records.items():
        assert all(figure in text for text in TEXTS.values())
        assert figure in (ROOT / record).read_text(encoding="utf-8"), record
