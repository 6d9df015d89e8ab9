"""The messages of the docs, one catalog for each page, and their translation into Chinese.

``./dev messages`` updates docs/locale after a page has changed: new messages come in without a translation, or with the
one that they have on another page; those that no page has any more go. The rest is left as it is.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Dict, List, Mapping

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOCALE = DOCS / "locale" / "zh_CN" / "LC_MESSAGES"
THEME = "sphinx"  # the catalog of the theme's words, which Sphinx reads too

# No dates and no names, which would change with every update.
HEADER = r"""msgid ""
msgstr ""
"Project-Id-Version: repvgg_zoo\n"
"Language: zh_CN\n"
"MIME-Version: 1.0\n"
"Content-Type: text/plain; charset=utf-8\n"
"Content-Transfer-Encoding: 8bit\n"
"Plural-Forms: nplurals=1; plural=0;\n"

"""


def main() -> int:
    before = read_translations(LOCALE)
    with tempfile.TemporaryDirectory() as folder:
        after = renewed(read_messages(Path(folder)), before)
    write_translations(after, before, LOCALE)
    for page, messages in after.items():
        missing = sum(has_prose(message) and not translation for message, translation in messages.items())
        if missing:
            print(f"{LOCALE.relative_to(DOCS.parent)}/{page}.po: {missing} of {len(messages)} to be translated")
    return 0


Translations = Dict[str, Dict[str, str]]  # of each page, from a message to its translation, or to ""


def read_messages(folder: Path, docs: Path = DOCS) -> Dict[str, List[str]]:
    """Return the messages of each page as it is now; Sphinx writes them into ``folder``."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "gettext", str(docs), str(folder)]
    subprocess.run(command, cwd=str(docs.parent), check=True)
    return {page: list(messages) for page, messages in read_catalogs(folder, "pot").items()}


def read_translations(folder: Path) -> Translations:
    """Return the translations of the pages; one that is marked as fuzzy counts as none."""
    catalogs = read_catalogs(folder, "po")
    catalogs.pop(THEME, None)
    return catalogs


def read_catalogs(folder: Path, suffix: str) -> Translations:
    catalogs = {}
    for path in sorted(folder.rglob(f"*.{suffix}")):
        with path.open("rb") as stream:
            catalog = read_po(stream, ignore_obsolete=True)
        catalogs[path.relative_to(folder).with_suffix("").as_posix()] = {
            str(message.id): "" if message.fuzzy else str(message.string) for message in catalog if message.id
        }
    return catalogs


def renewed(messages: Mapping[str, List[str]], before: Translations) -> Translations:
    """Return the messages of each page with their translations, of the same page or else of the first that has one."""
    anywhere: Dict[str, str] = {}
    for page in before.values():
        for message, translation in page.items():
            if translation and has_prose(message):  # a name stays as it is, but where a page explains it
                anywhere.setdefault(message, translation)
    return {
        page: {text: before.get(page, {}).get(text) or anywhere.get(text, "") for text in texts}
        for page, texts in messages.items()
    }


def write_translations(after: Translations, before: Translations, folder: Path) -> None:
    """Write a catalog for each page, and remove those of pages that are gone."""
    for page in set(before) - set(after):
        (folder / f"{page}.po").unlink()
    for page, messages in after.items():
        path = folder / f"{page}.po"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_po(messages))


def to_po(messages: Mapping[str, str]) -> bytes:
    catalog = Catalog(locale="zh_CN", charset="utf-8")
    for message, translation in messages.items():
        catalog.add(message, translation)
    stream = BytesIO()
    write_po(stream, catalog, width=76, omit_header=True)
    return HEADER.encode() + stream.getvalue()


# What a translation keeps: code, links' targets, roles of reStructuredText, and what stands for a value.
CODE = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
TARGET = re.compile(r"\]\(([^()\s]*)\)|(https?://[^\s()>`]+)")
VALUE = re.compile(r"%[sdr]")

# Words that are names in Chinese as well.
NAMES = {"Dask", "Exception", "Kubernetes", "Linux", "Lite", "Python", "Ray", "Runtime", "Slurm", "Windows"}
NAMES |= {"mmpretrain", "ncnn", "pip", "safetensors", "timm", "torch", "torchvision"}


def has_prose(message: str) -> bool:
    """Whether a message has English words, and not only names, code, figures with units, and links without a text."""
    text = TARGET.sub(" ", CODE.sub(" ", message))
    words = re.findall(r"[\w.+@/-]*[A-Za-z][\w.+@/-]*", VALUE.sub(" ", text))
    return any(re.fullmatch(r"[A-Z]?[a-z]{2,}(-[a-z]+)*[.]?", word) and word.rstrip(".") not in NAMES for word in words)


def markup(text: str) -> Counter[str]:
    """Return the code, the targets of links and the places of values in a text, each with how often it is there."""
    code = [" ".join(part.strip("`").split()) for part in CODE.findall(text)]
    rest = CODE.sub(" ", text)
    targets = [inner or outer for inner, outer in TARGET.findall(rest)]
    return Counter([*code, *targets, *VALUE.findall(rest)])


if __name__ == "__main__":
    sys.exit(main())
