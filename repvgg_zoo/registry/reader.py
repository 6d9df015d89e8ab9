"""The reader: a registry's YAML to frozen specs; every mistake is one RegistryError with file and line.

The grammar is that of the records in ``spec``: ``decode`` follows their annotations. What a type cannot say stands in
``rules``. Anchors are refused outright, which rules out cycles and entity bombs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import yaml

from ..errors import RegistryError
from .names import claims
from .rules import Field, check_record, default_tag, fields_of
from .spec import CheckpointSpec, ModelSpec, Options, Registry

SCHEMA = 1
MAX_BYTES = 4 << 20
MAX_DEPTH = 12
# The event that starts it, which ``Document._nodes`` gives a tag and a value.
Node = Any
Entries = Dict[str, Tuple[Node, Node]]
INTEGRAL = re.compile(r"-?(0|[1-9][0-9]*)")
DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
# A checkpoint's place gives it these two; the file does not repeat them.
PLACED = ("variant", "tag")


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
    document.check_claims(models)
    return Registry(tuple(model for _, model in models), None if path is None else str(path))


class Document:
    """One YAML file while it is read: where errors are, and which nodes were met."""

    def __init__(self, path: Optional[Path]) -> None:
        self.path = path
        self.folder = None if path is None else path.resolve().parent
        self._decoded: Dict[Tuple[int, Any], Tuple[Node, Any]] = {}

    def fail(self, node: Node, message: str, expected: Any, *, actual: Any = None, hint: Optional[str] = None) -> None:
        line = node.start_mark.line + 1
        where = f"{self.path or 'registry'}:{line}: "
        raise RegistryError(
            f"{where}{message} (expected: {expected})",
            path=self.path,
            line=line,
            expected=expected,
            actual=actual,
            hint=hint,
        )

    # From bytes to nodes --------------------------------------------------------------------------------------

    def compose(self, data: bytes) -> Node:
        def refuse(message: str, line: int, expected: str) -> RegistryError:
            where = f"{self.path or 'registry'}:{line}: "
            return RegistryError(f"{where}{message}", path=self.path, line=line, expected=expected)

        if len(data) > MAX_BYTES:
            raise refuse(f"the file is larger than {MAX_BYTES >> 20} MiB", 1, "a registry")
        if data.startswith(b"\xef\xbb\xbf"):
            raise refuse("the file starts with a byte order mark", 1, "UTF-8 without a BOM")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise refuse(f"byte 0x{data[error.start]:02x} is not UTF-8", line, "UTF-8") from None
        try:
            root = self._nodes(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise refuse(f"not valid YAML: {error.problem}", mark.line + 1 if mark else 1, "YAML") from None
        except yaml.YAMLError as error:
            position = getattr(error, "position", 0) or 0
            raise refuse(f"not valid YAML: {error}", text.count("\n", 0, position) + 1, "YAML") from None
        if root is None:
            raise refuse("the file is empty", 1, "a mapping with schema and variants")
        return root

    def _nodes(self, text: str) -> Optional[Node]:
        """The node tree of one document: the parser's own events, with their tags and, in ``value``, their children.

        PyYAML's own composer recurses in C and dies of a file with enough brackets; here depth is bounded, and an
        anchor is refused before anything can refer to it.
        """
        resolve = functools.lru_cache(maxsize=None)(yaml.resolver.Resolver().resolve)
        open_nodes: List[Node] = []
        root: Optional[Node] = None
        node: Node
        parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        for event in iter(parser.get_event, None):
            if isinstance(event, yaml.CollectionEndEvent):
                node = open_nodes.pop()
                if _is_mapping(node):
                    node.value = list(zip(node.value[::2], node.value[1::2]))
                continue
            if not isinstance(event, yaml.NodeEvent):
                if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                    self.fail(event, "a second document starts here", "one document")
                continue
            node = event
            if node.anchor is not None:
                self.fail(node, "anchors and aliases are not allowed", "the values written out")
            if len(open_nodes) >= MAX_DEPTH:
                self.fail(node, f"nested deeper than {MAX_DEPTH} levels", "a registry")
            if open_nodes:
                open_nodes[-1].value.append(node)
            else:
                root = node
            untagged = node.tag is None or node.tag == "!"
            if isinstance(node, yaml.ScalarEvent):
                if untagged:
                    node.tag = resolve(yaml.ScalarNode, node.value, node.implicit)
                continue
            if untagged:
                node.tag = SEQ if _is_list(node) else MAP
            node.value = []
            open_nodes.append(node)
        return root

    # From nodes to values -------------------------------------------------------------------------------------

    def mapping(self, node: Node) -> Entries:
        if not _is_mapping(node) or node.tag != MAP:
            self.fail(node, f"got {_kind(node)}", "a mapping")
        entries: Entries = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                self.fail(key_node, "merge keys are not allowed", "the values written out")
            key = self._scalar(key_node, str)
            if key in entries:
                first = entries[key][0].start_mark.line + 1
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
        if (id(node), kind) not in self._decoded:
            self._decoded[id(node), kind] = (node, self._decode(node, kind))
        return self._decoded[id(node), kind][1]

    def _decode(self, node: Node, kind: Any) -> Any:
        if kind == Options:
            return tuple((name, self._option(value)) for name, (_, value) in self.mapping(node).items())
        if typing.get_origin(kind) is tuple:
            return self._tuple(node, typing.get_args(kind))
        return self.record(node, kind, self.mapping(node))

    def _tuple(self, node: Node, arguments: Tuple[Any, ...]) -> Tuple[Any, ...]:
        if not _is_list(node) or node.tag != SEQ:
            self.fail(node, f"got {_kind(node)}", "a list")
        if arguments[-1] is not Ellipsis and len(node.value) != len(arguments):
            self.fail(node, f"got {len(node.value)} items", f"{len(arguments)} items")
        return tuple(self.decode(item, arguments[0]) for item in node.value)

    def _option(self, node: Node) -> Any:
        """A value whose type nobody states: what YAML reads it as, or a list of such values."""
        if _is_list(node) and node.tag == SEQ:
            return tuple(self._scalar(item, self._kind_of(item)) for item in node.value)
        return self._scalar(node, self._kind_of(node))

    def _kind_of(self, node: Node) -> type:
        # YAML 1.1 takes 1e-3, which has no point, for a string.
        if isinstance(node, yaml.ScalarEvent) and not node.style and DECIMAL.fullmatch(node.value):
            return int if node.tag == INT else float
        return {BOOL: bool, INT: int, FLOAT: float}.get(node.tag, str)

    def _scalar(self, node: Node, kind: type) -> Any:
        value, tag = node.value, node.tag
        if not isinstance(node, yaml.ScalarEvent) or tag not in _KINDS:
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
        elif tag in (INT, FLOAT, STR) and not node.style and DECIMAL.fullmatch(value):
            return float(value)
        self.fail(node, f"got {_kind(node)} {value!r}", NAMES[kind], actual=value)

    def record(self, node: Node, kind: Any, entries: Entries, **given: Any) -> Any:
        """A record of class ``kind`` from a mapping's entries; ``given`` fields come from elsewhere."""
        fields = fields_of(kind)
        self.check_fields(entries, [name for name in fields if name not in given])
        values = dict(given)
        for name, field in fields.items():
            if name in entries:
                values[name] = self._field(entries[name][1], name, field)
            elif field.required and name not in given:
                self.fail(node, f"the field {name!r} is missing", name)
        record = kind(**values)
        problem = check_record(record)
        if problem is not None:
            name, message, expected = problem
            self.fail(entries[name][1] if name in entries else node, message, expected)
        return record

    def check_fields(self, entries: Entries, known: Sequence[str]) -> None:
        for key, (key_node, _) in entries.items():
            if key not in known:
                import difflib  # here and not above, because a registry without mistakes needs none of it

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
        fields = {name: field for name, field in fields_of(CheckpointSpec).items() if name not in PLACED}
        for tag, (_, node) in (self.mapping(entry[1]) if entry else {}).items():
            found[tag] = self.mapping(node)
            self.check_fields(found[tag], tuple(fields))
            for name, (_, value) in found[tag].items():
                if dataclasses.is_dataclass(fields[name].kind):
                    self.check_fields(self.mapping(value), tuple(fields_of(fields[name].kind)))
                else:
                    self._field(value, name, fields[name])
        return found

    def merged(self, defaults: Entries, own: Entries) -> Entries:
        """A publisher's defaults under a checkpoint's own entries: mappings key by key, ``origin`` added up."""
        entries = {**defaults, **own}
        for key in set(defaults) & set(own):
            default, value = defaults[key][1], own[key][1]
            if _is_mapping(default) and _is_mapping(value):
                pairs = list({**self.mapping(default), **self.mapping(value)}.values())
                entries[key] = (own[key][0], _collection(value, pairs))
            elif key == "origin" and _is_list(value):
                items = [*default.value, *value.value]
                entries[key] = (own[key][0], _collection(value, items))
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
            model = dataclasses.replace(model, default=default_tag(model.checkpoints))
        return key, model

    def check_key(self, key: Node, kind: Any, name: str, noun: str) -> None:
        """A name that is a key in the file follows the rule of the field that it becomes."""
        rule = fields_of(kind)[name].rule
        if rule is not None and not rule[0](key.value):
            self.fail(key, f"{key.value!r} cannot be {noun}", rule[1])

    def check_claims(self, models: List[Tuple[Node, ModelSpec]]) -> None:
        """No two variants or checkpoints may answer to one name."""
        owners: Dict[str, str] = {}
        for node, model in models:
            for claim, owner in claims(model):
                if owners.setdefault(claim, owner) != owner:
                    self.fail(
                        node, f"the name {claim!r} belongs to {owners[claim]} and to {owner}", "names of one owner"
                    )


def _is_mapping(node: Node) -> bool:
    return isinstance(node, yaml.MappingStartEvent)


def _is_list(node: Node) -> bool:
    return isinstance(node, yaml.SequenceStartEvent)


def _collection(like: Node, children: List[Any]) -> Node:
    node = type(like)(None, like.tag, False, like.start_mark)
    node.value = children
    return node


def _filled_in(spec: CheckpointSpec) -> CheckpointSpec:
    """``{variant}``, ``{name}`` and ``{stem}`` (the file's name without its extension) filled in."""

    def fill(text: str) -> str:
        if "{" not in text:
            return text
        file = spec.file.name
        return text.replace("{variant}", spec.variant).replace("{name}", file).replace("{stem}", Path(file).stem)

    file = dataclasses.replace(spec.file, sources=tuple(map(fill, spec.file.sources)))
    return dataclasses.replace(spec, file=file, aliases=tuple(map(fill, spec.aliases)))


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
    if _is_mapping(node):
        return "a mapping"
    if _is_list(node):
        return "a list"
    return _KINDS.get(node.tag, f"the tag {node.tag}")
