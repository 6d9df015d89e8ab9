"""The pickle machine: one small method for each opcode of protocols 0 to 5, working on plain values only.

torch does the same for ``torch.load(weights_only=True)`` (``torch/_weights_only_unpickler.py``): an interpreter in pure
Python with an allow-list of globals. The opcodes are described in CPython's pickletools. Those that checkpoints have no
use for (the copyreg extension registry, out-of-band buffers, Python 2's quoted strings) are refused. Whatever comes of
a global that is not allowed, such as a training script's options, is a Blocked, which is never used for anything.

Nothing may cost more than the bytes it was read from, times a small factor: to use a memoized value again costs a file
two bytes. So builders bound their arguments' sizes, and no message shows a value of unknown size.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Callable, Dict, List, Mapping, Optional, Pattern, Union

from .file_buffer import METADATA_KEY, Buffer, MalformedFile, UnsupportedFile
from .pickle_values import Blocked, Builder, Global, Placeholder

# A checkpoint of the largest network with its optimizer's state has 100,000, some thirty for each tensor; an opcode of
# one byte can make an object of 200 bytes.
MAX_OPCODES = 250_000
MAX_DIGITS = 4300  # of a decimal number; parsing one takes quadratic time
MAX_BLOCKED = 100  # names in an error
MAX_ARGUMENTS = 16
MIN_VIEW_BYTES = 64  # strings of at least this many bytes stay views of the buffer
MAX_NAME_CHARS = 200  # of a global's module or name; a memoized text can be used as both, again and again
MAX_KEY_CHARS = 1000  # of a dict's key; the longest one of any publisher has 40
# Text beyond latin-1 in all of a pickle, in bytes: one such character makes Python store four bytes for every one.
MAX_WIDE_TEXT_BYTES = 1 << 20
# Entries of a dict with integers as keys, of which an optimizer's state has one for each parameter: their hashes can be
# chosen so that each insertion tries all places before it.
MAX_INTEGER_KEYS = 4096

_WIDE_UTF8 = re.compile(rb"[\xc4-\xff]")  # the first byte of a character beyond U+00FF
_WIDE_ESCAPE = re.compile(rb"\\u(?!00)|\\U(?!000000)")
_UNSET = object()


class Machine:
    """Run the opcodes of one pickle in ``data`` from ``position`` on.

    ``allowed_globals`` maps "module.name" to what is called in its place; all other globals become Blocked.
    """

    def __init__(
        self,
        data: Buffer,
        position: int,
        allowed_globals: Mapping[str, Builder],
        persistent_load: Optional[Callable[[Any], Any]],
    ) -> None:
        self.data = data
        self.view = memoryview(data)
        self.position = position
        self.allowed_globals = allowed_globals
        self.persistent_load = persistent_load
        self.stack: List[Any] = []
        self.below: List[List[Any]] = []  # the stacks under each open mark
        self.memo: List[Any] = []  # a dict would be as slow as an attacker likes: it chooses the indices
        self.wide_text = 0
        self.blocked: Dict[str, Blocked] = {}

    def run(self) -> Any:
        """Return the pickle's value; ``position`` then is its end."""
        data, size = self.data, len(self.data)
        for _ in range(MAX_OPCODES):
            if self.position >= size:
                raise MalformedFile("the pickle is cut off")
            code = data[self.position]
            self.position += 1
            if code == STOP:
                return self.stack.pop()
            operation = OPERATIONS.get(code)
            if operation is None:
                raise MalformedFile(
                    f"the pickle has opcode {code:#04x} at byte {self.position - 1}, which is not supported"
                )
            operation(self)
        raise UnsupportedFile(f"the pickle has more than {MAX_OPCODES} opcodes")

    # Reading ---------------------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        return bytes(self.data[self._advance(size) : self.position])

    def payload(self, size: int) -> Union[bytes, memoryview]:
        start = self._advance(size)
        view = self.view[start : self.position]
        return bytes(view) if size < MIN_VIEW_BYTES else view

    def _advance(self, size: int) -> int:
        start = self.position
        if size > len(self.view) - start:
            raise MalformedFile(f"the pickle is cut off: it declares {size} bytes at byte {start}")
        self.position = start + size
        return start

    def byte(self) -> int:
        value = self.data[self.position]
        self.position += 1
        return value

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        start = self.position
        end = self.data.find(b"\n", start)
        if end < 0:
            raise MalformedFile(f"the pickle is cut off: the line at byte {start} does not end")
        self.position = end + 1
        return bytes(self.data[start:end])

    # Building --------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def open_mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> List[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def memoize(self, index: int) -> None:
        # Indices count the values before, each of which takes a byte at least.
        if not 0 <= index < min(MAX_OPCODES, self.position):
            raise MalformedFile("the pickle is damaged: it memoizes more values than it has")
        if index >= len(self.memo):
            self.memo.extend([_UNSET] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def memo_get(self, index: int) -> None:
        value = self.memo[index] if 0 <= index < len(self.memo) else _UNSET
        if value is _UNSET:
            raise LookupError("nothing is memoized there")
        self.stack.append(value)

    def find_global(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise MalformedFile("a global's name is not text")
        full = f"{module[:MAX_NAME_CHARS]}.{name[:MAX_NAME_CHARS]}"
        if full in self.allowed_globals and len(full) == len(module) + 1 + len(name):
            return Global(full, self.allowed_globals[full])
        if len(self.blocked) >= MAX_BLOCKED:
            raise UnsupportedFile(f"the pickle names more than {MAX_BLOCKED} globals that are not read")
        return self.blocked.setdefault(full[:MAX_NAME_CHARS], Blocked(full[:MAX_NAME_CHARS]))

    def call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Blocked):
            return function
        if not isinstance(function, Global):
            raise MalformedFile(f"a call of a {type(function).__name__}")
        if not isinstance(arguments, (tuple, list)) or len(arguments) > MAX_ARGUMENTS:
            raise MalformedFile(f"a call of {function.name} with too many arguments, or none at all")
        blocked = next((argument for argument in arguments if isinstance(argument, Blocked)), None)
        return function.build(*arguments) if blocked is None else blocked

    def reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack.append(self.call(self.stack.pop(), arguments))

    def set_state(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.set_state(state)
        elif type(target) is not dict:
            raise MalformedFile(f"a state for a {type(target).__name__}")
        # Attributes of an OrderedDict: torch's _metadata, which is of no use here, and ours.
        elif type(state) is dict and isinstance(state.get(METADATA_KEY), str):
            target[METADATA_KEY] = state[METADATA_KEY]

    def append(self, items: List[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Blocked):
            raise MalformedFile(f"items for a {type(target).__name__}")

    def set_items(self, items: List[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            target.update(pairs(items[0::2], items[1::2], len(target)))
        elif not isinstance(target, Blocked):
            raise MalformedFile(f"items for a {type(target).__name__}")

    def resolve_persistent(self, key: Any) -> None:
        if self.persistent_load is None:
            raise UnsupportedFile("the pickle has a persistent id, which only torch's files have")
        parts = key if isinstance(key, tuple) else (key,)
        blocked = next((part for part in parts[:MAX_ARGUMENTS] if isinstance(part, Blocked)), None)
        self.stack.append(self.persistent_load(key) if blocked is None else blocked)


def pairs(keys: List[Any], values: List[Any], known: int = 0) -> Dict[Any, Any]:
    """Return a dict, of items for one that has ``known`` already.

    Keys are short texts or 64-bit integers: hashing others can be made slow, or overflow the C stack. Items with other
    keys, which no state dict has, are dropped.
    """
    if len(keys) != len(values):
        raise MalformedFile("a dict has a key without a value")
    entries = {}
    for key, value in zip(keys, values):
        if isinstance(key, str):
            if len(key) > MAX_KEY_CHARS:
                raise UnsupportedFile(f"a dict has a key of {len(key)} characters")
        elif isinstance(key, Blocked):
            key, value = f"({key.value.name})", key  # so that its name is found
        elif not (isinstance(key, int) and -(2**63) <= key < 2**63):
            continue
        elif known + len(keys) > MAX_INTEGER_KEYS:
            raise UnsupportedFile(f"a dict with more than {MAX_INTEGER_KEYS} entries has integers as keys")
        entries[key] = value
    return entries


def _decimal(line: bytes) -> Any:
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    digits = line.rstrip(b"L")
    if len(digits) > MAX_DIGITS:
        raise UnsupportedFile(f"a number has {len(digits)} digits")
    return int(digits)


def _float(line: bytes) -> float:
    if len(line) > MAX_DIGITS:
        raise UnsupportedFile(f"a number has {len(line)} digits")
    return float(line)


def _text(machine: Machine, size: int) -> None:
    encoded = machine.payload(size)
    _count_wide_text(machine, encoded, _WIDE_UTF8)
    machine.push(str(encoded, "utf-8", "surrogatepass"))


def _escaped_text(machine: Machine) -> None:
    line = machine.line()
    _count_wide_text(machine, line, _WIDE_ESCAPE)
    machine.push(str(line, "raw-unicode-escape"))


def _count_wide_text(machine: Machine, encoded: Union[bytes, memoryview], wide: Pattern[bytes]) -> None:
    if wide.search(encoded):
        machine.wide_text += len(encoded)
        if machine.wide_text > MAX_WIDE_TEXT_BYTES:
            raise UnsupportedFile(f"the pickle has more than {MAX_WIDE_TEXT_BYTES >> 20} MB of text beyond latin-1")


def _python2_text(machine: Machine, size: int) -> None:
    machine.push(str(machine.payload(size), "latin-1"))  # it may be bytes: latin-1 gives them back unchanged


def _tuple(machine: Machine, size: int) -> None:
    items = machine.stack[-size:]
    if len(items) < size:
        raise MalformedFile("a tuple lacks items")
    del machine.stack[-size:]
    machine.push(tuple(items))


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(machine.find_global(str(module, "utf-8"), str(name, "utf-8")))


def _stack_global(machine: Machine) -> None:
    name = machine.stack.pop()
    machine.push(machine.find_global(machine.stack.pop(), name))


def _instance(machine: Machine) -> None:
    _global(machine)
    function = machine.stack.pop()
    machine.push(machine.call(function, machine.since_mark()))


def _object(machine: Machine) -> None:
    items = machine.since_mark()
    machine.push(machine.call(items[0], items[1:]))


def _new_with_keywords(machine: Machine) -> None:
    if machine.stack.pop() and not isinstance(machine.stack[-2], Blocked):
        raise MalformedFile("a call with keyword arguments")
    machine.reduce()


def _set_item(machine: Machine) -> None:
    items = machine.stack[-2:]
    del machine.stack[-2:]
    machine.set_items(items)


def _dict(machine: Machine) -> None:
    items = machine.since_mark()
    machine.push(pairs(items[0::2], items[1::2]))


def _pop_mark(machine: Machine) -> None:
    machine.since_mark()


def _set(machine: Machine) -> None:
    machine.push(machine.find_global("builtins", "set"))


def _frozen_set(machine: Machine) -> None:
    machine.since_mark()
    machine.push(machine.find_global("builtins", "frozenset"))


def _frame(machine: Machine) -> None:
    machine.take(8)  # a hint for readers of streams; the opcodes inside are bounded one by one


def _protocol(machine: Machine) -> None:
    version = machine.number(1)
    if version > 5:
        raise MalformedFile(f"the pickle has protocol {version}; 0 to 5 are known")


STOP = 0x2E
OPERATIONS: Dict[int, Callable[[Machine], None]] = {
    # constants
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): lambda m: m.push(_decimal(m.line())),
    ord("L"): lambda m: m.push(_decimal(m.line())),
    ord("J"): lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    ord("K"): lambda m: m.push(m.byte()),
    ord("M"): lambda m: m.push(m.number(2)),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    0x8B: lambda m: m.push(int.from_bytes(m.take(m.number(4)), "little", signed=True)),
    ord("F"): lambda m: m.push(_float(m.line())),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    # text and bytes
    ord("T"): lambda m: _python2_text(m, m.number(4)),
    ord("U"): lambda m: _python2_text(m, m.number(1)),
    ord("V"): _escaped_text,
    ord("X"): lambda m: _text(m, m.number(4)),
    0x8C: lambda m: _text(m, m.number(1)),
    0x8D: lambda m: _text(m, m.number(8)),
    ord("B"): lambda m: m.push(m.payload(m.number(4))),
    ord("C"): lambda m: m.push(m.payload(m.number(1))),
    0x8E: lambda m: m.push(m.payload(m.number(8))),
    0x96: lambda m: m.push(m.payload(m.number(8))),
    # containers
    ord("("): Machine.open_mark,
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x85: lambda m: _tuple(m, 1),
    0x86: lambda m: _tuple(m, 2),
    0x87: lambda m: _tuple(m, 3),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.since_mark()),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("}"): lambda m: m.push({}),
    ord("d"): _dict,
    ord("s"): _set_item,
    ord("u"): lambda m: m.set_items(m.since_mark()),
    0x8F: _set,
    0x90: _pop_mark,  # its items
    0x91: _frozen_set,
    # the stack and the memo
    ord("0"): Machine.pop,
    ord("1"): _pop_mark,
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("p"): lambda m: m.memoize(_decimal(m.line())),
    ord("q"): lambda m: m.memoize(m.byte()),
    ord("r"): lambda m: m.memoize(m.number(4)),
    0x94: lambda m: m.memoize(len(m.memo)),
    ord("g"): lambda m: m.memo_get(_decimal(m.line())),
    ord("h"): lambda m: m.memo_get(m.byte()),
    ord("j"): lambda m: m.memo_get(m.number(4)),
    # names and calls
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): Machine.reduce,
    0x81: Machine.reduce,  # NEWOBJ: classes are allowed globals like functions
    0x92: _new_with_keywords,
    ord("i"): _instance,
    ord("o"): _object,
    ord("b"): Machine.set_state,
    ord("P"): lambda m: m.resolve_persistent(str(m.line(), "ascii")),
    ord("Q"): lambda m: m.resolve_persistent(m.stack.pop()),
    # framing
    0x80: _protocol,
    0x95: _frame,
}
