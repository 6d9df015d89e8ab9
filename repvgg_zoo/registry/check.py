"""check_registry: everything that is wrong with a registry file, with lines, for its author."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from .._digest import hash_file
from .._redact import mask_credentials
from ..errors import MissingFileError, RegistryError, ZooError
from .cost import NetworkCost
from .load import shipped_registry
from .merge import refuse_weaker_files
from .names import lookup_keys, name_index
from .parser import parse_all, read_registry
from .specs import CheckpointSpec, FileSpec, ModelSpec, Registry

Lines = Mapping[Tuple[str, str], int]


class RegistryProblem(NamedTuple):
    """One mistake in a registry file; ``line`` is 1-based."""

    line: int
    message: str
    expected: Any = None
    actual: Any = None
    hint: Optional[str] = None


class RegistryReport(NamedTuple):
    """What a registry file holds and what is wrong with it, in the order of its lines."""

    path: Path
    variants: Tuple[str, ...]
    checkpoints: Tuple[str, ...]
    problems: Tuple[RegistryProblem, ...]


def check_registry(path: Path, *, cost: Callable[[ModelSpec], NetworkCost]) -> RegistryReport:
    """Read a registry file completely, and recount with ``cost`` what it states of each variant.

    A file beside it that is a checkpoint's source is compared with the stated size and digest. Raise MissingFileError
    if the registry file does not exist, and RegistryError if it cannot be read.
    """
    if not path.exists():
        raise MissingFileError(f"{path} does not exist", path=path, hint="check the path")
    parsed = parse_all(read_registry(path), path=path)
    problems = [
        RegistryProblem(problem.line, problem.message, problem.expected, mask_credentials(problem.actual), problem.hint)
        for problem in parsed.problems
    ]
    shipped = shipped_registry()
    is_shipped = shipped.path is not None and path.resolve() == Path(shipped.path).resolve()
    for model in parsed.models:
        problems += [] if is_shipped else _conflicts(model, shipped, parsed.lines)
        for checkpoint in model.checkpoints:
            problems += _wrong_files(checkpoint, _line(parsed.lines, model, "checkpoints"))
    for model in (*parsed.models, *parsed.incomplete):
        problems += _wrong_costs(model, cost, parsed.lines)
    return RegistryReport(
        path=path,
        variants=tuple(model.name for model in parsed.models),
        checkpoints=tuple(checkpoint.name for model in parsed.models for checkpoint in model.checkpoints),
        problems=tuple(sorted(problems, key=lambda problem: problem.line)),
    )


def _line(lines: Lines, model: ModelSpec, field: str) -> int:
    return lines.get((model.name, field), lines[model.name, ""])


def _conflicts(model: ModelSpec, shipped: Registry, lines: Lines) -> Iterator[RegistryProblem]:
    """Yield the names that the shipped registry has, and a file of it that is described with less of its digest."""
    index = name_index(shipped)
    taken = {owner: index[key][0].name for key, owner in lookup_keys(model) if key in index}
    for owner, other in taken.items():
        yield RegistryProblem(
            _line(lines, model, ""),
            f"a name of {owner} is one of {other} in the shipped registry",
            expected="a name in a namespace",
            actual=owner,
            hint=f"call it acme/{model.name}, for example",
        )
    try:
        refuse_weaker_files((shipped, Registry(models=(model,))))
    except RegistryError as error:
        message = error.message.partition(": ")[2]
        yield RegistryProblem(_line(lines, model, "checkpoints"), message, error.expected, error.actual, error.hint)


def _wrong_costs(model: ModelSpec, cost: Callable[[ModelSpec], NetworkCost], lines: Lines) -> Iterator[RegistryProblem]:
    try:
        counted = cost(model)
    except ZooError as error:
        message = f"the cost of {model.name} cannot be counted: {error.message}"
        yield RegistryProblem(_line(lines, model, "architecture"), message, hint=error.hint)
        return
    for field in ("params", "macs"):
        stated, expected = getattr(model, field), getattr(counted, field)
        if stated != expected:
            yield RegistryProblem(
                _line(lines, model, field),
                f"{field} of {model.name} are stated as {_as_yaml(stated)}, and counted as {_as_yaml(expected)}",
                expected=expected,
                actual=stated,
                hint=f"write {field}: {_as_yaml(expected)}",
            )


def _as_yaml(cost: Any) -> str:
    return f"{{train: {cost.train}, deploy: {cost.deploy}}}"


def _wrong_files(checkpoint: CheckpointSpec, line: int) -> Iterator[RegistryProblem]:
    """Yield what the sources on this machine differ in from the stated size and digest."""
    file = checkpoint.file
    for source in (source for source in file.sources if ":" not in source):
        problem = _difference(Path(source), file)
        if problem is not None:
            yield RegistryProblem(line, f"{checkpoint.name}: {source} {problem}", hint="correct the entry or the file")


def _difference(path: Path, file: FileSpec) -> Optional[str]:
    try:
        size, digest = path.stat().st_size, hash_file(path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    differences: List[str] = []
    if file.size not in (None, size):
        differences.append(f"has {size} bytes, and size is {file.size}")
    if not digest.startswith(file.sha256 or file.sha256_prefix or ""):
        differences.append(f"has the SHA-256 {digest}, which is not the stated one")
    return " and ".join(differences) or None
