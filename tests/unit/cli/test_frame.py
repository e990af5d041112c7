"""The command frame: quick help, lazy commands, and every outcome an exit code with a message."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import typer

from symbolic_residue import __version__
from symbolic_residue.cli import _app, main
from symbolic_residue.cli._errors import visible
from symbolic_residue.errors import ModelError, PromptError

RESIDUE = Path(sys.executable).parent / "residue"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["runs", "--help"]])
def test_help_is_quick(words):
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([RESIDUE, *words], capture_output=True, text=True, check=False)
        took.append(time.perf_counter() - start)
        assert done.returncode == 0 and done.stderr == ""
    assert min(took) < 0.5


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from symbolic_residue.cli import main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0\n"
        "heavy = {'torch', 'transformers', 'polars', 'scipy', 'pydantic', 'numpy', 'symbolic_residue.store'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_version_the_version(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in _app.COMMANDS.items():
        assert name in out and command.help.split(":")[0] in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"residue {__version__}\n"


@pytest.mark.parametrize("name", _app.COMMANDS)
def test_every_command_can_be_loaded(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"residue {name}" in capsys.readouterr().out


def test_completion_knows_the_commands():
    env = os.environ | {"_RESIDUE_COMPLETE": "complete_bash", "COMP_WORDS": "residue ru", "COMP_CWORD": "1"}
    done = subprocess.run([RESIDUE], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.split() == ["runs"]


@pytest.fixture
def command(monkeypatch):
    """Puts a function, or a typer application, behind ``residue trial``."""

    def put(target):
        module = types.ModuleType("trial_command")
        module.trial = target  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trial_command", module)
        monkeypatch.setitem(_app.COMMANDS, "trial", _app.LazyCommand("trial_command", "trial", "Try."))

    return put


def raising(error: BaseException):
    def trial(as_json: bool = typer.Option(False, "--json"), words: list[str] = typer.Argument(None)) -> None:  # noqa: B008
        raise error

    return trial


def test_a_function_becomes_a_command(command, capsys):
    def trial(name: str, count: int = 1) -> None:
        """Say a name."""
        typer.echo(name * count)

    command(trial)
    assert main(["trial", "ab", "--count", "2"]) == 0
    assert capsys.readouterr().out == "abab\n"
    assert main(["trial", "--help"]) == 0
    out = capsys.readouterr().out
    assert "residue trial" in out and "Say a name." in out


def test_an_application_becomes_a_group_even_with_one_command(command, capsys):
    application = typer.Typer()

    @application.command("only")
    def only() -> None:
        typer.echo("here")

    command(application)
    assert main(["trial", "only"]) == 0 and capsys.readouterr().out == "here\n"
    assert main(["trial"]) == 2


def test_refusals_are_three_lines(command, capsys):
    command(raising(ModelError("No [bold]model[/bold]\x1b[2J here.", why="Line one\nline two.", todo="Fetch ‮it.")))
    assert main(["trial"]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == ("Error: No [bold]model[/bold]\\x1b[2J here.\nWhy: Line one\\nline two.\nDo: Fetch \\u202eit.\n")


def test_long_messages_stay_on_their_line(command, capsys):
    command(raising(PromptError("word " * 100)))
    assert main(["trial"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_refusals_as_json(command, capsys):
    command(raising(ModelError("ü\x1b", why="w", todo="t")))
    assert main(["trial", "--json"]) == 3
    assert json.loads(capsys.readouterr().err) == {"error": "ModelError", "what": "ü\x1b", "why": "w", "todo": "t", "exit_code": 3}
    assert main(["trial", "--", "--json"]) == 3  # a word, not an option
    assert capsys.readouterr().err.startswith("Error: ")


def test_ctrl_c(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert main(["trial"]) == 130
    assert capsys.readouterr().err == "Interrupted\n"
    assert main(["trial", "--json"]) == 130
    assert json.loads(capsys.readouterr().err)["exit_code"] == 130


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_real_ctrl_c():
    code = (
        "import sys, time, types; from symbolic_residue.cli import _app, main\n"
        "def trial():\n    sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(30)\n"
        "sys.modules['t'] = types.ModuleType('t'); sys.modules['t'].trial = trial\n"
        "_app.COMMANDS['trial'] = _app.LazyCommand('t', 'trial', '')\n"
        "sys.exit(main(['trial']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "Interrupted\n"


def test_bugs_are_called_bugs(command, capsys, monkeypatch):
    monkeypatch.delenv("RESIDUE_TRACEBACK", raising=False)
    command(raising(ZeroDivisionError("by [zero]\n")))
    assert main(["trial"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("This is a bug in symbolic_residue: ZeroDivisionError: by [zero]\\n\n")
    assert "report" in err and "RESIDUE_TRACEBACK=1" in err and "Traceback" not in err
    monkeypatch.setenv("RESIDUE_TRACEBACK", "1")
    assert main(["trial"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert main(["trial", "--json"]) == 70
    assert json.loads(capsys.readouterr().err.splitlines()[0])["error"] == "ZeroDivisionError"


@pytest.mark.parametrize(("error", "code"), [(typer.Exit(1), 1), (typer.Exit(), 0), (typer.Abort(), 130)])
def test_exits_keep_their_code(command, error, code):
    command(raising(error))
    assert main(["trial"]) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnus"], "Did you mean 'runs'"),
        (["--nonsense"], "No such option"),
        (["runs", "show"], "Missing argument 'RUN'"),
        (["runs", "list", "a", "b"], "unexpected extra argument"),
    ],
)
def test_mistakes_in_the_command_line(words, said, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.splitlines()[-1].startswith("Do: See: residue")
    assert main([*words, "--json"]) == 2
    assert said in json.loads(capsys.readouterr().err)["what"]


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "diagnose" in shown.out + shown.err and "Error" not in shown.out + shown.err


def test_a_command_that_is_not_there_is_refused_but_a_broken_one_is_a_bug(monkeypatch, capsys):
    monkeypatch.setitem(_app.COMMANDS, "gone", _app.LazyCommand("symbolic_residue.cli._gone", "gone", "Gone."))
    assert main(["gone"]) == 2
    assert "'gone' is not part of this version" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "Gone." in capsys.readouterr().out

    def broken(name):
        raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")

    monkeypatch.setattr(_app.importlib, "import_module", broken)
    assert main(["gone"]) == 70
    assert "ModuleNotFoundError" in capsys.readouterr().err


def test_visible():
    assert visible("plain ünïcode 日本 👩‍💻") == "plain ünïcode 日本 👩‍💻"
    assert visible("a\x00\t\x9b\u2028\udcff\u202e") == "a\\x00\\t\\x9b\\u2028\\udcff\\u202e"


def test_a_terminal_without_unicode_is_served(tmp_path):
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run([RESIDUE, "runs", "list", str(tmp_path / "ü")], capture_output=True, env=env, check=False)
    assert done.returncode == 5 and b"Traceback" not in done.stderr and b"\\xfc" in done.stderr
