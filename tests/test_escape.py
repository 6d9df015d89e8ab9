"""Foreign text is escaped in the one place that each way to a person passes: messages of errors, and the log.

The kind: a string from a file, a registry, a bundle, a server or a plugin that a terminal would obey (clear the screen,
set its title, color text, hide it) or that shows as another text than it is (direction, width, look-alikes of nothing).
"""

from __future__ import annotations

import pickle
import unicodedata
from typing import Dict

import pytest

from repvgg_zoo import errors
from repvgg_zoo._escape import escape, escape_message
from repvgg_zoo._log import get_logger

HOSTILE: Dict[str, str] = {
    "clears the screen": "\x1b[2J",
    "sets the title": "\x1b]0;owned\x07",
    "a link of a terminal": "\x1b]8;;http://evil\x1b\\",
    "a control sequence of one byte": "\x9b2J",
    "returns to the start of the line": "right\rwrong",
    "goes back": "wrong\b\b\b\b\bright",
    "a line break": "fine\nerror: forged",
    "a line break of Unicode": "fine\u2028forged",
    "next line": "fine\x85forged",
    "the end of a C string": "a\0b",
    "delete": "a\x7f",
    "writes from right to left": "\u202egpj.exe",
    "an isolate of direction": "\u2066x\u2069",
    "a mark of direction": "a\u200fb",
    "a space of no width": "RepVGG\u200b_A0",
    "a joiner of no width": "RepVGG\u2060_A0",
    "a byte order mark": "\ufeffa",
    "a soft hyphen": "a\u00adb",
    "a blank letter": "a\u3164b",
    "an invisible tag": "a\U000e0041b",
    "a surrogate": "caf\udce9",
    "a private character": "\ue000",
    "a code point without a character": "\uffff",
}
READABLE = [
    "RepVGG_A0",
    "旷视 Megvii",
    "模型\u3000库",
    "größer",
    "Ελληνικά",
    "עברית",
    "日本語",
    "≥ 5 %",
    "a\u00a0b",
    "",
    "C:\\n",
]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_character_that_does_not_show_as_itself_is_escaped(text: str) -> None:
    result = escape(text)
    categories = {unicodedata.category(character) for character in result}
    assert "\\" in result and result != text
    assert not categories & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} and "\u3164" not in result
    assert escape(result) == result, "what is escaped is not escaped again"
    assert result.isascii()


@pytest.mark.parametrize("text", READABLE)
def test_the_letters_of_all_scripts_stay_readable(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_error_escapes_its_message_and_hint_and_keeps_its_data(text: str) -> None:
    error = errors.RegistryError(f"no {text}", hint=f"not {text}", path=text, actual=text)
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert str(copy) == f"no {escape(text)}\n  hint: not {escape(text)}"
        assert copy.args == (f"no {escape(text)}",)
        assert copy.path == copy.actual == text


def test_the_lines_of_our_own_messages_stay() -> None:
    message = "all sources failed:\n  - one\n  - two"
    assert errors.DownloadError(message).message == escape_message(message) == message


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_line_of_the_log_is_escaped(text: str, caplog: pytest.LogCaptureFixture) -> None:
    get_logger("repvgg_zoo.test").warning("%s of %d%%", text, 5)
    get_logger("repvgg_zoo.test").warning(text.replace("%", "%%"))
    assert caplog.messages == [f"{escape(text)} of 5%", escape(text)]
