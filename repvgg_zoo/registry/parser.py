"""The reader: a registry's YAML to frozen specs; every mistake is one RegistryError with file and line.

The grammar is that of the records in ``spec``: ``decode`` follows their annotations. What a type cannot say stands in
``rules``. Anchors are refused outright, which rules out cycles and entity bombs.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import typing
from pathlib import Path
from typing import Any, Container, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

import yaml

from ..errors import RegistryError
from .names import lookup_keys
from .record import is_record, replace
from .specs import CheckpointSpec, ModelSpec, Options, Registry
from .validation import Field, check_record, default_tag, fields_of

SCHEMA = 1
MAX_BYTES = 4 << 20
MAX_DEPTH = 12
INTEGRAL = re.compile(r"-?(0|[1-9][0-9]*)")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
# A checkpoint's place gives it these two; the file does not repeat them.
PLACED = ("variant", "tag")


class Node(NamedTuple):
    """A YAML node: a scalar's text, or what a list or a mapping (key, value, key, value...) holds."""

    kind: Any
    tag: str
    value: Any
    line: int
    plain: bool


SCALAR, LIST, MAPPING = yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent
Entries = Dict[str, Tuple[Node, Node]]


def load_registry(path: Union[str, Path]) -> Registry:
    """Reads a registry file; raises RegistryError for anything that keeps it from being one."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise RegistryError(f"cannot read the registry: {reason}", path=path) from error
    return parse_registry(data, path=path)


def registry_from_mapping(mapping: Mapping[str, Any]) -> Registry:
    """Reads a registry from plain dicts, lists and scalars; lines in errors are those of its YAML form."""
    try:
        text = yaml.dump(dict(mapping), Dumper=_WrittenOut, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise RegistryError(f"the mapping is not plain data: {error}", hint="use dicts, lists and scalars") from error
    return parse_registry(text.encode())


class _WrittenOut(yaml.SafeDumper):
    """Writes an object that stands at two places twice, and not as an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_registry(data: bytes, *, path: Optional[Path] = None) -> Registry:
    """Reads a registry from the bytes of a YAML file; ``path`` is for errors and for relative sources."""
    document = Document(path)
    root = document.mapping(document.compose(data))
    for key in root:
        if key not in ("schema", "publishers", "variants"):
            document.fail(root[key][0], f"unknown field {key!r}", "schema, publishers, variants")
    for key in ("schema", "variants"):
        if key not in root:
            raise RegistryError(f"the field {key!r} is missing", path=path, line=1, expected=key)
    version = document.decode(root["schema"][1], int)
    if version != SCHEMA:
        document.fail(root["schema"][1], f"schema {version} is not known", f"schema: {SCHEMA}")
    publishers = document.publishers(root.get("publishers"))
    models = [document.model(key, value, publishers) for key, value in document.mapping(root["variants"][1]).values()]
    document.check_name_conflicts(models)
    return Registry(models=tuple(model for _, model in models), path=None if path is None else str(path))


class Document:
    """One YAML file while it is read: where errors are, and which nodes were met."""

    def __init__(self, path: Optional[Path]) -> None:
        self.path = path
        self.folder = None if path is None else path.resolve().parent
        self._decoded: Dict[int, Tuple[Node, Any]] = {}

    def fail(self, node: Node, message: str, expected: Any, *, actual: Any = None, hint: Optional[str] = None) -> None:
        raise self.error(node.line, f"{message} (expected: {expected})", expected, actual=actual, hint=hint)

    def error(self, line: int, message: str, expected: Any, **data: Any) -> RegistryError:
        where = f"{self.path or 'registry'}:{line}: "
        return RegistryError(f"{where}{message}", path=self.path, line=line, expected=expected, **data)

    # From bytes to nodes --------------------------------------------------------------------------------------

    def compose(self, data: bytes) -> Node:
        if len(data) > MAX_BYTES:
            raise self.error(1, f"the file is larger than {MAX_BYTES >> 20} MiB", "a registry")
        if data.startswith(b"\xef\xbb\xbf"):
            raise self.error(1, "the file starts with a byte order mark", "UTF-8 without a BOM")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self.error(line, f"byte 0x{data[error.start]:02x} is not UTF-8", "UTF-8") from None
        try:
            root = self._nodes(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self.error(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem}", "YAML") from None
        except yaml.YAMLError as error:
            line = text.count("\n", 0, getattr(error, "position", 0) or 0) + 1
            raise self.error(line, f"not valid YAML: {error}", "YAML") from None
        if root is None:
            raise self.error(1, "the file is empty", "a mapping with schema and variants")
        return root

    def _nodes(self, text: str) -> Optional[Node]:
        """The node tree of one document.

        PyYAML's own composer recurses in C and dies of a file with enough brackets; here depth is bounded, and an
        anchor is refused before anything can refer to it.
        """
        parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        resolve = functools.lru_cache(maxsize=None)(parser.resolve)
        firsts = parser.yaml_implicit_resolvers  # the first characters of all plain scalars that are no string
        open_nodes: List[Node] = []
        root: Optional[Node] = None
        for event in iter(parser.get_event, None):
            kind = type(event)
            if kind is SCALAR or kind is LIST or kind is MAPPING or kind is yaml.AliasEvent:
                line = event.start_mark.line + 1
                if event.anchor is not None:
                    raise self.error(line, "anchors and aliases are not allowed", "the values written out")
                if len(open_nodes) >= MAX_DEPTH:
                    raise self.error(line, f"nested deeper than {MAX_DEPTH} levels", "a registry")
                tag = event.tag if event.tag != "!" else None
                if kind is SCALAR:
                    plain, value = not event.style, event.value
                    if tag is None:
                        looked_up = event.implicit[0] and value[:1] in firsts
                        tag = resolve(yaml.ScalarNode, value, event.implicit) if looked_up else STR
                    node = Node(kind, tag, value, line, plain)
                else:
                    node = Node(kind, tag or (SEQ if kind is LIST else MAP), [], line, False)
                if open_nodes:
                    open_nodes[-1].value.append(node)
                else:
                    root = node
                if kind is not SCALAR:
                    open_nodes.append(node)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                open_nodes.pop()
            elif kind is yaml.DocumentStartEvent and root is not None:
                raise self.error(event.start_mark.line + 1, "a second document starts here", "one document")
        return root

    # From nodes to values -------------------------------------------------------------------------------------

    def mapping(self, node: Node) -> Entries:
        if node.kind is not MAPPING or node.tag != MAP:
            self.fail(node, f"got {_kind(node)}", "a mapping")
        entries: Entries = {}
        for key_node, value_node in zip(node.value[::2], node.value[1::2]):
            if key_node.tag == MERGE:
                self.fail(key_node, "merge keys are not allowed", "the values written out")
            key = self._scalar(key_node, str)
            if key in entries:
                first = entries[key][0].line
                self.fail(key_node, f"duplicate key {key!r}, first at line {first}", "each key once")
            entries[key] = (key_node, value_node)
        return entries

    def decode(self, node: Node, kind: Any) -> Any:
        """The value of ``node`` as ``kind``: a scalar type, a tuple type, or a record.

        Values are frozen, and a publisher's nodes stand in each of its checkpoints, so each is decoded once. The node
        is kept beside its value, or another could come to have its id.
        """
        if kind in NAMES:  # sooner decoded than looked up
            return self._scalar(node, kind)
        if id(node) not in self._decoded:
            self._decoded[id(node)] = (node, self._decode(node, kind))
        return self._decoded[id(node)][1]

    def _decode(self, node: Node, kind: Any) -> Any:
        if kind == Options:
            return tuple((name, self._option(value)) for name, (_, value) in self.mapping(node).items())
        if typing.get_origin(kind) is tuple:
            return self._tuple(node, typing.get_args(kind))
        return self.record(node, kind, self.mapping(node))

    def _tuple(self, node: Node, arguments: Tuple[Any, ...]) -> Tuple[Any, ...]:
        if node.kind is not LIST or node.tag != SEQ:
            self.fail(node, f"got {_kind(node)}", "a list")
        if arguments[-1] is not Ellipsis and len(node.value) != len(arguments):
            self.fail(node, f"got {len(node.value)} items", f"{len(arguments)} items")
        return tuple(self.decode(item, arguments[0]) for item in node.value)

    def _option(self, node: Node) -> Any:
        """A value whose type nobody states: what YAML reads it as, or a list of such values."""
        if node.kind is LIST and node.tag == SEQ:
            return tuple(self._scalar(item, self._kind_of(item)) for item in node.value)
        return self._scalar(node, self._kind_of(node))

    def _kind_of(self, node: Node) -> type:
        # YAML 1.1 takes 1e-3, which has no point, for a string.
        if node.kind is SCALAR and node.plain and DECIMAL.fullmatch(node.value):
            return int if node.tag == INT else float
        return {BOOL: bool, INT: int, FLOAT: float}.get(node.tag, str)

    def _scalar(self, node: Node, kind: type) -> Any:
        value, tag = node.value, node.tag
        if node.kind is not SCALAR or tag not in _KINDS:
            self.fail(node, f"got {_kind(node)}", NAMES[kind])
        if kind is str:
            if tag != STR:
                quoted = f'write it in quotes: "{value}"'
                self.fail(node, f"YAML reads {value!r} as {_kind(node)}", "a string", actual=value, hint=quoted)
            if not value:
                self.fail(node, "the string is empty", "a string")
            return value
        if kind is bool:
            if tag == BOOL and value in ("true", "false"):
                return value == "true"
        elif kind is int:
            if tag == INT and INTEGRAL.fullmatch(value):
                return int(value)
        elif tag in (INT, FLOAT, STR) and node.plain and DECIMAL.fullmatch(value):
            return float(value)
        self.fail(node, f"got {_kind(node)} {value!r}", NAMES[kind], actual=value)

    def record(self, node: Node, kind: Any, entries: Entries, **given: Any) -> Any:
        """A record of class ``kind`` from a mapping's entries; ``given`` fields come from elsewhere."""
        fields = fields_of(kind)
        self.check_fields(entries, fields, without=given)
        values = dict(given)
        for name, (_, value) in entries.items():
            values[name] = self._field(value, name, fields[name])
        for name, field in fields.items():
            if field.required and name not in values:
                self.fail(node, f"the field {name!r} is missing", name)
        record = kind(**values)
        problem = check_record(record)
        if problem is not None:
            name, message, expected = problem
            self.fail(entries[name][1] if name in entries else node, message, expected)
        return record

    def check_fields(self, entries: Entries, fields: Iterable[str], *, without: Container[str] = ()) -> None:
        for key, (key_node, _) in entries.items():
            if key not in fields or key in without:
                import difflib  # here and not above, because a registry without mistakes needs none of it

                known = [name for name in fields if name not in without]
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else None
                self.fail(key_node, f"unknown field {key!r}", ", ".join(known), actual=key, hint=hint)

    def _field(self, node: Node, name: str, field: Field) -> Any:
        if field.optional and node.tag == NULL:
            return None
        value = self.decode(node, field.kind)
        if field.rule is not None and not field.rule[0](value):
            self.fail(node, f"{name} is {value!r}", field.rule[1], actual=value)
        return self._absolute(node, value) if name == "sources" else value

    def _absolute(self, node: Node, sources: Tuple[str, ...]) -> Tuple[str, ...]:
        """Sources without a scheme are files beside the registry, for which the record holds the whole path."""
        found: List[str] = []
        for source, item in zip(sources, node.value):
            if ":" not in source:
                if self.folder is None:
                    self.fail(item, f"source {source!r} is relative, but this registry is no file", "a URL")
                source = str(self.folder / source)  # type: ignore[operator]
            found.append(source)
        return tuple(found)

    # The two levels that are keyed by name --------------------------------------------------------------------

    def publishers(self, entry: Optional[Tuple[Node, Node]]) -> Dict[str, Entries]:
        """The defaults of each tag, checked here so that a mistake shows even where no checkpoint uses it."""
        found: Dict[str, Entries] = {}
        fields = fields_of(CheckpointSpec)
        for tag, (_, node) in (self.mapping(entry[1]) if entry else {}).items():
            found[tag] = self.mapping(node)
            self.check_fields(found[tag], fields, without=PLACED)
            for name, (_, value) in found[tag].items():
                if is_record(fields[name].kind):
                    self.check_fields(self.mapping(value), fields_of(fields[name].kind))
                else:
                    self._field(value, name, fields[name])
        return found

    def merged(self, defaults: Entries, own: Entries) -> Entries:
        """A publisher's defaults under a checkpoint's own entries: mappings key by key, ``provenance`` added up."""
        entries = {**defaults, **own}
        for key in set(defaults) & set(own):
            default, value = defaults[key][1], own[key][1]
            if default.kind is MAPPING and value.kind is MAPPING:
                pairs = {**self.mapping(default), **self.mapping(value)}.values()
                entries[key] = (own[key][0], value._replace(value=list(itertools.chain(*pairs))))
            elif key == "provenance" and value.kind is LIST:
                entries[key] = (own[key][0], value._replace(value=[*default.value, *value.value]))
        return entries

    def model(self, key: Node, node: Node, publishers: Mapping[str, Entries]) -> Tuple[Node, ModelSpec]:
        name = key.value
        self.check_key(key, ModelSpec, "name", "a variant's name")
        entries = self.mapping(node)
        checkpoints: List[CheckpointSpec] = []
        placed = entries.pop("checkpoints", None)
        for tag, (tag_node, value) in (self.mapping(placed[1]) if placed else {}).items():
            self.check_key(tag_node, CheckpointSpec, "tag", "a tag")
            merged = self.merged(publishers.get(tag, {}), self.mapping(value))
            checkpoints.append(_filled_in(self.record(value, CheckpointSpec, merged, variant=name, tag=tag)))
        model = self.record(node, ModelSpec, entries, name=name, checkpoints=tuple(checkpoints))
        if model.default is None and checkpoints:
            model = replace(model, default=default_tag(model.checkpoints))
        return key, model

    def check_key(self, key: Node, kind: Any, name: str, noun: str) -> None:
        """A name that is a key in the file follows the rule of the field that it becomes."""
        rule = fields_of(kind)[name].rule
        if rule is not None and not rule[0](key.value):
            self.fail(key, f"{key.value!r} cannot be {noun}", rule[1])

    def check_name_conflicts(self, models: List[Tuple[Node, ModelSpec]]) -> None:
        """No two variants or checkpoints may answer to one name."""
        owners: Dict[str, str] = {}
        for node, model in models:
            for claim, owner in lookup_keys(model):
                if owners.setdefault(claim, owner) != owner:
                    self.fail(
                        node, f"the name {claim!r} belongs to {owners[claim]} and to {owner}", "names of one owner"
                    )


def _filled_in(spec: CheckpointSpec) -> CheckpointSpec:
    """``{variant}``, ``{name}`` and ``{stem}`` (the file's name without its extension) filled in."""

    def fill(text: str) -> str:
        if "{" not in text:
            return text
        return text.replace("{variant}", spec.variant).replace("{name}", name).replace("{stem}", stem)

    name = spec.file.name
    stem = os.path.splitext(name)[0]  # noqa: PTH122 - a Path for each of a hundred files takes longer

    file = replace(spec.file, sources=tuple(map(fill, spec.file.sources)))
    return replace(spec, file=file, aliases=tuple(map(fill, spec.aliases)))


NAMES: Mapping[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
STR, INT, FLOAT, BOOL, NULL, MAP, SEQ, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")
)
_KINDS = {
    STR: "the string",
    INT: "the whole number",
    FLOAT: "the number",
    BOOL: "a boolean",
    NULL: "nothing",
    "tag:yaml.org,2002:timestamp": "a timestamp",
}


def _kind(node: Node) -> str:
    if node.kind is MAPPING:
        return "a mapping"
    if node.kind is LIST:
        return "a list"
    return _KINDS.get(node.tag, f"the tag {node.tag}")
