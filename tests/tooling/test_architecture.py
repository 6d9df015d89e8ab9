"""The packages import one another in one direction, that of docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "repvgg_zoo"

# A module may import those of its own line and of the lines above.
LAYERS = (
    (
        "_arguments",
        "_atomic",
        "_buffers",
        "_cpu",
        "_digest",
        "_escape",
        "_file_state",
        "_files",
        "_html",
        "_json",
        "_redact",
        "_log",
        "_requirements",
        "_resources",
        "_settings",
        "_sniff",
        "_text",
        "_urls",
        "errors",
    ),
    ("_file_array",),
    ("_derived_cache",),
    ("registry",),
    ("hub",),
    ("checkpoints",),
    ("_tensors",),
    ("models",),
    ("reparam",),
    ("weights",),
    ("adapt", "builder"),
    ("inference", "image"),  # predict compiles a name, quantize preprocesses images
    ("costs",),
    ("exporters",),
    ("data",),  # images and what networks say about them
    ("training",),
    ("cli", "__main__"),
)


def imports(path: Path) -> Iterator[Tuple[int, str]]:
    """The lines and names of the modules that a file imports anywhere, relative ones from the package's root."""
    parents = ["repvgg_zoo", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def layer(name: str) -> int:
    (index,) = (index for index, names in enumerate(LAYERS) if name in names)
    return index


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_comes_before_it(path: Path) -> None:
    own = layer(path.relative_to(PACKAGE).parts[0].replace(".py", ""))
    wrong: List[str] = []
    for line, module in imports(path):
        package, _, rest = module.partition(".")
        name = rest.partition(".")[0]
        is_ours = package == "repvgg_zoo" and ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists())
        if is_ours and layer(name) > own:
            wrong.append(f"line {line}: {module}")
    assert not wrong
