"""The real megengine.hub downloads this repository from GitHub, and its entries work as described."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo._requirements import requirements

from ..checkpoints.publishers import VARIANTS, entries
from ..checkpoints.torch_files import mapping, storage, tensor, whole, zip_file
from .github import REPO, ROOT, GitHub, archive, bare_repository
from .tour import ALIASES, SMALL, WHOLE

START = f"import json, sys\nimport megengine.hub as hub\nREPO = {REPO!r}\n"


def tour(github: GitHub, home: Path, **job: Any) -> Dict[str, Any]:
    job = {"repo": REPO, "options": {}, "digits": str(ROOT / "hub" / "digits-test.npz"), "load": True, **job}
    done = github.run(home, str(Path(__file__).with_name("tour.py")), json.dumps(job))
    assert done.returncode == 0, done.stderr
    return {"home": home, **json.loads(done.stdout.splitlines()[-1])}


@pytest.fixture(scope="module")
def seen(github: GitHub, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """What a user sees over HTTPS."""
    return tour(github, tmp_path_factory.mktemp("user"))


def test_the_list_is_the_variants_and_nothing_else(seen: Dict[str, Any]) -> None:
    assert sorted(seen["list"]) == sorted(repvgg_zoo.list_models())


def test_the_help_of_every_entry_and_alias_has_what_the_registry_has(seen: Dict[str, Any]) -> None:
    for name, text in seen["help"].items():
        model = repvgg_zoo.model_info(name)
        expected = [model.name, f"{model.params.train:,}", f"{model.params.deploy:,}", f"{model.macs.deploy:,}"]
        expected += [f"{c.top1:.2f}" for c in model.checkpoints if c.top1 is not None]
        expected += [word for c in model.checkpoints for word in (c.tag, c.publisher, c.license)]
        assert [word for word in expected if word not in text] == [], name
        words = {"sha256": "tampering", "sha256_prefix": "not tampering", "none": "refused unless"}
        assert all(words[c.file.integrity] in text for c in model.checkpoints)
        compile(text.split("Example:\n")[1].replace("\n    ", "\n"), name, "exec")
    assert set(ALIASES) <= set(seen["help"])
    assert not seen["before_load"], "listing and help do not need the networks"


def test_every_entry_loads_without_weights(seen: Dict[str, Any]) -> None:
    expected = {name: name for name in repvgg_zoo.list_models()}
    expected["repvgg_b1g2"] = "RepVGG_B1g2"
    assert {name: spec for name, (_, spec) in seen["loaded"].items()} == expected
    assert {kind for kind, _ in seen["loaded"].values()} == {"RepVGG", "RepVGGplus"}
    assert set(WHOLE) <= set(expected) and SMALL["features_only"]


def test_the_bundled_checkpoint_classifies_the_test_images_in_both_forms(seen: Dict[str, Any]) -> None:
    assert (seen["train"], seen["deploy"]) == (358, 358)


def test_the_code_that_ran_is_the_hubs_and_no_residue_is_left(seen: Dict[str, Any]) -> None:
    inside = f"{seen['home'] / 'mge' / 'hub'}/"
    assert seen["homes"] and all(home.startswith(inside) for home in seen["homes"])
    assert seen["path_is_as_before"] and seen["strangers"] == []


def test_the_same_over_ssh(github: GitHub, tmp_path: Path) -> None:
    bare_repository(tmp_path, github.home / "gitconfig")
    count = len(github.proxy.requests)
    seen = tour(github, tmp_path / "user", options={"protocol": "SSH"}, load=False)
    assert sorted(seen["list"]) == sorted(repvgg_zoo.list_models())
    assert (seen["train"], seen["deploy"]) == (358, 358)
    assert len(github.proxy.requests) == count


def test_the_example_of_a_page_runs(github: GitHub, tmp_path: Path) -> None:
    code = """
from PIL import Image
Image.new("L", (40, 50)).save("image.jpg")
exec(hub.help(REPO, "n0").split("Example:\\n")[1].replace("\\n    ", "\\n"))
print(len(list(deployed.parameters())) < len(list(model.parameters())))
"""
    done = github.run(tmp_path / "user", "-c", START + code)
    assert done.stdout.splitlines()[-1] == "True", done.stderr


def test_an_unknown_entry_comes_with_the_closest_names(github: GitHub, tmp_path: Path) -> None:
    done = github.run(tmp_path, "-c", START + "hub.load(REPO, 'RepVGG_B1g3')")
    assert "Cannot find callable RepVGG_B1g3" in done.stderr
    assert "did you mean" in done.stderr and "RepVGG_B1g2" in done.stderr


def test_without_a_ref_megengine_requests_master_which_does_not_exist(github: GitHub, tmp_path: Path) -> None:
    done = github.run(tmp_path, "-c", START + "hub.list('owner/repvgg_zoo')")
    assert "archive/master.zip" in done.stderr


def copy_of_package(folder: Path, version: str) -> Path:
    shutil.copytree(str(ROOT / "repvgg_zoo"), str(folder / "repvgg_zoo"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(str(ROOT / "registry.yaml"), str(folder / "registry.yaml"))
    init = folder / "repvgg_zoo" / "__init__.py"
    init.write_text(re.sub('__version__ = ".*"', f'__version__ = "{version}"', init.read_text()))
    return folder


REFUSED = """
before = list(sys.path)
said = []
for call in (lambda: hub.list(REPO), lambda: hub.help(REPO, "RepVGG_A0"), lambda: hub.load(REPO, "RepVGG_A0")):
    try:
        call()
        said.append("nothing")
    except ImportError as error:
        said.append(str(error))
print(json.dumps([said, sys.path == before]))
"""


def refusals(github: GitHub, home: Path, code: str) -> str:
    """Return the error of list, help and load, which must be the same and leave sys.path unchanged."""
    done = github.run(home, "-c", START + code + REFUSED)
    assert done.returncode == 0, done.stderr
    said, unchanged = json.loads(done.stdout.splitlines()[-1])
    assert len(set(said)) == 1 and said[0] != "nothing" and unchanged
    return str(said[0])


def test_another_version_that_is_imported_is_never_mixed_in(github: GitHub, tmp_path: Path) -> None:
    other = copy_of_package(tmp_path / "other", "0.0.1")
    said = refusals(github, tmp_path / "user", f"sys.path.insert(0, {str(other)!r})\nimport repvgg_zoo\n")
    assert str(other / "repvgg_zoo") in said and str(tmp_path / "user" / "mge" / "hub") in said
    assert "hint: in a new process" in said


def test_a_version_that_was_replaced_under_a_running_one_is_refused(github: GitHub, tmp_path: Path) -> None:
    newer = (ROOT / "repvgg_zoo" / "__init__.py").read_text().replace(repvgg_zoo.__version__, "99.0").encode()
    github.publish(archive(), archive({"repvgg_zoo/__init__.py": newer}), ref="moving")
    code = "REPO = REPO.replace('main', 'moving')\nhub.list(REPO)\nhub.list(REPO, use_cache=False)\n"
    done = github.run(tmp_path, "-c", START + code)
    assert "ImportError" in done.stderr and "start a new process" in done.stderr


@pytest.mark.parametrize("how", ["installed", "imported"])
def test_a_copy_of_the_same_version_or_not_imported_is_accepted(github: GitHub, tmp_path: Path, how: str) -> None:
    """Another version that is installed but not imported, and the same version, imported."""
    version = "0.0.1" if how == "installed" else repvgg_zoo.__version__
    other = copy_of_package(tmp_path / "other", version)
    code = f"sys.path.append({str(other)!r})\n"
    if how == "imported":
        code = f"sys.path.insert(0, {str(other)!r})\nimport repvgg_zoo\n"
    code += "hub.load(REPO, 'RepVGG_N0')\nimport repvgg_zoo\nprint(repvgg_zoo.__file__)"
    done = github.run(tmp_path / "user", "-c", START + code)
    expected = other if how == "imported" else tmp_path / "user" / "mge" / "hub"
    assert done.stdout.splitlines()[-1].startswith(str(expected)), done.stderr


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("import megengine\nmegengine.__version__ = '1.12.4'\n", "pip install 'megengine>=1.13.0,<1.14'"),
        ("import megengine\nmegengine.__version__ = '1.14.0+cu111'\n", "pip install 'megengine>=1.13.0,<1.14'"),
        ("sys.modules['yaml'] = sys.modules['filelock'] = None\n", "pip install 'filelock>=3.12' 'pyyaml>=6.0'"),
    ],
)
def test_a_missing_requirement_comes_with_the_pip_command(github: GitHub, tmp_path: Path, code: str, hint: str) -> None:
    assert hint in refusals(github, tmp_path, code)


def test_without_megengine_hubconf_says_what_to_install(github: GitHub, tmp_path: Path) -> None:
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.modules['megengine'] = None\nimport hubconf\nhubconf.n0"
    done = github.run(tmp_path, "-B", "-c", code)
    assert "pip install 'megengine>=1.13.0,<1.14'" in done.stderr.splitlines()[-1]


def test_the_dependencies_are_those_of_the_package() -> None:
    import hubconf

    # MegEngine itself cannot be imported without setuptools, so here it is always there.
    required = {requirement.import_name for requirement in requirements().values()}
    assert sorted(hubconf.dependencies) == sorted(required - {"setuptools"})


def test_an_entry_takes_what_create_takes() -> None:
    import hubconf

    entry = inspect.signature(hubconf.RepVGG_A0).parameters
    create = dict(inspect.signature(repvgg_zoo.create).parameters)
    del create["name"]
    assert {name: p.default for name, p in entry.items()} == {name: p.default for name, p in create.items()}
    assert next(iter(entry)) == "pretrained" and entry["pretrained"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert not {"git_host", "use_cache", "commit", "protocol"} & set(entry)


def test_b1g2_with_pretrained_true_comes_from_a_mirror_in_its_publishers_format(github: GitHub, tmp_path: Path) -> None:
    """A file with the keys and shapes of the published weights, and a registry with its digest."""
    state, raw, random = {}, {}, np.random.RandomState(0)
    for index, row in enumerate(entries("openmmlab", VARIANTS["B1g2"], "train")):
        size, stride = int(np.prod(row.publisher_shape)), np.cumprod((1, *row.publisher_shape[:0:-1]))[::-1].tolist()
        raw[str(index)] = (np.abs(random.standard_normal(size)) * 0.01 + 0.5).astype("<f4").tobytes()
        state[row.publisher_key] = tensor(storage(str(index), "f4", size), 0, row.publisher_shape, stride)
    body = zip_file(whole(mapping({"state_dict": mapping(state)})), raw)
    digest = hashlib.sha256(body).hexdigest()
    file = repvgg_zoo.model_info("RepVGG_B1g2").checkpoint("openmmlab").file
    assert file.sha256_prefix is not None
    (tmp_path / "mirror").mkdir()
    text = (ROOT / "registry.yaml").read_text().replace(f'"{file.sha256_prefix}"', f'"{digest[:8]}"')
    github.publish(archive({"registry.yaml": text.encode()}), ref="mirrored")
    code = """
import os
from pathlib import Path
REPO = REPO.replace("main", "mirrored")
hub.list(REPO)
import repvgg_zoo
from repvgg_zoo.hub import cache_filename
file = repvgg_zoo.model_info("RepVGG_B1g2").checkpoint("openmmlab").file
mirror = Path(os.environ["REPVGG_ZOO_MIRROR"])
(mirror / "body").rename(mirror / cache_filename(file))
model = hub.load(REPO, "RepVGG_B1g2", pretrained=True)
print(json.dumps([model.checkpoint.name, model.training, float(model.linear.bias.numpy().mean())]))
"""
    (tmp_path / "mirror" / "body").write_bytes(body)
    mirror = {"REPVGG_ZOO_MIRROR": str(tmp_path / "mirror"), "REPVGG_ZOO_ALLOW_UNVERIFIED": "1"}  # it has a prefix only
    done = github.run(tmp_path / "user", "-c", START + code, **mirror)
    assert done.returncode == 0, done.stderr
    name, training, mean = json.loads(done.stdout.splitlines()[-1])
    bias = np.frombuffer(raw[str(len(raw) - 1)], "<f4")
    assert (name, training) == ("RepVGG_B1g2.openmmlab", False)
    assert mean == pytest.approx(float(bias.mean()), rel=1e-5)
