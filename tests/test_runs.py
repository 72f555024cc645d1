"""The standard-library floor: files of a run, errors, progress, and a cheap import."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from mobilefit import progress, runs
from mobilefit.errors import (
    InputError,
    MobilefitError,
    QualityGateError,
    did_you_mean,
    unknown,
)
from mobilefit.progress import Progress, Voice
from mobilefit.runs import (
    append_jsonl,
    atomic_file,
    file_sha256,
    read_json,
    read_jsonl,
    sha256,
    write_atomic,
    write_json,
)
from mobilefit.text import printable

# ---- writing whole files


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_is_replaced_when_the_block_ends(old_file: Path) -> None:
    with atomic_file(old_file) as file:
        file.write(b"new")
        file.flush()
        assert old_file.read_bytes() == b"old"
    assert old_file.read_bytes() == b"new"
    assert [entry.name for entry in old_file.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_file_stays_when_the_block_fails(
    old_file: Path, problem: type[BaseException]
) -> None:
    with pytest.raises(problem), atomic_file(old_file) as file:
        file.write(b"half")
        raise problem
    assert_untouched(old_file)


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_the_old_file_stays_when_the_system_fails(
    old_file: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError, match="No space left on device") as caught:
        write_atomic(old_file, b"new")
    assert str(old_file) in caught.value.message and "unchanged" in str(caught.value.hint)
    assert_untouched(old_file)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A real failure in the middle of a write, as on a full disk: no file may grow beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_old_file_stays_when_a_real_write_fails(old_file: Path) -> None:
    with file_size_limit(1000), pytest.raises(InputError, match="cannot write"):
        write_atomic(old_file, b"x" * 5000)
    assert_untouched(old_file)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="No space left on device"):
        write_atomic(path, bytes(200_000))
    assert_untouched(path)
    write_atomic(path, bytes(10_000))
    assert path.stat().st_size == 10_000


def test_a_full_disk_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"step": 1})
    with file_size_limit(40), pytest.raises(InputError, match="cannot write"):
        append_jsonl(path, {"step": 2, "text": "x" * 100})
    assert path.stat().st_size == 40  # a part of it got through
    append_jsonl(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from mobilefit.runs import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
"""


def writer(path: Path, end: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, path, end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("name", ["file.bin", "checkpoint.pt", "x", "n" * 200 + ".json", "ä[b]*.json"])
def test_the_next_save_removes_what_killed_saves_left(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    for _ in range(2):
        assert writer(path, "killed").wait() == -9
    assert len(list(tmp_path.iterdir())) == 2 and path.read_bytes() == b"old"  # the second removed the first one's
    write_atomic(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == [name] and path.read_bytes() == b"new"


def test_a_save_under_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with writer(path, "waits") as other:
        assert other.stdout is not None and other.stdout.readline() == "writing\n"
        write_atomic(path, b"mine")
        assert path.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 2
        with atomic_file(path) as file:  # within one process too
            file.write(b"outer")
            write_atomic(path, b"inner")
        assert path.read_bytes() == b"outer"
        other.communicate("")
    assert other.returncode == 0 and path.read_bytes() == b"half"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_hidden_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    names = [".file.bin.original", ".file.bin.tmp", ".file.bin.abcdefgh", ".other.bin.abcdefgh.tmp",
             ".file.bin.x.abcdefgh.tmp", ".file.bin.ABCDEFGH.tmp"]  # fmt: skip
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / ".file.bin.linklink.tmp").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / ".file.bin.pipepipe.tmp")
    write_atomic(tmp_path / "file.bin", b"new")
    assert {*names, "elsewhere", ".file.bin.linklink.tmp"} <= {entry.name for entry in tmp_path.iterdir()}


def save_often(path: Path) -> None:
    for number in range(200):
        write_atomic(path, str(number))


def test_processes_that_save_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(save_often, [path] * 4))
    assert path.read_text() == "199" and [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for write in (lambda path: write_atomic(path, b""), lambda path: append_jsonl(path, {})):
        with pytest.raises(InputError, match=r"nowhere.*No such file"):
            write(tmp_path / "nowhere" / "file")


def test_a_new_file_has_the_modes_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_text_and_json_are_written_as_utf8(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "é")
    assert (tmp_path / "text").read_bytes() == "é".encode()
    value = {"b": [1, 0.1 + 0.2, None], "a": "é"}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert (tmp_path / "value.json").read_text().startswith('{\n  "b": [\n')


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"value\.json: No such file"):
        read_json(tmp_path / "value.json")
    for content in (b"", b'{"a": ', b"\xff\xfe"):
        (tmp_path / "value.json").write_bytes(content)
        with pytest.raises(InputError, match=r"value\.json is not valid JSON"):
            read_json(tmp_path / "value.json")


# ---- JSON lines

ROWS = [{"step": 1, "loss": 0.5}, {"step": 2, "text": "a\nb é"}, {"step": 3}]


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == []
    for row in ROWS:
        append_jsonl(path, row)
    assert read_jsonl(path) == ROWS
    assert path.read_bytes().count(b"\n") == 3


def test_a_line_that_is_torn_anywhere_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, torn = (json.dumps(row) for row in ROWS[:2])
    for length in range(len(torn)):
        path.write_text(f"{first}\n{torn[:length]}")
        assert read_jsonl(path) == ROWS[:1], length
        append_jsonl(path, ROWS[2])
        assert read_jsonl(path) == [ROWS[0], ROWS[2]], length


def test_a_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(ROWS[0]))
    assert read_jsonl(path) == ROWS[:1]
    append_jsonl(path, ROWS[1])
    assert read_jsonl(path) == ROWS[:2]


def test_bytes_that_are_no_text_cost_only_their_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00\xfe\n\n{"step": 3}\n')
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


# ---- what a result depends on


def test_hashes(tmp_path: Path) -> None:
    assert sha256(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-2, B.1
    data = os.urandom((1 << 20) + 17)  # more than it reads at once
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == sha256(data) == hashlib.sha256(data).hexdigest()


def test_the_machine_is_described() -> None:
    machine = runs.machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cpu"] and machine["cores"] == os.cpu_count() and machine["memory_gib"] > 0
    assert set(machine["packages"]) >= {"torch", "numpy", "ai-edge-litert"}
    age = datetime.now(timezone.utc) - datetime.fromisoformat(machine["date"])
    assert 0 <= age.total_seconds() < 60


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PACKAGES", ("numpy", "no-such-package"))
    assert list(runs.package_versions()) == ["numpy"]


# ---- errors


def test_exit_codes() -> None:
    codes = [kind.exit_code for kind in (MobilefitError, InputError, QualityGateError)]
    assert codes == [1, 2, 3]


def test_an_error_is_one_line_with_its_hint() -> None:
    assert str(InputError("no such file")) == "no such file"
    error = InputError("no such file", "check the path")
    assert str(error) == "no such file; check the path"
    assert (error.message, error.hint) == ("no such file", "check the path")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v3_smal", "did you mean 'mobilenet_v3_small'?"),
        ("mobilenetv2", "did you mean 'mobilenet_v2'?"),
        ("yolo", ""),
        ("", ""),
    ],
)
def test_the_nearest_name(name: str, expected: str) -> None:
    assert did_you_mean(name, ["mobilenet_v2", "mobilenet_v3_small", "mnasnet_a1"]) == expected


def test_an_unknown_name_suggests_or_lists() -> None:
    choices = iter(["sgd", "adamw"])
    assert str(unknown("optimizer", "adam", choices)) == (
        "unknown optimizer 'adam'; did you mean 'adamw'?"
    )
    assert unknown("optimizer", "zzz", {"sgd": 1, "adamw": 2}).hint == "choose from sgd, adamw"


# ---- progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_without_a_terminal_a_line_comes_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "training", done=10) as shown:
        for _ in range(9):
            clock.now += 5
            shown.update(5, note="loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    # More than 15 seconds apart: at 20 and 40 of the 45 seconds, one image a second.
    assert err.splitlines() == [
        "training: 30/100 img, 1 img/s, 01:10 left loss 0.5",
        "training: 50/100 img, 1 img/s, 00:50 left loss 0.5",
    ]


def test_quick_work_shows_nothing_without_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(100, "training") as shown:
        shown.update(100)
    assert capsys.readouterr().err == ""


def test_no_label_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, None) as shown:
        clock.now += 100
        shown.update(50)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(100, "training", unit="row") as shown:
        clock.now += 100
        shown.update(50)
        shown._bar.refresh()
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "training" in text and "50.0/100" in text and "\r" in text
    assert "left" not in text  # no plain lines beside it


def test_the_voice_speaks_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Voice()("a line")
    Voice(quiet=True)("nothing")
    assert capsys.readouterr() == ("", "a line\n")
    assert (Voice().label("work"), Voice(quiet=True).label("work")) == ("work", None)


# ---- importing


@pytest.mark.parametrize(
    "module", ["mobilefit", "mobilefit.arch", "mobilefit.runs", "mobilefit.errors"]
)
def test_importing_is_cheap(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'torchvision', 'numpy'}} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == "set()", result.stderr


def test_every_public_name_is_there() -> None:
    import mobilefit

    assert sorted(mobilefit.__all__) == sorted(mobilefit._HOMES)
    for name in mobilefit.__all__:
        assert callable(getattr(mobilefit, name)), name
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        _ = mobilefit.biuld  # type: ignore[attr-defined]


def test_names_that_are_no_text_are_escaped_in_files(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.html", "caf\udce9 \ud800 é")
    assert (tmp_path / "a.html").read_text("utf-8") == "caf\\udce9 \\ud800 é"


@pytest.mark.parametrize(("text", "shown"), [("a\x1b]0;b\x07", "a\\x1b]0;b\\x07"), ("a\r\x85b", "a\\x0d\\x85b"), ("a\tb\n猫", "a\tb\n猫")])
def test_control_characters_do_not_reach_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


FORKED = """
import os, signal, sys, time
from pathlib import Path
from typing import Any
from mobilefit.runs import hold
lock = hold(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    if sys.argv[2] == "ends":
        del lock
        sys.exit()
    print(os.getpid(), flush=True)  # only now has it left the lock
    time.sleep(60)
    os._exit(0)
if sys.argv[2] == "ends":
    os.waitpid(child, 0)
    print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("child", ["lives", "ends"])
def test_a_forked_process_neither_keeps_nor_gives_up_its_parents_lock(child: str, tmp_path: Path) -> None:
    """A killed training's data workers live on for seconds."""
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKED, tmp_path, child], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    try:
        with pytest.raises(InputError, match="another process is at work"):
            runs.hold(tmp_path)
        parent.kill()
        parent.wait()
        assert runs.hold(tmp_path)
    finally:
        parent.kill()
        if child == "lives":
            os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_a_folder_or_a_pipe_in_a_records_place_is_named(read: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("folder", "Is a directory"), ("pipe", "it is not a regular file")):
        with pytest.raises(InputError, match=rf"cannot read .*{name}: {why}"):
            read(tmp_path / name)
