"""The command line as such: help, names, exit codes, and what it loads."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs.small import World, run

import mobilefit
from mobilefit.cli.main import VERBS
from mobilefit.errors import InputError
from mobilefit.jobs import info as info_job
from mobilefit.progress import Progress, Voice


def process(*words: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, or Python code."""
    what = ["-m", "mobilefit", *map(str, words)] if code is None else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *what], env=environment, capture_output=True, text=True, timeout=600
    )


# ---- without a verb


def test_alone_it_prints_help_and_exits_2() -> None:
    done = process()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: mobilefit ")
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.help[:30])}", done.stderr, re.M), name


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"]):
        assert run(*words) == 0
        out, err = capsys.readouterr()
        assert err == "" and all(f"  {name} " in out for name in VERBS)
        assert out.index("  design ") < out.index("  info ")  # the main job first
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"mobilefit, version {mobilefit.__version__}"


@pytest.mark.parametrize("code", [
    "import mobilefit",
    "from mobilefit.cli import main; main(['--help'])",
    "from mobilefit.cli import main; main([])",
    "from mobilefit.cli import main; main(['--version'])",
    "from mobilefit.cli import main; main(['desing'])",
])  # fmt: skip
def test_help_loads_no_torch(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)"
    done = process(code=f"import sys; {code}; print('loaded:', {heavy})")
    assert done.stdout.endswith("loaded: set()\n"), done.stdout + done.stderr


# ---- names


@pytest.mark.parametrize("words", [["desing"], ["desing", "--help"], ["desing", "x", "--out", "y"]])
def test_an_unknown_verb_names_the_nearest(words: list[str], refused: Callable[..., str]) -> None:
    assert refused(*words) == "unknown verb 'desing'; did you mean 'design'?"


def test_an_unknown_option_before_the_verb(refused: Callable[..., str]) -> None:
    said = refused("--verison")
    assert "--verison" in said and "--version" in said and said.endswith("see mobilefit --help")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["info", "mobilenet_v3_smal"], ["'mobilenet_v3_smal'", "did you mean 'mobilenet_v3_small'?"]),
        (["info", "mobilenet_v2", "--width", "wide"], ["--width", "'wide'"]),
        (["info", "mobilenet_v2", "--rules", "tff"], ["--rules", "'tff'", "torchvision"]),
        (["info", "mobilenet_v2", "--heda", "v5"], ["--heda", "--head"]),
        (["info", "mobilenet_v3_small", "--head", "v6"], ["v6", "v5"]),
        (["info", "mobilenet_v2", "extra"], ["extra"]),
        (["info", "mobilenet_v2", "--resolution", "0"], ["0"]),
        (["info", "mobilenet_v2", "--classes", "0"], ["0"]),
        (["info", "mobilenet_v2", "--width", "0"], ["0"]),
        (["info", "mobilenet_v2", "--width", "nan"], ["nan"]),
        (["design", "x", "--latency", "2ms", "--minutes", "soon"], ["--minutes", "'soon'"]),
        (["design", "x"], ["--latency"]),
        (["adapt", "w.safetensors", "x"], ["--latency"]),
        (["evaluate", "x", "y", "--part", "tets"], ["--part", "test"]),
    ],
)
def test_a_bad_word_is_named(
    words: list[str], parts: list[str], refused: Callable[..., str]
) -> None:
    said = refused(*words)
    for part in parts:
        assert part in said


# ---- the process


def test_a_reader_that_leaves_is_no_error(world: World) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, though sooner
    done = subprocess.run(
        [sys.executable, "-m", "mobilefit", "info", str(world.spec), "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=writing,
        stderr=subprocess.PIPE, text=True, timeout=600,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_are_one_line_on_standard_error() -> None:
    done = process("predict", "nowhere.tflite", "x.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mobilefit: cannot read nowhere.tflite: No such file or directory\n"


def interrupted(config: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["info", "mobilenet_v2"], None),
        (["train", "my images", "--steps", "5"], "mobilefit train 'my images' --steps 5 --resume"),
        (["train", "x", "--resume"], "mobilefit train x --resume"),
        (["design", "x", "--latency", "70%"], "mobilefit design x --latency 70%"),
        (["adapt", "w", "x", "--latency", "2ms"], "mobilefit adapt w x --latency 2ms"),
        (["bench", "a.tflite"], None),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    words: list[str], hint: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import importlib

    module = importlib.import_module(f"mobilefit.{VERBS[words[0]].home}")
    monkeypatch.setattr(module, words[0], interrupted)
    assert run(*words) == 130
    said = capsys.readouterr().err.strip()
    assert said == "mobilefit: interrupted" + (f"; go on with: {hint}" if hint else "")


@pytest.mark.parametrize("own", [signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: None])
def test_sigterm_ends_a_verb_and_is_then_what_it_was(
    own: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(config: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(info_job, "info", terminated)
    before = signal.signal(signal.SIGTERM, own)
    try:
        assert run("info", "mobilenet_v2") == 143
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.strip() == "mobilefit: terminated"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(info_job, "info", broken)
    with pytest.raises(ZeroDivisionError):
        run("info", "mobilenet_v2")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_letters_that_standard_output_lacks_are_escaped(encoding: str) -> None:
    code = "import sys; from mobilefit.cli import main; main(['--version']); print('a 猫 \\udce9')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    lines = done.stdout.decode(encoding).splitlines()
    assert lines[-1] == ("a 猫 \\udce9" if encoding == "utf-8" else r"a \u732b \udce9")


# ---- what the system does not take


@pytest.mark.parametrize("words", [
    ("info", "x" * 300 + ".json"),
    ("train", "photos", "--weights", "x" * 300),
    ("export", "x" * 300, "photos"),
    ("predict", "x" * 300 + ".tflite", "a.png"),
    ("report", "x" * 300),
])  # fmt: skip
def test_a_name_that_no_file_can_have(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], world: World, tmp_path: Path
) -> None:
    words = tuple(str(world.images) if word == "photos" else word for word in words)
    assert run(*words, *(("--out", tmp_path / "run") if words[0] in ("train", "export") else ())) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mobilefit: ")]
    assert len(lines) == 1 and "x" * 300 in lines[0] and "File name too long" in lines[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EMFILE, errno.ENOTDIR])
@pytest.mark.parametrize("filename", [None, "runs/a/race"])
def test_what_the_system_refuses_is_no_traceback(
    code: int, filename: str | None, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def fail(config: Any) -> None:
        raise OSError(code, os.strerror(code), filename)

    monkeypatch.setattr(info_job, "info", fail)
    said = refused("info", "x")
    assert os.strerror(code) in said and (filename or "") in said


@pytest.mark.parametrize("error", [
    OSError(errno.EBADF, os.strerror(errno.EBADF)),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "runs/a/netadapt/step_003.safetensors"),
])  # fmt: skip
def test_another_error_of_the_system_is_a_defect(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a verb itself was to write before it reads it, say."""

    def fail(config: Any) -> None:
        raise error

    monkeypatch.setattr(info_job, "info", fail)
    with pytest.raises(type(error)):
        run("info", "x")


# ---- what is printed


HOSTILE = ("\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202egnp.exe", "bell\x07", "del\x7f\x08")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_no_terminal_raw(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On both streams, in an error, in a line of progress and in what a verb prints."""

    def show(config: Any) -> None:
        voice = Voice()
        voice(f"left out: {name}")
        with Progress(2, f"training {name}") as bar:
            bar.update(1, name)
        print(f"{name}  99.0 %")
        raise InputError(f"cannot use {name} as an image")

    monkeypatch.setattr(info_job, "info", show)
    assert run("info", "x") == 2
    printed = capsys.readouterr()
    assert "99.0 %" in printed.out and "cannot use" in printed.err and "left out" in printed.err
    for text in (printed.out, printed.err):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), text
