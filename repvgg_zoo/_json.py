"""parse_json: JSON from a file that someone else made, in time and memory that its size bounds."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NoReturn, Tuple

# Objects and the commas between them: 64 bytes of memory each. A checkpoint with two thousand tensors has 25,000.
MAX_ITEMS = 200_000
MAX_DIGITS = 20  # of a whole number: those of 2**64. Python takes quadratic time, or refuses more than 4,300.


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON document in UTF-8.

    Raises ValueError for anything else, for a key that occurs twice, for NaN and infinity, for numbers beyond 64 bits,
    and for a document that is nested too deeply or has too many parts.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_ITEMS:
        raise ValueError(f"it has more than {MAX_ITEMS} parts")
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole_number, parse_constant=_refuse
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    items = dict(pairs)
    if len(items) != len(pairs):
        raise ValueError("a key occurs twice")
    for key in items:
        key.encode()  # raises UnicodeEncodeError for half of a surrogate pair
    return items


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
