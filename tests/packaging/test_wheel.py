"""A wheel works like the checkout: it is built, installed in a new environment and used from there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Tuple

from .conftest import build

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(str(wheel)) as archive:
        names = set(archive.namelist())
    hub = {f"repvgg_zoo/resources/{path}" for path in tracked("hub")}
    assert {"repvgg_zoo/py.typed", "repvgg_zoo/resources/registry.yaml"} | hub <= names
    assert "repvgg_zoo/image/imagenet-1k.txt" in names
    assert {name.split("/")[0] for name in names} == {"repvgg_zoo", dist_info(wheel)}
    sources = {name for name in names if name.endswith(".py")}
    assert sources == set(tracked("repvgg_zoo", suffix=".py"))


def tracked(folder: str, suffix: str = "") -> Tuple[str, ...]:
    paths = (path for path in (ROOT / folder).rglob("*" + suffix) if path.is_file() and "__pycache__" not in path.parts)
    return tuple(path.relative_to(ROOT).as_posix() for path in paths)


def dist_info(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


def test_an_installed_wheel_reads_its_own_registry_and_hub(installed: Any) -> None:
    program = """
import json, pathlib, repvgg_zoo
spec = repvgg_zoo.model_info("RepVGG_N0")
path = repvgg_zoo.fetch("RepVGG_N0.digits", offline=True)
print(json.dumps({
    "package": repvgg_zoo.__file__, "models": repvgg_zoo.list_models(), "bytes": path.stat().st_size,
    "size": spec.checkpoint("digits").file.size,
}))
"""
    result = json.loads(installed.run(program).stdout)
    folder = installed.empty.parent.resolve()
    assert Path(result["package"]).resolve().parts[: len(folder.parts)] == folder.parts
    assert {"RepVGG_A0", "RepVGGplus_L2pse", "RepVGG_N0"} <= set(result["models"])
    assert result["bytes"] == result["size"]


def test_an_installed_wheel_has_the_command_line_program(installed: Any, wheel: Path) -> None:
    with zipfile.ZipFile(str(wheel)) as archive:
        entries = archive.read(f"{dist_info(wheel)}/entry_points.txt").decode()
    assert "repvgg-zoo = repvgg_zoo.cli:main" in entries
    output = installed.run(
        "from repvgg_zoo.cli import main; main(['fetch', 'RepVGG_N0', '--offline', '--json'])"
    ).stdout
    assert json.loads(output)[0]["name"] == "RepVGG_N0.digits"


def test_an_editable_wheel_has_the_program_and_the_path_of_the_checkout(tmp_path: Path) -> None:
    editable = build(ROOT, tmp_path, "wheel:editable")
    with zipfile.ZipFile(str(editable)) as archive:
        names = [name for name in archive.namelist() if name.endswith((".py", ".pth"))]
        path = archive.read("_repvgg_zoo.pth").decode()
        entries = archive.read(f"{dist_info(editable)}/entry_points.txt").decode()
    assert (names, path) == (["_repvgg_zoo.pth"], str(ROOT))
    assert "repvgg-zoo = repvgg_zoo.cli:main" in entries
