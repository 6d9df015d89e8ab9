"""Plugins are discovered when needed, and a broken, slow or greedy one does not affect other models."""

from __future__ import annotations

import json
import pickle
import textwrap
import zipfile

import pytest

import repvgg_zoo
from repvgg_zoo.errors import PluginError

from .installed import MODULE, install, registry, run, run_json

BUILT_IN = repvgg_zoo.list_models()
LIST = "emit(repvgg_zoo.list_models())"
ASK = """
try:
    emit(repvgg_zoo.model_info("acme/RepVGG_Q").name)
except ZooError as error:
    emit([type(error).__name__, str(error), type(error.__cause__).__name__])
"""


def test_a_plugin_is_listed_and_found_by_any_spelling(tmp_path):
    install(tmp_path, "acme")
    code = LIST + "\nemit([repvgg_zoo.model_info(n).name for n in ('acme/RepVGG_Q', 'ACME/repvgg-q', 'acme/q')])"
    listed, names = run_json(code, [tmp_path])
    assert sorted(listed) == sorted([*BUILT_IN, "acme/RepVGG_Q"])
    assert names == ["acme/RepVGG_Q"] * 3


def test_a_namespace_may_contain_the_family_name(tmp_path):
    install(tmp_path, "acme-repvgg")
    code = "emit(repvgg_zoo.list_models('acme-repvgg/q'))\nemit(repvgg_zoo.model_info('ACME_RepVGG/q').name)"
    assert run_json(code, [tmp_path]) == [["acme-repvgg/RepVGG_Q"], "acme-repvgg/RepVGG_Q"]


@pytest.mark.parametrize("info", ["dist-info", "egg-info"])
def test_a_plugin_is_found_in_a_folder_and_in_an_archive(tmp_path, info):
    site = tmp_path / "site"
    yaml = "plugin = Plugin(registry={'schema': 1, 'variants': VARIANTS})"
    variants = "{'acme/RepVGG_Q': dict(family='Q', params=P, macs=P, no_weights='none', architecture=A)}"
    code = (
        "from repvgg_zoo import Plugin\nP = {'train': 2, 'deploy': 1}\n"
        "A = {'num_blocks': [1] * 4, 'width_multiplier': [1, 1, 1, 1]}\n"
        f"VARIANTS = {variants}\n{yaml}\n"
    )
    install(site, "acme", code=code, info=info)
    assert "acme/RepVGG_Q" in run_json(LIST, [site])
    archive = tmp_path / "site.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in site.rglob("*.*"):
            target.write(path, path.relative_to(site).as_posix())
    assert "acme/RepVGG_Q" in run_json(LIST, [archive])


def test_a_built_in_name_loads_no_plugin_and_a_plugins_name_only_that_one(tmp_path):
    install(tmp_path, "acme")
    install(tmp_path, "other")
    code = """
        def loaded(): return [n for n in ("acme_plugin", "other_plugin", "importlib.metadata") if n in sys.modules]
        emit(loaded())
        for name in ("RepVGG_A0", "b1g2", "timm/repvgg_a0.rvgg_in1k"): repvgg_zoo.model_info(name)
        try: repvgg_zoo.model_info("RepVGG_A0.nothing")
        except UnknownModelError: pass
        repvgg_zoo.fetch("RepVGG_N0")
        emit(loaded())
        repvgg_zoo.model_info("acme/RepVGG_Q")
        emit(loaded()[:-1])
        repvgg_zoo.list_models()
        emit(loaded()[:-1])
    """
    environ = {"REPVGG_ZOO_HOME": str(tmp_path / "cache")}
    assert run_json(code, [tmp_path], environ) == [[], [], ["acme_plugin"], ["acme_plugin", "other_plugin"]]


def test_a_listing_imports_neither_importlib_metadata_nor_frameworks(tmp_path):
    code = LIST + "\nemit([n for n in ('importlib.metadata', 'numpy', 'megengine') if n in sys.modules])"
    assert run_json(code)[1] == []
    install(tmp_path, "acme")
    assert run_json(code, [tmp_path])[1] == ["importlib.metadata"]


NEW = "from repvgg_zoo import Plugin\nplugin = Plugin("
OUTSIDE = NEW + "registry=__file__.replace('.py', '.yaml'), {})\n"
PATH_ONLY = OUTSIDE.replace(", {}", "")
BROKEN = {
    "it raises": ({"code": "1 / 0"}, "ZeroDivisionError: division by zero", "ZeroDivisionError"),
    "it exits": ({"code": "import sys; sys.exit(3)"}, "SystemExit: 3", "SystemExit"),
    "a package it needs is missing": ({"code": "import no_such_thing"}, "no_such_thing", "ModuleNotFoundError"),
    "it is not Python": ({"code": "plugin = ("}, "SyntaxError", "SyntaxError"),
    "it recurses": ({"code": "def f(): f()\nf()"}, "RecursionError", "RecursionError"),
    "it has no plugin": ({"code": ""}, "no attribute 'plugin'", "AttributeError"),
    "it is something else": ({"code": "plugin = 7"}, "has a int at acme_plugin:plugin", "NoneType"),
    "its module is missing": (
        {"entry_points": "[repvgg_zoo.plugins]\nacme = gone:plugin\n"}, "No module named 'gone'", "ModuleNotFoundError",
    ),
    "its entry point is not a reference": (
        {"entry_points": "[repvgg_zoo.plugins]\nacme = not a module!\n"}, "not a module!", "*",
    ),
    "its registry is not YAML": ({"yaml": "a: [1"}, "acme_plugin.yaml:2: not valid YAML", "RegistryError"),
    "a field is wrong": ({"yaml": registry("acme/Q").replace("2", "x")}, "got the string 'x'", "RegistryError"),
    "a variant is outside": ({"yaml": registry("RepVGG_Q")}, "claims the name 'repvggq'", "RegistryError"),
    "a variant is elsewhere": ({"yaml": registry("other/Q")}, "claims the name 'other/q'", "RegistryError"),
    "it takes a built-in name": ({"yaml": registry("RepVGG_A0")}, "claims the name 'repvgga0'", "RegistryError"),
    "an alias shadows a model": (
        {"yaml": registry("acme/Q", "aliases: [RepVGG_A0]\n")}, "claims the name 'repvgga0'", "RegistryError",
    ),
    "its registry is missing": ({"code": PATH_ONLY.replace("yaml", "missing")}, "cannot read", "RegistryError"),
    "its registry has a NUL": ({"code": PATH_ONLY.replace("yaml", "\\0")}, "null", "RegistryError"),
    "its registry is relative": (
        {"code": NEW + "registry='here.yaml')"}, "not an absolute path", "NoneType",
    ),
    "its registry is None": (
        {"code": NEW + "registry=None)"}, "has no registry", "NoneType",
    ),
    "a builder is outside": (
        {"code": OUTSIDE.replace("{}", "builders={'repvgg': print}")}, "adds 'repvgg', which is outside", "NoneType",
    ),
    "its layouts are a list": ({"code": OUTSIDE.replace("{}", "layouts=['acme/x']")}, "not a mapping", "NoneType"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "message", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_left_out_and_its_own_names_raise_its_error(tmp_path, parts, message, cause):
    install(tmp_path, "acme", **parts)
    install(tmp_path, "well")
    code = """
        listed = repvgg_zoo.list_models()
        assert listed == repvgg_zoo.list_models()
        emit([name for name in listed if "/" in name or name == "RepVGG_A0"])
        emit(repvgg_zoo.model_info("well/q").name)
        {ask}
        import os; os.environ["REPVGG_ZOO_PLUGINS"] = "strict"
        try: repvgg_zoo.list_models()
        except PluginError as error: emit([error.plugin, error.distribution])
    """
    done = run(textwrap.dedent(code).replace("{ask}", ASK), [tmp_path])
    listed, well, (kind, text, found_cause), strict = map(json.loads, done.stdout.splitlines())
    assert listed == ["RepVGG_A0", "well/RepVGG_Q"] and well == "well/RepVGG_Q"
    warnings = [line for line in done.stderr.splitlines() if "left out: " in line]
    assert len(warnings) == 1 and "the plugin acme (acme-repvgg 1.0)" in warnings[0]
    assert kind == "PluginError" and message in text and "acme-repvgg 1.0" in text and "\n  hint: " in text
    assert found_cause == cause or cause == "*"
    assert strict == ["acme", "acme-repvgg 1.0"]


def test_an_entry_point_with_an_invalid_namespace_is_left_out(tmp_path):
    install(tmp_path, "acme", entry_points="[repvgg_zoo.plugins]\na/b = acme_plugin:plugin\n")
    done = run(LIST, [tmp_path])
    assert "acme" not in done.stdout and "'a/b', which is not a valid namespace" in done.stderr


def test_two_distributions_in_one_namespace_are_an_error_that_names_both(tmp_path):
    install(tmp_path, "acme")
    install(tmp_path, "Acme", module="elsewhere", distribution="acme-fork", code="raise RuntimeError('loaded')")
    done = run("emit(repvgg_zoo.list_models('*/*'))" + ASK + "emit('acme_plugin' in sys.modules)", [tmp_path])
    listed, (kind, text, _), loaded = map(json.loads, done.stdout.splitlines())
    assert listed == [] and kind == "PluginError" and not loaded
    for said_where in (done.stderr, text):
        assert "acme-repvgg 1.0 (acme_plugin:plugin)" in said_where and "acme-fork 1.0 (elsewhere:" in said_where


def test_the_same_plugin_seen_twice_is_one(tmp_path):
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    install(checkout, "acme", info="egg-info")
    install(site, "acme", code="raise RuntimeError('the second copy')")
    # A package and its build for another machine bring the same object.
    install(site, "acme", module="acme_plugin_gpu", distribution="acme-gpu",
            entry_points="[repvgg_zoo.plugins]\nACME = acme_plugin:plugin\n")  # fmt: skip
    done = run("emit(repvgg_zoo.list_models('*/*'))" + ASK, [checkout, site])
    assert [json.loads(line) for line in done.stdout.splitlines()] == [["acme/RepVGG_Q"], "acme/RepVGG_Q"]
    assert done.stderr == ""


def test_of_two_copies_of_a_distribution_the_first_on_the_path_is_used(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    install(new, "acme")
    install(old, "acme", module="acme_once", code="raise RuntimeError('the old copy')")
    assert run_json(ASK, [new, old]) == "acme/RepVGG_Q"
    assert "the old copy" in run_json(ASK, [old, new])[1]


FAILS_ONCE = """\
import os
from pathlib import Path
mark = Path(__file__).with_name("mark")
if not mark.exists():
    mark.touch()
    raise OSError("the share is away")
"""


@pytest.mark.parametrize(
    ("parts", "repair"),
    [
        ({"code": FAILS_ONCE + MODULE.format(module="acme_plugin")}, ""),
        ({"yaml": "schema: 1\n"}, f"open(where + '/acme_plugin.yaml', 'w').write({registry('acme/RepVGG_Q')!r})"),
    ],
    ids=["an import", "a registry"],
)
def test_a_failed_plugin_is_tried_again_in_the_same_process(tmp_path, parts, repair):
    install(tmp_path, "acme", **parts)
    code = f"{ASK}\nwhere = {str(tmp_path)!r}\n{repair}\n{ASK}\nemit(repvgg_zoo.list_models('acme/*'))"
    first, second, listed = run_json(code, [tmp_path])
    assert first[0] == "PluginError"
    assert (second, listed) == ("acme/RepVGG_Q", ["acme/RepVGG_Q"])


def test_unreadable_metadata_is_logged_and_read_again_the_next_time(tmp_path):
    points = install(tmp_path, "acme") / "entry_points.txt"
    install(tmp_path, "well")
    right = points.read_text()
    points.write_bytes(b"\xff" + right.encode())
    code = f"{ASK}\nopen({str(points)!r}, 'w').write({right!r})\n{ASK}\nemit(repvgg_zoo.list_models('*/*'))"
    done = run("emit(repvgg_zoo.list_models('*/*'))" + code, [tmp_path])
    before, first, second, after = map(json.loads, done.stdout.splitlines())
    assert before == ["well/RepVGG_Q"] and first[0] == "UnknownModelError"
    assert second == "acme/RepVGG_Q" and after == ["acme/RepVGG_Q", "well/RepVGG_Q"]
    assert "acme_repvgg-1.0.dist-info cannot be read: UnicodeDecodeError" in done.stderr


def test_changes_of_the_installed_plugins_are_noticed_in_a_running_process(tmp_path):
    site, later = tmp_path / "site", tmp_path / "later"
    site.mkdir()
    install(later, "acme")
    code = f"""
        import os, shutil
        site, later = {str(site)!r}, {str(later)!r}
        emit(repvgg_zoo.list_models("*/*"))
        shutil.copytree(later, site, dirs_exist_ok=True)
        emit(repvgg_zoo.list_models("*/*"))
        yaml = site + "/acme_plugin.yaml"
        text = open(yaml).read()
        open(yaml, "w").write(text.replace("RepVGG_Q", "RepVGG_Q10"))
        emit(repvgg_zoo.list_models("*/*"))
        shutil.rmtree(site + "/acme_repvgg-1.0.dist-info")
        emit(repvgg_zoo.list_models("*/*"))
    """
    assert run_json(code, [site]) == [[], ["acme/RepVGG_Q"], ["acme/RepVGG_Q10"], []]


def test_a_slow_plugin_is_logged_and_built_in_names_do_not_wait_for_it(tmp_path):
    install(tmp_path, "acme", code="import time; time.sleep(1.2)\n" + MODULE.format(module="acme_plugin"))
    code = """
        repvgg_zoo.model_info("RepVGG_A0")
        emit("acme_plugin" in sys.modules)
        repvgg_zoo.list_models()
        emit("acme_plugin" in sys.modules)
        repvgg_zoo.list_models()
    """
    done = run(code, [tmp_path])
    assert done.stdout == "false\ntrue\n"
    assert done.stderr.count("the plugin acme (acme-repvgg 1.0) took 1.") == 1


@pytest.mark.parametrize(
    "start",
    [
        "import repvgg_zoo; listed = repvgg_zoo.list_models()",
        "import repvgg_zoo; where = __file__.replace('.py', '.yaml')\nfor _ in '12': repvgg_zoo.register(where)",
    ],
    ids=["lists models", "registers itself twice"],
)
def test_a_plugin_may_call_the_package_while_it_is_imported(tmp_path, start):
    install(tmp_path, "acme", code=start + "\n" + MODULE.format(module="acme_plugin"))
    assert run_json("emit(repvgg_zoo.list_models('*/*'))\n" * 2 + ASK, [tmp_path]) == [
        ["acme/RepVGG_Q"], ["acme/RepVGG_Q"], "acme/RepVGG_Q",
    ]  # fmt: skip


def test_threads_that_list_at_once_see_the_same(tmp_path):
    install(tmp_path, "acme", code="import time; time.sleep(0.1)\n" + MODULE.format(module="acme_plugin"))
    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            emit(len(set(pool.map(lambda _: tuple(repvgg_zoo.list_models()), range(8)))))
    """
    done = run(code, [tmp_path])
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_off_disables_plugins(tmp_path):
    install(tmp_path, "acme", code="raise RuntimeError('loaded')")
    done = run(LIST + ASK, [tmp_path], {"REPVGG_ZOO_PLUGINS": "OFF"})
    listed, (kind, text, _) = map(json.loads, done.stdout.splitlines())
    assert listed == BUILT_IN and kind == "UnknownModelError" and "REPVGG_ZOO_PLUGINS=off" in text and done.stderr == ""


def test_an_invalid_mode_is_an_argument_error():
    code = "try: repvgg_zoo.list_models()\nexcept ArgumentError as error: emit(str(error))"
    assert run_json(code, environ={"REPVGG_ZOO_PLUGINS": "of"}).startswith(
        "REPVGG_ZOO_PLUGINS is 'of'\n  hint: use on,"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("acme/RepVGG_QQ", "did you mean acme/RepVGG_Q"),
        ("acne/RepVGG_Q", "plugin acne is not installed"),
        ("RepVGG_Q", "plugins have names that start with acme/"),
    ],
)
def test_an_unknown_name_has_a_hint_about_plugins(tmp_path, name, hint):
    install(tmp_path, "acme")
    code = f"try: repvgg_zoo.model_info({name!r})\nexcept UnknownModelError as error: emit(error.hint)"
    assert hint in run_json(code, [tmp_path])


def test_a_plugin_cannot_take_a_built_in_alias_in_its_own_namespace(tmp_path):
    install(tmp_path, "timm", yaml=registry("timm/RepVGG_Q", "aliases: ['timm/repvgg_a0.rvgg_in1k']\n"))
    code = "emit(repvgg_zoo.model_info('timm/repvgg_a0.rvgg_in1k').name)" + ASK.replace("acme", "timm")
    built_in, (kind, text, _) = run_json(code, [tmp_path])
    assert built_in == "RepVGG_A0" and kind == "PluginError" and "RepVGG_A0.timm's" in text


def test_missing_folders_and_files_on_the_path_are_ignored(tmp_path):
    install(tmp_path / "site", "acme")
    (tmp_path / "file").write_text("no archive")
    done = run(ASK, [tmp_path / "missing", tmp_path / "file", tmp_path / "site"])
    assert json.loads(done.stdout) == "acme/RepVGG_Q"


def test_the_error_crosses_processes_with_its_data():
    error = PluginError("broken", plugin="acme", distribution="acme 1.0", hint="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert (again.plugin, again.distribution, str(again)) == ("acme", "acme 1.0", str(error))
