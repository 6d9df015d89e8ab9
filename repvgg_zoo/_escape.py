"""Make foreign text harmless: what files, registries, bundles, servers and plugins say, before it is printed."""

from __future__ import annotations

# Blank letters of no width, which Unicode counts as printable.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def escape(text: str) -> str:
    r"""Return the text with every character that does not show as itself written as Python's escape of it.

    These are control characters, among them line breaks and ESC, marks of text direction, characters of no width,
    surrogates, and code points without a character. Letters of all scripts stay. Escaped text is not changed again.

    >>> from repvgg_zoo._escape import escape
    >>> print(escape("\x1b[2J 旷视 \u202egpj.exe"))
    \x1b[2J 旷视 \u202egpj.exe
    """
    if text.isprintable() and _INVISIBLE.isdisjoint(text):
        return text
    return "".join(character if _shows(character) else _escaped(character) for character in text)


def escape_message(text: str) -> str:
    """Return the text escaped, except for the line breaks of our own messages, which are followed by two spaces."""
    return "\n  ".join(map(escape, text.split("\n  ")))


def _shows(character: str) -> bool:
    import unicodedata  # here, as most text is printable

    if character in _INVISIBLE:
        return False
    return character.isprintable() or unicodedata.category(character) == "Zs"  # such as the wide space of Chinese


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
