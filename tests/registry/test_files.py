"""Registry files of REPVGG_ZOO_REGISTRY are found like registered ones, and broken ones are left out."""

from __future__ import annotations

import json
import os

import pytest

from .installed import install, registry, run, run_json
from .sample import SAMPLE

LIST = "emit(repvgg_zoo.list_models('*/*'))"


def files(*paths: object) -> dict:
    return {"REPVGG_ZOO_REGISTRY": os.pathsep.join(map(str, paths))}


def test_the_variants_of_several_files_are_found(tmp_path):
    (tmp_path / "one.yaml").write_text(registry("acme/RepVGG_Q"))
    (tmp_path / "two.yaml").write_text(SAMPLE.replace("RepVGG_X1", "lab/RepVGG_X1"))
    code = """
        import os; os.chdir(HOME)
        emit(repvgg_zoo.list_models("*/*"))
        from repvgg_zoo.registry.api import find_default_checkpoint
        emit([find_default_checkpoint("lab/x1.other").file.sources[0], repvgg_zoo.model_info("repvgg-x2").name])
    """.replace("HOME", repr(str(tmp_path)))
    listed, values = run_json(code, environ={**files("one.yaml", "", "~/two.yaml"), "HOME": str(tmp_path)})
    assert listed == ["acme/RepVGG_Q", "lab/RepVGG_X1"]
    assert values == [str(tmp_path / "files" / "x1.pth"), "RepVGG_X2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the registry: No such file"),
        ("a: [", "not valid YAML"),
        (registry("RepVGG_A0"), "claims the name 'repvgga0' for RepVGG_A0, which is RepVGG_A0's"),
        (registry("b/Q", "aliases: [a0]\n"), "claims the name 'a0' for b/Q, which is RepVGG_A0's"),
        (registry("acme/RepVGG_Q").replace("family: RepVGG-Q", "family: other"), "claims the name 'acme/repvggq'"),
    ],
    ids=["missing", "broken", "a built-in name", "a built-in alias", "a name of another file"],
)
def test_a_file_that_cannot_be_used_is_left_out_with_a_warning(tmp_path, text, message):
    (tmp_path / "good.yaml").write_text(registry("acme/RepVGG_Q"))
    if text is not None:
        (tmp_path / "bad.yaml").write_text(text)
    code = (
        LIST
        + """
emit(repvgg_zoo.model_info("acme/q").name)
try: repvgg_zoo.model_info("RepVGG_Q7")
except RegistryError as error: emit([str(error).partition("\\n")[0], error.path, error.hint])
import os; os.environ["REPVGG_ZOO_PLUGINS"] = "strict"
repvgg_zoo.model_info("RepVGG_A0")
try: repvgg_zoo.list_models()
except RegistryError as error: emit(error.path)
"""
    )
    done = run(code, environ=files(tmp_path / "good.yaml", tmp_path / "bad.yaml"))
    listed, good, (first, path, hint), strict = map(json.loads, done.stdout.splitlines())
    assert listed == ["acme/RepVGG_Q"] and good == "acme/RepVGG_Q"
    assert message in first and path == str(tmp_path / "bad.yaml") and "'RepVGG_Q7' is unknown" in hint
    assert done.stderr.count("left out: ") == 1 and message in done.stderr
    assert strict == str(tmp_path / "bad.yaml")


def test_a_file_is_read_again_when_it_or_the_environment_changes(tmp_path):
    (tmp_path / "one.yaml").write_text(registry("acme/RepVGG_Q"))
    code = f"""
        import os
        path = {str(tmp_path / "one.yaml")!r}
        emit(repvgg_zoo.list_models("*/*"))
        os.environ["REPVGG_ZOO_REGISTRY"] = path
        emit(repvgg_zoo.list_models("*/*"))
        text = open(path).read()
        open(path, "w").write(text.replace("RepVGG_Q", "RepVGG_Q10"))
        emit(repvgg_zoo.list_models("*/*"))
    """
    assert run_json(code) == [[], ["acme/RepVGG_Q"], ["acme/RepVGG_Q10"]]


def test_a_file_that_is_also_registered_and_a_plugins_is_listed_once(tmp_path):
    install(tmp_path, "acme")
    path = tmp_path / "acme_plugin.yaml"
    code = f"repvgg_zoo.register({str(path)!r})\n{LIST}"
    done = run(code, [tmp_path], files(path, path))
    assert (json.loads(done.stdout), done.stderr) == (["acme/RepVGG_Q"], "")


def test_a_file_takes_precedence_over_a_plugin_with_the_same_name(tmp_path):
    install(tmp_path, "acme")
    (tmp_path / "mine.yaml").write_text(registry("acme/RepVGG_Q").replace("family: RepVGG-Q", "family: mine"))
    done = run(LIST + "\nemit(repvgg_zoo.model_info('acme/q').family)", [tmp_path], files(tmp_path / "mine.yaml"))
    assert list(map(json.loads, done.stdout.splitlines())) == [["acme/RepVGG_Q"], "mine"]
    assert "the plugin acme (acme-repvgg 1.0) has a registry that cannot be used" in done.stderr


def test_files_are_read_where_plugins_are_off(tmp_path):
    (tmp_path / "one.yaml").write_text(registry("acme/RepVGG_Q"))
    assert run_json(LIST, environ={**files(tmp_path / "one.yaml"), "REPVGG_ZOO_PLUGINS": "off"}) == ["acme/RepVGG_Q"]
