"""Reads pickles as data: opcodes build plain values, and only names from a format's table stand for anything at all.

``pickle.Unpickler`` with a guarded ``find_class`` runs no foreign code either, but a hostile file can still make it
allocate by a declared size, hash a tuple a million levels deep (which overflows the C stack) or multiply one string by
calling a harmless function often; and it copies every array out of the file. Here each of these has a limit, and large
payloads stay views of the mapped file. opcodes.py holds the machine.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, Dict, Mapping, Optional, Set, Tuple

from ...errors import UnsafePickleError
from .mmap_file import Buffer, Damaged
from .pickle_machine import Builder, Global, Machine, Placeholder

MAX_NODES = 1_000_000  # of the tree with shared parts counted at each use, as whoever walks it will meet them
MAX_DEPTH = 64


class Budget:
    """The bytes that builders may allocate: a pickle can call them often on one memoised payload."""

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Damaged("it would unpack to many times its size")


def load(
    data: Buffer, start: int, table: Mapping[str, Builder], persistent: Optional[Callable[[Any], Any]] = None
) -> Tuple[Any, int]:
    """One pickle of protocol 0 to 5 that begins at ``start``: its value, still with placeholders, and its end.

    ``table`` maps "module.name" to what is called in its place; ``persistent`` reads persistent ids. Raises Damaged,
    and UnsafePickleError (whose path the caller adds) with every name that is not in the table.
    """
    machine = Machine(data, start, table, persistent)
    problem: Optional[Damaged] = None
    value = None
    try:
        value = machine.run()
    except Damaged as error:
        problem = error
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError, struct.error, RecursionError) as error:
        # A builder was given something else than its writer gives, or an opcode found no operand.
        problem = Damaged(f"the pickle is damaged near byte {machine.position} ({type(error).__name__})")
        problem.__cause__ = error
    if machine.blocked:
        raise UnsafePickleError("The pickle names globals outside the allow-list.", blocked=list(machine.blocked))
    if problem is not None:
        raise problem
    return value, machine.position


def resolve(value: Any) -> Any:
    """The finished tree: placeholders become arrays and scalars; a cycle, depth or expansion beyond the limits raises.

    Shared parts stay shared, yet each use counts: ``[x, x]`` forty levels deep is small in memory and takes forever
    to walk.
    """
    done: Dict[int, Tuple[Any, int]] = {}
    try:
        result, _ = _resolve(value, done, set(), 0)
    except Damaged:
        raise
    except (ValueError, OverflowError, TypeError) as error:  # NumPy's, about shapes beyond what it can address
        raise Damaged(f"an array is damaged ({type(error).__name__})") from error
    return result


def _resolve(value: Any, done: Dict[int, Tuple[Any, int]], path: Set[int], depth: int) -> Tuple[Any, int]:
    if isinstance(value, Global):
        return value.name, 1
    if not isinstance(value, (dict, list, tuple, memoryview, Placeholder)):
        return value, 1
    key = id(value)
    if key in done:
        return done[key]
    if key in path:
        raise Damaged("an object contains itself")
    if depth > MAX_DEPTH:
        raise Damaged(f"objects are nested more than {MAX_DEPTH} levels deep")
    path.add(key)
    nodes = 1
    result: Any
    if isinstance(value, Placeholder):
        result = value.resolve()
    elif isinstance(value, memoryview):
        result = bytes(value)  # once, however often the pickle names it
    else:
        parts = []
        for part in value.values() if isinstance(value, dict) else value:
            finished, count = _resolve(part, done, path, depth + 1)
            parts.append(finished)
            nodes += count
            if nodes > MAX_NODES:
                raise Damaged(f"it would unpack to more than {MAX_NODES} objects")
        result = dict(zip(value, parts)) if isinstance(value, dict) else type(value)(parts)
    path.discard(key)
    done[key] = result, nodes
    return result, nodes
