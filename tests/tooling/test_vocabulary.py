"""The words of the field, in one spelling: code, messages and docs do not drift back to a private language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".py", ".md", ".yaml", ".toml")
FOLDERS = ("repvgg_zoo", "tests", "tools", "benchmarks", "docs", "examples", "hub")

# A pattern, and what to write instead.
BANNED: Dict[str, str] = {
    r"licence|colour|\bcentre|behaviour|neighbour|\bgrey\b": "American spelling: license, color, center, behavior",
    r"(normal|initial|serial|optim|organ|quant|recogn|re-?parameter)is(e|ed|es|ing|ation)\b": "American spelling: -ize",
    r"(?<!there )\b(is|are|was|were) no (?!longer\b|more\b|less\b|other\b)": '"is not a valid X", "does not exist"',
    r"\bpictures?\b": "image (Pillow, torchvision, timm); a drawing of results is a figure",
    r"\bl(ies|ie|ay) (in|inside|at|on|beside|where|between)\b": "is in, is at",
    r"\b(not|are|is) at hand\b": '"is not in the cache", "is not installed"',
    r"\b(anew|afresh)\b": "again",
    r"\bthe house\b": "architecture",
    r"\bcontenders?\b|\bcontestants?\b": "runtime, runner",
    r"\bfacts\b": "metadata, payload, config: say what it is",
    r"\bspoilt\b": "invalidated",
    r"\b(found|made|kept|given|wanted|shown|told|asked)( =|: [A-Z]\w+(\[.*\])? =)": "name the thing: matches, result",
    r"\bin_turns\b": "time_interleaved, run_interleaved",
    r"\bset-up\b": "setup",
    r"\bproved\b": "verified",
    r"\bheals?\b|\bhealing\b": "retryable",
    r"\bsmuggled?\b": "say what was inserted",
    r"\bplug-ins?\b": "plugin",
    r"\bper cent\b": "percent",
    # MegEngine's own words in Chinese
    r"(部署|训练|两种)结构": "形式 is a form; 结构重参数化 is re-parameterization",
    r"取得": "加载 is to load",
}


def texts() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and "_build" not in path.parts and path != Path(__file__):
                yield path
    yield from (path for path in sorted(ROOT.iterdir()) if path.is_file() and path.suffix in SUFFIXES)
    yield ROOT / "dev"


@pytest.fixture(scope="module")
def lines() -> List[str]:
    """Every line of the repository's text, as path:number: line."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


@pytest.mark.parametrize("pattern", BANNED)
def test_a_banned_word_does_not_occur(pattern: str, lines: List[str]) -> None:
    matches = [line for line in lines if re.search(pattern, line.partition(": ")[2], re.IGNORECASE)]
    assert not matches, f"write instead: {BANNED[pattern]}\n" + "\n".join(matches)


@pytest.mark.parametrize("pattern", [pattern for pattern in BANNED if not pattern.isascii()])
def test_a_banned_word_does_not_occur_in_the_translation(pattern: str) -> None:
    matches = {
        str(path): re.findall(f".*(?:{pattern}).*", path.read_text(encoding="utf-8").replace('"\n"', ""))
        for path in (ROOT / "docs" / "locale").rglob("*.po")
    }
    assert matches and not any(matches.values()), f"write instead: {BANNED[pattern]}"
