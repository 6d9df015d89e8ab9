"""Registry files that the environment names are as good as registered ones, and as harmless when they are broken."""

from __future__ import annotations

import json
import os

import pytest

from .installed import install, registry, run, said
from .sample import SAMPLE

LIST = "say(repvgg_zoo.list_models('*/*'))"


def files(*paths: object) -> dict:
    return {"REPVGG_ZOO_REGISTRY": os.pathsep.join(map(str, paths))}


def test_the_variants_of_several_files_are_found_without_any_code(tmp_path):
    (tmp_path / "one.yaml").write_text(registry("acme/RepVGG_Q"))
    (tmp_path / "two.yaml").write_text(SAMPLE.replace("RepVGG_X1", "lab/RepVGG_X1"))
    code = """
        import os; os.chdir(HOME)
        say(repvgg_zoo.list_models("*/*"))
        from repvgg_zoo.registry.api import find_default_checkpoint
        say([find_default_checkpoint("lab/x1.other").file.sources[0], repvgg_zoo.model_info("repvgg-x2").name])
    """.replace("HOME", repr(str(tmp_path)))
    listed, found = said(code, environ={**files("one.yaml", "", "~/two.yaml"), "HOME": str(tmp_path)})
    assert listed == ["acme/RepVGG_Q", "lab/RepVGG_X1"]
    assert found == [str(tmp_path / "files" / "x1.pth"), "RepVGG_X2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the registry: No such file"),
        ("a: [", "not valid YAML"),
        (registry("RepVGG_A0"), "claims the name 'repvgga0' for RepVGG_A0, which is RepVGG_A0's"),
        (registry("b/Q", "aliases: [a0]\n"), "claims the name 'a0' for b/Q, which is RepVGG_A0's"),
        (registry("acme/RepVGG_Q").replace("family: RepVGG-Q", "family: other"), "claims the name 'acme/repvggq'"),
    ],
    ids=["missing", "broken", "a name of ours", "an alias of ours", "a name of another file"],
)
def test_a_file_that_cannot_be_used_is_left_out_and_told(tmp_path, text, message):
    (tmp_path / "good.yaml").write_text(registry("acme/RepVGG_Q"))
    if text is not None:
        (tmp_path / "bad.yaml").write_text(text)
    code = (
        LIST
        + """
say(repvgg_zoo.model_info("acme/q").name)
try: repvgg_zoo.model_info("RepVGG_Q7")
except UnknownModelError as error: say([error.hint, type(error.__cause__).__name__])
import os; os.environ["REPVGG_ZOO_PLUGINS"] = "strict"
repvgg_zoo.model_info("RepVGG_A0")
try: repvgg_zoo.list_models()
except RegistryError as error: say(error.path)
"""
    )
    done = run(code, environ=files(tmp_path / "good.yaml", tmp_path / "bad.yaml"))
    listed, good, (hint, cause), strict = map(json.loads, done.stdout.splitlines())
    assert listed == ["acme/RepVGG_Q"] and good == "acme/RepVGG_Q"
    assert message in hint and cause == "RegistryError"
    assert done.stderr.count("left out: ") == 1 and message in done.stderr
    assert strict == str(tmp_path / "bad.yaml")


def test_a_file_is_read_again_when_it_changes_or_the_environment_does(tmp_path):
    (tmp_path / "one.yaml").write_text(registry("acme/RepVGG_Q"))
    code = f"""
        import os
        path = {str(tmp_path / "one.yaml")!r}
        say(repvgg_zoo.list_models("*/*"))
        os.environ["REPVGG_ZOO_REGISTRY"] = path
        say(repvgg_zoo.list_models("*/*"))
        text = open(path).read()
        open(path, "w").write(text.replace("RepVGG_Q", "RepVGG_Q10"))
        say(repvgg_zoo.list_models("*/*"))
    """
    assert said(code) == [[], ["acme/RepVGG_Q"], ["acme/RepVGG_Q10"]]


def test_one_file_that_is_named_registered_and_brought_by_a_plugin_counts_once(tmp_path):
    install(tmp_path, "acme")
    path = tmp_path / "acme_plugin.yaml"
    code = f"repvgg_zoo.register({str(path)!r})\n{LIST}"
    done = run(code, [tmp_path], files(path, path))
    assert (json.loads(done.stdout), done.stderr) == (["acme/RepVGG_Q"], "")


def test_what_the_environment_names_comes_before_a_plugin_that_brings_the_same_name(tmp_path):
    install(tmp_path, "acme")
    (tmp_path / "mine.yaml").write_text(registry("acme/RepVGG_Q").replace("family: RepVGG-Q", "family: mine"))
    done = run(LIST + "\nsay(repvgg_zoo.model_info('acme/q').family)", [tmp_path], files(tmp_path / "mine.yaml"))
    assert list(map(json.loads, done.stdout.splitlines())) == [["acme/RepVGG_Q"], "mine"]
    assert "the plug-in acme (acme-repvgg 1.0) has a registry that cannot be used" in done.stderr


def test_files_are_read_where_plugins_are_off(tmp_path):
    (tmp_path / "one.yaml").write_text(registry("acme/RepVGG_Q"))
    assert said(LIST, environ={**files(tmp_path / "one.yaml"), "REPVGG_ZOO_PLUGINS": "off"}) == ["acme/RepVGG_Q"]
