"""Registry files to frozen specs; every mistake has its line, and the first one is the RegistryError.

The grammar is that of the dataclasses in ``specs``: the parser follows their annotations. What a type cannot express
is checked by ``validation``.
"""

from __future__ import annotations

import os
import typing
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import (
    Any,
    Collection,
    Container,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import yaml

from .._files import open_regular_file
from .._redact import mask_credentials
from ..errors import RegistryError
from .names import lookup_keys
from .specs import CheckpointSpec, ModelSpec, Options, Registry, map_file_sources
from .validation import Field, check_spec, default_tag, fields_of, is_spec, required_fields_of
from .yaml_document import (
    MAX_BYTES,
    NULL,
    TYPE_NAMES,
    DocumentError,
    Entries,
    compose,
    fail,
    is_mapping,
    is_sequence,
    mapping,
    scalar,
    sequence,
    shorten,
    untyped,
)

SCHEMA = 1
KEYED_FIELDS = ("variant", "tag")  # fields of a checkpoint that are keys in the file
# What may be read, in bytes of memory: a publisher's defaults are part of each of its checkpoints. The shipped registry
# takes 0.2 MB.
MAX_WORK = 32 << 20
MAX_PROBLEMS = 100  # after which a file is not read further


def load_registry(path: Union[str, Path]) -> Registry:
    """Read a registry file; raise RegistryError if it cannot be read or is not valid."""
    return parse_registry(read_registry(Path(path)), path=Path(path))


def read_registry(path: Path) -> bytes:
    """Return the content of a registry file; raise RegistryError if it cannot be read."""
    try:
        with open_regular_file(path) as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise RegistryError(f"{path}: cannot read the registry: {reason}", path=path, hint="check the path") from error


def registry_from_mapping(data: Mapping[str, Any]) -> Registry:
    """Read a registry from plain dicts, lists and scalars; line numbers in errors are those of its YAML form."""
    try:
        text = yaml.dump(dict(data), Dumper=_NoAliasDumper, sort_keys=False, allow_unicode=True)
    except Exception as error:  # what the mapping's own code raises, and Python for a number of 5,000 digits
        raise RegistryError(
            f"the mapping is not plain data: {str(error)[:200]}", hint="use dicts, lists and scalars"
        ) from error
    return parse_registry(text.encode())


def parse_registry(data: bytes, *, path: Optional[Path] = None) -> Registry:
    """Read a registry from the bytes of a YAML file; ``path`` is for errors and for relative sources."""
    parsed = parse_all(data, path=path)
    for error in parsed.problems[:1]:
        raise RegistryError(
            f"{path or 'registry'}:{error.line}: {error.message} (expected: {error.expected})",
            path=path,
            line=error.line,
            expected=error.expected,
            actual=mask_credentials(error.actual),
            hint=error.hint,
        ) from None
    return Registry(models=parsed.models, path=None if path is None else str(path))


class ParsedRegistry(NamedTuple):
    """The valid variants of a document, all its problems, and the line of each variant's name and fields.

    ``incomplete`` has the architectures and costs of variants that are not valid, where these fields are.
    """

    models: Tuple[ModelSpec, ...]
    incomplete: List[ModelSpec]
    problems: List[DocumentError]
    lines: Mapping[Tuple[str, str], int]


def parse_all(data: bytes, *, path: Optional[Path] = None) -> ParsedRegistry:
    """Read as much of a registry as is valid; ``lines`` has (variant, field) as its keys, and (variant, "")."""
    parser = _Parser(None if path is None else path.resolve().parent)
    models: Tuple[ModelSpec, ...] = ()
    with suppress(_TooManyProblems), parser.collected():
        models = parser.models(compose(data))
    return ParsedRegistry(models, parser.incomplete, list(parser.problems.values()), parser.lines)


class _NoAliasDumper(yaml.SafeDumper):
    """Write an object that occurs twice in full, instead of as an anchor and an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _TooManyProblems(Exception):
    """A document has so many problems that it is not read further."""


class _IncompleteSpec(Exception):
    """A spec is left out, because of problems that were collected before."""


class _Parser:
    """Read the nodes of one registry; ``folder`` is where its relative sources are.

    A problem does not end the work: it is collected, and what it is a part of is left out.
    """

    def __init__(self, folder: Optional[Path]) -> None:
        self.folder = folder
        self.work = 0
        self.problems: Dict[Tuple[int, str], DocumentError] = {}  # by line and message
        self.failures = 0  # how often a body ended, also with a problem that was known already
        self.lines: Dict[Tuple[str, str], int] = {}
        self.incomplete: List[ModelSpec] = []
        # A publisher's nodes are part of each of its checkpoints, but are read only once.
        self._values: Dict[yaml.Node, Any] = {}
        self._invalid: Dict[yaml.Node, Exception] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a problem of the body, which ends there."""
        try:
            yield
        except (DocumentError, _IncompleteSpec) as error:
            self.collect(error)

    def collect(self, error: Exception) -> None:
        self.failures += 1
        if isinstance(error, DocumentError):
            self.problems.setdefault((error.line, error.message), error)
            if len(self.problems) == MAX_PROBLEMS:
                raise _TooManyProblems from None

    def models(self, root: yaml.Node) -> Tuple[ModelSpec, ...]:
        entries = mapping(root)
        self.check_fields(entries, ("schema", "publishers", "variants"))
        for key in ("schema", "variants"):
            if key not in entries:
                fail(root, f"the field {key!r} is missing", key)
        with self.collected():
            version_node = entries["schema"][1]
            version = scalar(version_node, int)
            if version != SCHEMA:
                fail(version_node, f"schema {version} is not supported", f"schema: {SCHEMA}")
        publishers: Dict[str, Entries] = {}
        if "publishers" in entries:
            with self.collected():
                publishers = self.publishers(entries["publishers"][1])
        models: Dict[yaml.Node, ModelSpec] = {}
        for key_node, node in mapping(entries["variants"][1]).values():
            with self.collected():
                models[key_node] = self.model(key_node, node, publishers)
        self.check_name_conflicts(models)
        return tuple(models.values())

    def publishers(self, node: yaml.Node) -> Dict[str, Entries]:
        """Return the defaults of each tag, checked here so that a mistake shows even if no checkpoint uses them."""
        publishers: Dict[str, Entries] = {}
        fields = fields_of(CheckpointSpec)
        for tag, (_, defaults) in mapping(node).items():
            with self.collected():
                entries = publishers[tag] = mapping(defaults)
                self.check_fields(entries, fields, exclude=KEYED_FIELDS)
                for name in [name for name in entries if name in fields]:
                    with self.collected():
                        if is_spec(fields[name].kind):
                            self.check_fields(mapping(entries[name][1]), fields_of(fields[name].kind))
                        else:
                            self.field(entries[name][1], name, fields[name])
        return publishers

    def model(self, key: yaml.Node, node: yaml.Node, publishers: Mapping[str, Entries]) -> ModelSpec:
        before = self.failures
        with self.collected():
            _check_key(key, ModelSpec, "name", "variant name")
        entries = mapping(node)
        for name, (name_node, _) in entries.items():
            self.lines[key.value, name] = name_node.start_mark.line + 1
        self.lines[key.value, ""] = key.start_mark.line + 1
        checkpoints: List[CheckpointSpec] = []
        if "checkpoints" in entries:
            for tag, (tag_node, value) in mapping(entries.pop("checkpoints")[1]).items():
                with self.collected():
                    _check_key(tag_node, CheckpointSpec, "tag", "tag")
                    merged = _with_defaults(mapping(value), publishers.get(tag, {}))
                    spec = self.spec(value, CheckpointSpec, merged, variant=key.value, tag=tag)
                    filled = _fill_placeholders(spec)
                    self.spend(value, sum(map(len, (*filled.file.sources, *filled.aliases))))
                    checkpoints.append(_with_file_sources(filled, merged, self.folder))
        try:
            model: ModelSpec = self.spec(
                node, ModelSpec, entries, failures=before, name=key.value, checkpoints=tuple(checkpoints)
            )
        except (DocumentError, _IncompleteSpec):
            self.keep_costs(key.value, entries)
            raise
        if model.default is None and checkpoints:
            model = model._replace(default=default_tag(checkpoints))
        return model

    def keep_costs(self, name: str, entries: Entries) -> None:
        """Keep what a variant that is left out costs, if that much of it is valid."""
        values: Dict[str, Any] = {}
        for field in [field for field in ("architecture", "params", "macs") if field in entries]:
            with self.collected():
                values[field] = self.field(entries[field][1], field, fields_of(ModelSpec)[field])
        if len(values) == 3:
            self.incomplete.append(ModelSpec(name=name, family="", **values))

    def spec(
        self, node: yaml.Node, kind: Any, entries: Entries, *, failures: Optional[int] = None, **keyed: Any
    ) -> Any:
        """Return a spec of class ``kind`` from a mapping's entries; ``keyed`` fields come from keys of the file.

        Raise _IncompleteSpec if there have been problems since the number of them was ``failures``, by default now.
        """
        before = self.failures if failures is None else failures
        fields = fields_of(kind)
        self.check_fields(entries, fields, exclude=keyed)
        values: Dict[str, Any] = {}
        for name, (_, value) in entries.items():
            if name in fields and name not in keyed:
                try:
                    values[name] = self.field(value, name, fields[name])
                except (DocumentError, _IncompleteSpec) as error:
                    self.collect(error)
        values.update(keyed)
        for name in [name for name in required_fields_of(kind) if name not in values and name not in entries]:
            self.collect(DocumentError(f"the field {name!r} is missing", node.start_mark.line + 1, name))
        if self.failures > before:
            raise _IncompleteSpec
        spec = kind(**values)
        problem = check_spec(spec)
        if problem is not None:
            where = entries[problem.field][1] if problem.field in entries else node
            fail(where, problem.message, problem.expected)
        return spec

    def field(self, node: yaml.Node, name: str, field: Field) -> Any:
        """Return the valid value of a field."""
        value = self._values.get(node, self)  # which is not a value
        if value is self:
            if node in self._invalid:
                raise self._invalid[node]
            value = self._values[node] = self.checked(node, name, field)
        self.spend(node, 100 * len(value) if isinstance(value, tuple) else 100)
        return value

    def checked(self, node: yaml.Node, name: str, field: Field) -> Any:
        try:
            value = None if field.optional and node.tag == NULL else self.value(node, field.kind)
            if value is not None and field.validator is not None and not field.validator.is_valid(value):
                fail(node, f"{name} is {shorten(value)}", field.validator.expected, actual=value)
            return value
        except (DocumentError, _IncompleteSpec) as error:
            self._invalid[node] = error
            raise

    def check_fields(self, entries: Entries, fields: Collection[str], *, exclude: Container[str] = ()) -> None:
        for key in [key for key in entries if key not in fields or key in exclude]:
            with self.collected():
                _fail_unknown(key, entries[key][0], [name for name in fields if name not in exclude])

    def check_name_conflicts(self, models: Mapping[yaml.Node, ModelSpec]) -> None:
        owners: Dict[str, str] = {}
        for node, model in models.items():
            with self.collected():
                for key, owner in lookup_keys(model):
                    if owners.setdefault(key, owner) != owner:
                        fail(node, f"the name {key!r} belongs to {owners[key]} and to {owner}", "unique names")

    def spend(self, node: yaml.Node, size: int) -> None:
        self.work += size
        if self.work > MAX_WORK:
            with self.collected():
                fail(node, "the defaults of publishers are repeated too often", "shorter lists")
            raise _TooManyProblems

    def value(self, node: yaml.Node, kind: Any) -> Any:
        """Return the value of ``node`` as ``kind``: a scalar type, a tuple type, options, or a spec."""
        if kind in TYPE_NAMES:
            return scalar(node, kind)
        if kind == Options:
            return tuple((name, untyped(value)) for name, (_, value) in mapping(node).items())
        if typing.get_origin(kind) is tuple:
            arguments = typing.get_args(kind)
            items = sequence(node, None if arguments[-1] is Ellipsis else len(arguments))
            return tuple(self.value(item, arguments[0]) for item in items)
        return self.spec(node, kind, mapping(node))


# The parts of a checkpoint that need more than their own node ------------------------------------------------


def _with_defaults(own: Entries, defaults: Entries) -> Entries:
    """Merge a checkpoint's entries with its publisher's: mappings key by key, ``provenance`` concatenated."""
    merged = {**defaults, **own}
    for name in defaults.keys() & own.keys():
        default, (key, value) = defaults[name][1], own[name]
        if is_mapping(default) and is_mapping(value):
            pairs = {**mapping(default), **mapping(value)}
            merged[name] = (key, yaml.MappingNode(value.tag, list(pairs.values()), value.start_mark))
        elif name == "provenance" and not is_sequence(default):
            merged[name] = defaults[name]  # so that it is reported
        elif name == "provenance" and is_sequence(value):
            merged[name] = (key, yaml.SequenceNode(value.tag, [*default.value, *value.value], value.start_mark))
    return merged


def _fill_placeholders(spec: CheckpointSpec) -> CheckpointSpec:
    """Replace ``{variant}``, ``{name}`` and ``{stem}`` (the file's name without its extension)."""
    if not any("{" in text for text in (*spec.file.sources, *spec.aliases)):
        return spec
    name = spec.file.name
    values = {"{variant}": spec.variant, "{name}": name, "{stem}": os.path.splitext(name)[0]}  # noqa: PTH122 - faster

    def fill(text: str) -> str:
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        return text

    file = spec.file._replace(sources=tuple(map(fill, spec.file.sources)))
    return spec._replace(file=file, aliases=tuple(map(fill, spec.aliases)))


def _with_file_sources(spec: CheckpointSpec, entries: Entries, folder: Optional[Path]) -> CheckpointSpec:
    """Make sources without a scheme, which are files beside the registry, absolute paths."""

    def absolute(source: str) -> str:
        if folder is None:
            node = mapping(entries["file"][1])["sources"][1].value[spec.file.sources.index(source)]
            fail(node, f"source {shorten(source)} is relative, but this registry is not a file", "a URL")
        return str(folder / source)

    return map_file_sources(spec, absolute)


def _check_key(key: yaml.Node, kind: Any, name: str, noun: str) -> None:
    """Check a key of the file by the validator of the field that it becomes."""
    validator = fields_of(kind)[name].validator
    if validator is not None and not validator.is_valid(key.value):
        fail(key, f"{shorten(key.value)} is not a valid {noun}", validator.expected)


def _fail_unknown(key: str, node: yaml.Node, known: Sequence[str]) -> NoReturn:
    import difflib  # a valid registry does not need it

    close = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else None
    fail(node, f"unknown field {shorten(key)}", ", ".join(known), actual=key, hint=hint)
