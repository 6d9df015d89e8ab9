"""`dev` finds an interpreter wherever it is and creates its environment once, whatever happens on the way.

The interpreters here are small shell scripts that answer as a Python would, so that no test installs anything; PATH and
HOME are set, so that none sees the machine's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest

DEV = Path(__file__).resolve().parents[2] / "dev"
TOOLS = ("sh", "basename", "cat", "cksum", "cp", "dirname", "mkdir", "mktemp", "rm", "sleep", "tr")

# Each call of `-m venv`, `-m pip` and `-m hatchling` leaves a line in the log. If the file `pip-does` beside the log
# exists, it is what pip runs when it installs the lock.
INTERPRETER = """#!/bin/sh
for last; do :; done
case "$1 $2" in
"-I -c") [ "$last" = {version} ] ;;
"-m venv") echo venv >>{log}; mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m hatchling") echo build >>{log}; : >"$last/repvgg_zoo.whl" ;;
"-m pip")
    case $last in
    *.whl) echo package >>{log} ;;
    *) echo pip >>{log}; if test -e {pip_does}; then . {pip_does}; fi ;;
    esac ;;
"-c "*fcntl*) exec {real} "$@" ;;
"-c "*platform*) echo {version}.1 ;;
*)
    echo "ran $* in $PWD with PYTHONPATH=$PYTHONPATH"
    case "$* " in *" ${{FAKE_FAILS:-nothing}} "*) exit 4 ;; esac
    exit "${{FAKE_EXIT:-0}}"
    ;;
esac
"""


NEW = "venv pip build package"  # the log of a whole installation


class Machine:
    """A simulated machine with a checkout on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home, self.bin, self.late_bin, self.tools = (root / name for name in ("home", "bin", "late", "tools"))
        self.checkout = root / "checkout"
        for folder in (self.home, self.bin, self.late_bin, self.tools, self.checkout):
            folder.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(str(shutil.which(tool)))
        self.dev = shutil.copy(str(DEV), str(self.checkout / "dev"))
        self.lock = self.checkout / "requirements.lock"
        self.lock.write_text("numpy==1.26.4\n")
        self.project = self.checkout / "pyproject.toml"
        self.project.write_text('[project]\nname = "repvgg-zoo"\n')
        self.log, self.pip_does = root / "log", root / "pip-does"
        self.log.touch()

    def script(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def python(self, path: str, version: str) -> Path:
        fields = {"version": version, "log": self.log, "pip_does": self.pip_does, "real": sys.executable}
        return self.script(self.root / path, INTERPRETER.format(**fields))

    def broken_shim(self, path: str) -> Path:
        return self.script(self.root / path, "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")

    def environment(self, **more: str) -> Dict[str, str]:
        path = os.pathsep.join(str(folder) for folder in (self.bin, self.late_bin, self.tools))
        return {"HOME": str(self.home), "PATH": path, **more}

    def start(self, *arguments: str, cwd: Optional[Path] = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.dev), *arguments],
            cwd=str(cwd or self.checkout),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, cwd: Optional[Path] = None, **more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, cwd=cwd, **more)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def logged(self) -> str:
        return " ".join(self.log.read_text().split())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# Finding an interpreter ---------------------------------------------------------------------------------------


PYENV = "home/.pyenv/versions"
UV = "home/.local/share/uv/python/cpython-3.9.18-linux/bin/python3"
ASDF = "home/.asdf/installs/python/3.8.1/bin/python3"
MISE = "home/.local/share/mise/installs/python/3.10.1/bin/python3"


@pytest.mark.parametrize(
    ("pythons", "shims", "expected"),
    [
        ({"bin/python3.10": "3.10"}, [], "bin/python3.10"),
        ({"bin/python3.8": "3.8", "bin/python3.10": "3.10"}, [], "bin/python3.10"),
        ({"bin/python3": "3.9"}, [], "bin/python3"),
        ({"bin/python": "3.8"}, [], "bin/python"),
        ({"bin/python3.9": "3.9"}, ["bin/python3.10"], "bin/python3.9"),
        ({"late/python3.10": "3.10"}, ["bin/python3.10"], "late/python3.10"),
        ({"bin/python3.10": "3.11", "bin/python3.9": "3.9"}, [], "bin/python3.9"),
        ({"bin/python3": "3.11", f"{PYENV}/3.8.18/bin/python": "3.8"}, [], f"{PYENV}/3.8.18/bin/python"),
        ({f"{PYENV}/3.10.13/bin/python": "3.10"}, ["bin/python3.10"], f"{PYENV}/3.10.13/bin/python"),
        ({f"{PYENV}/3.10.13/bin/python": "3.10", "bin/python3.9": "3.9"}, [], f"{PYENV}/3.10.13/bin/python"),
        ({UV: "3.9"}, [], UV),
        ({ASDF: "3.8"}, [], ASDF),
        ({MISE: "3.10"}, [], MISE),
        # MegEngine has wheels up to 3.10; newer ones are taken where there are none of those.
        ({"bin/python3.12": "3.12", "bin/python3.8": "3.8"}, [], "bin/python3.8"),
        ({"bin/python3.12": "3.12"}, [], "bin/python3.12"),
        ({"bin/python3.11": "3.11", "bin/python3.13": "3.13"}, ["bin/python3.10"], "bin/python3.13"),
    ],
)
def test_the_newest_supported_interpreter_that_runs_is_used(
    machine: Machine, pythons: Dict[str, str], shims: List[str], expected: str
) -> None:
    for path, version in pythons.items():
        machine.python(path, version)
    for path in shims:
        machine.broken_shim(path)
    done = machine.run("which-python")
    assert (done.returncode, done.stdout) == (0, f"{machine.root / expected}\n"), done.stderr


def test_the_interpreter_that_runs_this_test_is_accepted(machine: Machine) -> None:
    done = machine.run("which-python", REPVGG_ZOO_PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n"), done.stderr


@pytest.mark.parametrize("job", ["which-python", "test"])
def test_without_an_interpreter_the_ways_to_install_one_are_printed(machine: Machine, job: str) -> None:
    machine.python("bin/python3", "3.7")
    done = machine.run(job)
    assert (done.returncode, done.stdout) == (1, "")
    for way in ("uv python install 3.10", "pyenv install 3.10", "conda create", "REPVGG_ZOO_PYTHON="):
        assert way in done.stderr
    assert not (machine.checkout / ".venv").exists()


def test_uv_is_asked_for_an_interpreter_if_none_is_installed(machine: Machine) -> None:
    target = machine.home / ".local/share/uv/python/cpython-3.10.20-linux/bin/python3"
    source = machine.python("spare", "3.10")
    machine.script(machine.bin / "uv", f"#!/bin/sh\nmkdir -p {target.parent} && cp {source} {target}\n")
    done = machine.run("which-python")
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr


def test_a_requested_interpreter_that_is_not_supported_is_named(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    wrong = machine.python("wrong/python", "3.7")
    done = machine.run("test", REPVGG_ZOO_PYTHON=str(wrong))
    assert done.returncode == 1
    assert str(wrong) in done.stderr
    assert machine.logged() == ""


# Creating the environment -------------------------------------------------------------------------------------


def test_the_environment_is_created_once_and_again_when_the_lock_changes(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    assert machine.run("test").returncode == 0
    assert machine.run("test").returncode == 0
    assert machine.logged() == NEW
    machine.lock.write_text("numpy==1.24.4\n")
    assert machine.run("test").returncode == 0
    assert machine.logged() == f"{NEW} {NEW}"


def test_the_floors_have_an_environment_of_their_own_on_python_3_8(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    machine.python("bin/python3.8", "3.8")
    done = machine.run("test", "--floors", "-x")
    assert done.returncode == 0, done.stderr
    assert machine.logged().startswith("venv pip") and "package" not in machine.logged()
    assert (machine.checkout / ".venv-floors").is_dir() and not (machine.checkout / ".venv").exists()
    assert "-m pytest -m not slow" in done.stdout and done.stdout.splitlines()[-1].partition(" in /")[0].endswith(" -x")
    before = machine.logged()
    assert machine.run("test", "--floors").returncode == 0
    assert machine.logged() == before
    machine.project.write_text('[project]\nname = "repvgg-zoo"\ndependencies = []\n')
    machine.run("test", "--floors")
    assert machine.logged().count("venv") == 2, "the ranges have changed"


def test_another_interpreter_gets_an_environment_of_its_own_version(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    old = machine.python("old/python", "3.8")
    machine.run("test")
    machine.run("test", REPVGG_ZOO_PYTHON=str(old))
    assert machine.logged() == f"{NEW} {NEW}"
    machine.run("test", REPVGG_ZOO_PYTHON=str(old))
    machine.run("test", REPVGG_ZOO_PYTHON=str(old), DEV_VENV=".venv-3.8")
    assert machine.logged() == " ".join([NEW] * 3)


def test_a_failed_installation_is_reported_and_starts_over(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    machine.pip_does.write_text("exit 7")
    done = machine.run("test")
    assert done.returncode == 1
    assert "the installation failed" in done.stderr
    assert "ran" not in done.stdout
    machine.pip_does.unlink()
    assert machine.run("test").returncode == 0
    assert machine.logged() == f"venv pip {NEW}"


def test_a_killed_installation_starts_over(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    leftover = machine.checkout / ".venv" / "half-written"
    machine.pip_does.write_text(f"echo half >{leftover}; sleep 60")
    process = machine.start("test")
    deadline = time.monotonic() + 30
    while not leftover.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert leftover.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    machine.pip_does.unlink()
    done = machine.run("test")
    assert done.returncode == 0
    assert "ran -m pytest" in done.stdout
    assert not leftover.exists()


def test_several_at_once_create_one_environment(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    machine.pip_does.write_text("sleep 1")
    processes = [machine.start("test") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all("ran -m pytest" in out for out, _ in outputs)
    assert machine.logged() == NEW
    assert sum("waiting for another ./dev" in err for _, err in outputs) >= 2


def test_the_package_is_installed_again_when_its_project_file_changes(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    machine.run("test")
    machine.project.write_text('[project]\nname = "repvgg-zoo"\nversion = "2"\n')
    machine.run("test")
    machine.run("test")
    assert machine.logged() == f"{NEW} build package"


def test_the_package_is_installed_again_where_its_checkout_was_moved(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    machine.run("test")
    moved = machine.checkout.rename(machine.root / "moved")
    machine.dev = str(moved / "dev")
    assert "ran -m pytest" in machine.run("test", cwd=moved).stdout
    assert machine.logged() == f"{NEW} build package"


def test_an_environment_outside_serves_several_checkouts(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    shared = str(machine.home / ".venv-shared")
    machine.run("test", DEV_VENV=shared)
    other = shutil.copytree(machine.checkout, machine.root / "other")
    machine.dev = str(other / "dev")
    done = machine.run("test", cwd=other, DEV_VENV=shared)
    assert f"PYTHONPATH={other}" in done.stdout
    assert machine.logged() == NEW


def test_a_folder_of_another_name_is_never_removed(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    precious = machine.checkout / "results" / "precious"
    precious.parent.mkdir()
    precious.touch()
    done = machine.run("test", DEV_VENV="results")
    assert done.returncode == 1
    assert "results" in done.stderr
    assert precious.exists()


# Running a job ------------------------------------------------------------------------------------------------


def test_arguments_and_exit_status_are_passed_through(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    done = machine.run("test", "tests/a b.py", "-k", "x or y", cwd=machine.home, FAKE_EXIT="5")
    assert done.returncode == 5
    expected = f"ran -m pytest tests/a b.py -k x or y in {machine.checkout} with PYTHONPATH={machine.checkout}\n"
    assert done.stdout == expected


@pytest.mark.parametrize(("language", "status"), [("en", 4), ("zh_CN", 4), ("none", 0)])
def test_the_docs_are_built_in_both_languages_and_fail_if_one_of_them_does(
    machine: Machine, language: str, status: int
) -> None:
    machine.python("bin/python3.10", "3.10")
    done = machine.run("docs", FAKE_FAILS=f"language={language}")
    assert done.returncode == status
    assert sorted(line.split(" in ")[0].split()[-1] for line in done.stdout.splitlines()) == [
        "docs/_build",
        "docs/_build/zh_CN",
    ]


def test_python_runs_in_the_folder_it_was_called_from(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    done = machine.run("python", "script.py", cwd=machine.home)
    assert done.stdout == f"ran script.py in {machine.home} with PYTHONPATH={machine.checkout}\n"


def test_a_shell_has_the_program_and_the_python_of_the_environment(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    shell = machine.script(machine.root / "my shell", '#!/bin/sh\necho "$PATH|$VIRTUAL_ENV|$PWD|$*"; exit 3\n')
    done = machine.run("shell", "-c", "x y", cwd=machine.home, SHELL=str(shell))
    assert done.returncode == 3
    path, environment, folder, arguments = done.stdout.strip().split("|")
    assert (environment, folder, arguments) == (f"{machine.checkout}/.venv", str(machine.home), "-c x y")
    assert path.split(os.pathsep)[0] == f"{machine.checkout}/.venv/bin"
    assert machine.run("shell", "-c", "exit 4", SHELL="").returncode == 4, "sh, where SHELL is not set"


def test_the_distributions_are_built_by_the_environments_python(machine: Machine) -> None:
    machine.python("bin/python3.10", "3.10")
    done = machine.run("build", "v0.1.0", cwd=machine.home)
    assert f"ran -m tools.build v0.1.0 in {machine.checkout}" in done.stdout


@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("help",), 0), (("--help",), 0), (("tset",), 1)])
def test_help_and_mistakes_create_no_environment(machine: Machine, arguments: Tuple[str, ...], status: int) -> None:
    done = machine.run(*arguments)
    assert done.returncode == status
    assert "usage: ./dev JOB" in (done.stderr if status else done.stdout)
    assert machine.logged() == ""
