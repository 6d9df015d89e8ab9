"""YAML for registries: bytes to PyYAML's nodes, and nodes to values; every mistake is a DocumentError with its line.

Stricter than YAML: one UTF-8 document, bounded in size and depth, without anchors, merge keys or duplicate keys, and
with only one way to write a number or a boolean.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Tuple, Type

import yaml

from .._redact import mask_credentials

MAX_BYTES = 4 << 20
MAX_DEPTH = 12
MAX_NODES = 50_000  # the shipped registry has 2,000; PyYAML takes some 600 bytes and 10 us for each
MAX_TEXT_CHARS = 8192  # of a scalar: the longest of the shipped registry has 225, a signed URL 1,500
MAX_SHOWN_CHARS = 100  # of a scalar in a message
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Entries = Dict[str, Tuple[yaml.Node, yaml.Node]]
"""The entries of a mapping: key to (key node, value node)."""

STR, INT, FLOAT, BOOL, NULL, MAP, SEQ, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")
)
TAG_NAMES: Mapping[str, str] = {
    STR: "the string",
    INT: "the whole number",
    FLOAT: "the number",
    BOOL: "a boolean",
    NULL: "nothing",
    "tag:yaml.org,2002:timestamp": "a timestamp",
}
TYPE_NAMES: Mapping[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
# The event that starts a collection: its node, and the tag that it has by default.
COLLECTIONS: Mapping[Any, Tuple[Type[yaml.CollectionNode], str]] = {
    yaml.MappingStartEvent: (yaml.MappingNode, MAP),
    yaml.SequenceStartEvent: (yaml.SequenceNode, SEQ),
}
UNTAGGED = (None, "!")
INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


class DocumentError(Exception):
    """A document is not valid; ``line`` is 1-based. The parser, which knows the path, turns it into a RegistryError."""

    def __init__(self, message: str, line: int, expected: Any, actual: Any = None, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.expected = expected
        self.actual = actual
        self.hint = hint


def fail(node: Any, message: str, expected: Any, *, actual: Any = None, hint: Optional[str] = None) -> NoReturn:
    """Raise a DocumentError at the line of ``node``, a node or an event."""
    raise DocumentError(message, node.start_mark.line + 1, expected, actual, hint)


# From bytes to nodes -----------------------------------------------------------------------------------------


def compose(data: bytes) -> yaml.Node:
    """Return the root node of a document; raise DocumentError for anything but one plain YAML document."""
    if len(data) > MAX_BYTES:
        raise DocumentError("the file is too large for a registry", 1, f"at most {MAX_BYTES >> 20} MiB")
    if data.startswith(b"\xef\xbb\xbf"):
        raise DocumentError("the file starts with a byte order mark", 1, "UTF-8 without a BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"byte 0x{data[error.start]:02x} is not UTF-8", line, "UTF-8") from None
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        raise DocumentError(f"not valid YAML: {error.problem}", mark.line + 1 if mark else 1, "valid YAML") from None
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
        raise DocumentError(f"not valid YAML: {error}", line, "valid YAML") from None
    if root is None:
        raise DocumentError("the file is empty", 1, "a mapping with schema and variants")
    return root


def _compose(text: str) -> Optional[yaml.Node]:
    """Return the root node, or None if there is no document.

    Refuse anchors and aliases (and with them cycles and entity bombs), deep nesting, and a second document. PyYAML's
    own composer recurses in C, where deep nesting would end the process.
    """
    root: Optional[yaml.Node] = None
    collections: List[Tuple[yaml.Node, List[yaml.Node]]] = []  # the open ones, with their children so far
    documents, nodes = 0, 0
    loader = LOADER(text)
    resolve = functools.lru_cache(maxsize=None)(loader.resolve)  # most keys and many values occur again and again
    try:
        for item in iter(loader.get_event, None):
            event: Any = item  # the two loaders have marks of their own
            if isinstance(item, yaml.NodeEvent):
                nodes += 1
                _check_limits(event, len(collections), nodes)
                if isinstance(item, yaml.ScalarEvent):
                    tag = resolve(yaml.ScalarNode, event.value, event.implicit) if event.tag in UNTAGGED else event.tag
                    node: Any = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark, event.style)
                else:
                    kind, default = COLLECTIONS[type(item)]
                    node = kind(default if event.tag in UNTAGGED else event.tag, [], event.start_mark)
                if collections:
                    collections[-1][1].append(node)
                else:
                    root = node
                if isinstance(node, yaml.CollectionNode):
                    collections.append((node, node.value))
            elif isinstance(item, yaml.CollectionEndEvent):
                node, children = collections.pop()
                if isinstance(node, yaml.MappingNode):
                    node.value = list(zip(children[::2], children[1::2]))
            elif isinstance(item, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    fail(event, "a second document starts here", "one document")
    finally:
        loader.dispose()
    return root


def _check_limits(event: Any, depth: int, nodes: int) -> None:
    if event.anchor is not None:
        fail(event, "anchors and aliases are not allowed", "the values written out")
    if depth >= MAX_DEPTH:
        fail(event, "the nesting is too deep for a registry", f"at most {MAX_DEPTH} levels")
    if nodes > MAX_NODES:
        fail(event, "the file has too many values for a registry", f"at most {MAX_NODES}")
    text_chars = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
    if text_chars > MAX_TEXT_CHARS or len(event.tag or "") > MAX_TEXT_CHARS:
        fail(event, "a text is too long for a registry", f"at most {MAX_TEXT_CHARS} characters")


# From nodes to values ----------------------------------------------------------------------------------------


def mapping(node: yaml.Node) -> Entries:
    """Return the entries of a mapping node, in order."""
    if not is_mapping(node):
        fail(node, f"got {describe(node)}", "a mapping")
    entries: Entries = {}
    for key_node, value_node in node.value:
        if key_node.tag == MERGE:
            fail(key_node, "merge keys are not allowed", "the values written out")
        key = scalar(key_node, str)
        if key in entries:
            first = entries[key][0].start_mark.line + 1
            fail(key_node, f"duplicate key {shorten(key)}, first at line {first}", "each key once")
        entries[key] = (key_node, value_node)
    return entries


def sequence(node: yaml.Node, length: Optional[int] = None) -> List[yaml.Node]:
    """Return the items of a list node; there must be ``length`` of them, unless it is None."""
    if not is_sequence(node):
        fail(node, f"got {describe(node)}", "a list")
    items: List[yaml.Node] = node.value
    if length is not None and len(items) != length:
        fail(node, f"got {len(items)} items", f"{length} items")
    return items


def scalar(node: yaml.Node, kind: type) -> Any:
    """Return the value of a scalar node as ``kind``: str, bool, int or float."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in TAG_NAMES:
        fail(node, f"got {describe(node)}", TYPE_NAMES[kind])
    text = node.value
    if kind is str:
        if node.tag != STR:
            hint = f'write it in quotes: "{text}"' if len(text) <= MAX_SHOWN_CHARS else None
            fail(node, f"YAML reads {shorten(text)} as {describe(node)}", TYPE_NAMES[str], actual=text, hint=hint)
        if not text:
            fail(node, "the string is empty", TYPE_NAMES[str])
        return text
    if kind is bool and node.tag == BOOL and text in ("true", "false"):
        return text == "true"
    if kind is int and node.tag == INT and INTEGER.fullmatch(text):
        return int(text)
    if kind is float and _is_decimal(node) and math.isfinite(float(text)):
        return float(text)
    fail(node, f"got {describe(node)} {shorten(text)}", TYPE_NAMES[kind], actual=text)


def untyped(node: yaml.Node) -> Any:
    """Return a value without a declared type: a scalar as YAML reads it, or a tuple of such scalars."""
    if is_sequence(node):
        return tuple(scalar(item, _kind(item)) for item in node.value)
    return scalar(node, _kind(node))


def is_mapping(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and node.tag == MAP


def is_sequence(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode) and node.tag == SEQ


def describe(node: yaml.Node) -> str:
    """Return what a node is, for error messages: "a mapping", "the string", "nothing"..."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return TAG_NAMES.get(node.tag) or f"the tag {node.tag[:MAX_SHOWN_CHARS]}"


def shorten(value: Any) -> str:
    """Return a value for a message, without credentials, cut off after some hundred characters."""
    text = repr(mask_credentials(value))
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _kind(node: yaml.Node) -> type:
    if _is_decimal(node):
        return int if node.tag == INT else float
    return {BOOL: bool, INT: int, FLOAT: float}.get(node.tag, str)


def _is_decimal(node: yaml.Node) -> bool:
    # STR is among the tags because YAML 1.1 reads 1e-3, which has no point, as a string.
    plain = isinstance(node, yaml.ScalarNode) and not node.style and node.tag in (INT, FLOAT, STR)
    return plain and DECIMAL.fullmatch(node.value) is not None
