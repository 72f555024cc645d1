"""A training that was stopped, in whatever way, goes on as if it had not been."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilefit import runs
from mobilefit.errors import InputError
from mobilefit.nn import Network
from mobilefit.train import classify, plan, run
from mobilefit.train.checkpoint import load_checkpoint, save_checkpoint
from mobilefit.train.trainer import Trainer

from .small import SPEC, STEPS, network, rows, same_weights, train


@dataclass
class Undisturbed:
    net: Network
    rows: list[dict[str, float]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    out = tmp_path_factory.mktemp("undisturbed")
    net = network()
    train(net, out, checkpoint_every=5)
    return Undisturbed(net, rows(out))


def finish(out: Path, undisturbed: Undisturbed) -> None:
    """Resume, with other weights if a checkpoint replaces them, and see that nothing differs."""
    net = network(seed=99 if (out / "checkpoint.pt").exists() else 0)
    result = train(net, out, checkpoint_every=5, resume=True)
    assert result.steps == STEPS
    assert same_weights(net, undisturbed.net)
    assert rows(out) == undisturbed.rows


def interrupting(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, act: Callable[[], None]
) -> None:
    """Makes the ``at``-th call of a function do ``act`` first."""
    original, calls = getattr(owner, name), iter(range(1, 10_000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 4, 11, 30])
def test_interrupted_in_a_step(
    at: int, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupting(patch, Trainer, "step", at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(network(), tmp_path, checkpoint_every=5)
    finish(tmp_path, undisturbed)


def between_batches(at: int) -> Callable[..., Iterator[Any]]:
    original, given = run.by_workers, iter(range(1, 10_000))

    def batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in original(*args, **kwargs):
            if next(given) == at:
                raise KeyboardInterrupt
            yield batch

    return batches


@pytest.mark.parametrize("at", [1, 8, 13])
def test_interrupted_between_steps_saves_at_once(
    at: int, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, "by_workers", between_batches(at))
        with pytest.raises(KeyboardInterrupt):
            train(network(), tmp_path, checkpoint_every=5)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["step"] == at - 1
    finish(tmp_path, undisturbed)


def test_the_seconds_of_a_run_outlast_an_interruption(tmp_path: Path, monkeypatch: Any) -> None:
    interrupted(tmp_path, monkeypatch)
    before = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["seconds"]
    result = train(network(), tmp_path, checkpoint_every=5, resume=True)
    assert before > 0 and result.total_seconds == pytest.approx(before + result.seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "at", "step"), [("evaluate", 1, 6), ("evaluate", 5, 30), ("append_jsonl", 7, 7)]
)
def test_ctrl_c_waits_for_the_step_and_its_row(
    name: str, at: int, step: int, undisturbed: Undisturbed, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupting(patch, classify if name == "evaluate" else run, name, at, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(network(), tmp_path, checkpoint_every=5)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["step"] == step == rows(tmp_path)[-1]["step"]
    finish(tmp_path, undisturbed)


def test_a_second_ctrl_c_does_not_wait(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one should have come through")

    with monkeypatch.context() as patch:
        interrupting(patch, classify, "evaluate", 2, twice)
        with pytest.raises(KeyboardInterrupt):
            train(network(), tmp_path, checkpoint_every=5)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 10
    finish(tmp_path, undisturbed)


def test_the_loss_of_a_row_spans_the_interruption(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(plan, "ROWS", 10)  # a row every three steps
    train(network(), tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(run, "by_workers", between_batches(9))
        with pytest.raises(KeyboardInterrupt):
            train(network(), tmp_path / "b")
    train(network(), tmp_path / "b", resume=True)
    assert [row["step"] for row in rows(tmp_path / "a")] == list(range(3, 31, 3))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mobilefit.train import checkpoint, run
from train.small import network, train

torch.set_num_threads(1)
where, out = sys.argv[1], Path(sys.argv[2])
write, append = checkpoint.write_atomic, run.append_jsonl

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killed_write(path, data):
    if (out / "metrics.jsonl").read_text().count("\\n") == 15:
        with (out / ".checkpoint.pt.half").open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            die()
    write(path, data)

def killed_append(path, row):
    if row["step"] == 13:
        with path.open("a") as file:
            file.write('{"step": 13, "lo')
            file.flush()
            die()
    append(path, row)

if where == "checkpoint":
    checkpoint.write_atomic = killed_write
else:
    run.append_jsonl = killed_append
train(network(), out, checkpoint_every=5)
"""


@pytest.mark.parametrize("where", ["checkpoint", "row"])
def test_killed(where: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(tmp_path)],
        cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 10
    finish(tmp_path, undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_ten_times_at_any_moment(
    workers: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """SIGKILL after a random time, in a process with data workers of its own; then on from there."""
    random = np.random.default_rng(workers)
    context = multiprocessing.get_context("forkserver")  # loads torch once: ten times take a minute
    context.set_forkserver_preload(["mobilefit.train", "timm.optim"])
    options = {"checkpoint_every": 5, "resume": True, "workers": workers}
    killed_at = []
    for target in sorted(random.integers(1, STEPS, 10)):
        step = context.Value("i", 0)
        process = context.Process(target=slowly, args=(tmp_path, options, step), daemon=False)
        process.start()
        assert process.pid is not None
        while process.is_alive() and step.value < target:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 2 * PAUSE))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(step.value)
    net = network(seed=99)
    train(net, tmp_path, **options)
    assert len(set(killed_at)) > 5, killed_at
    assert same_weights(net, undisturbed.net) and rows(tmp_path) == undisturbed.rows


PAUSE = 0.03


def slowly(out: Path, options: dict[str, Any], number: Any) -> None:
    """Train with pauses, so that a kill can come anywhere; tells the number of the step."""
    torch.set_num_threads(1)
    step = Trainer.step

    def paused(self: Trainer, *batch: Any) -> float:
        number.value = self.done + 1
        time.sleep(PAUSE)
        return step(self, *batch)

    Trainer.step = paused  # type: ignore[method-assign]
    train(network(), out, **options)


def test_stopped_before_the_first_checkpoint(undisturbed: Undisturbed, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3}\n{"step": 2, "lo')
    finish(tmp_path, undisturbed)


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds a training of 10 steps; returns its checkpoint."""
    with monkeypatch.context() as patch:
        interrupting(patch, Trainer, "step", 12, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(network(), out, checkpoint_every=5)
    return out / "checkpoint.pt"


def test_damaged_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted(tmp_path, monkeypatch)
    whole = path.read_bytes()
    garbage = bytearray(whole)
    garbage[: len(whole) // 2] = bytes(len(whole) // 2)
    for data in (b"", b"garbage", whole[:100], whole[: len(whole) // 2], whole[:-30], garbage):
        path.write_bytes(data)
        net = network()
        with pytest.raises(InputError, match="not a readable checkpoint: damaged") as caught:
            train(net, tmp_path, checkpoint_every=5, resume=True)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert same_weights(net, network()) and path.read_bytes() == data
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        train(network(), tmp_path, checkpoint_every=5, resume=True)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"seed": 6}, "seed 5 there, 6 now"),
        ({"lr": 0.1}, "lr 0.3 there, 0.1 now"),
        ({"steps": 24}, "steps 30 there, 24 now"),
        ({"augment": "none", "optimizer": "sgd"}, "optimizer 'rmsprop_tf' there, 'sgd' now; augment"),
    ],
)
def test_foreign_checkpoints_are_refused(
    options: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = interrupted(tmp_path, monkeypatch)
    before = path.read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="belongs to another training: .*" + what):
        train(network(), tmp_path, resume=True, **{"checkpoint_every": 5, **options})
    assert before == (path.read_bytes(), (tmp_path / "metrics.jsonl").read_bytes())


def test_another_networks_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="another training: network 'small "):
        train(network(spec=SPEC.classes(4)), tmp_path, checkpoint_every=5, resume=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        calls = iter(range(1, 100))
        sync = os.fsync

        def fsync(handle: int) -> None:
            checkpoint = "checkpoint.pt" in os.readlink(f"/proc/self/fd/{handle}")
            if checkpoint and next(calls) == 3:  # step 15
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        patch.setattr(runs.os, "fsync", fsync)
        with pytest.raises(InputError, match=r"cannot write .*checkpoint.pt: No space left"):
            train(network(), tmp_path, checkpoint_every=5)
    assert {path.name for path in tmp_path.iterdir()} == {"best.safetensors", "checkpoint.pt", "metrics.jsonl"}
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 10
    finish(tmp_path, undisturbed)


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"seed": 1}, {"step": 3})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*checkpoint.pt: File too large"):
            save_checkpoint(path, {"seed": 1}, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path, {"seed": 1}) == {"step": 3}
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("row", ["null", "{}", '{"step": "5", "loss": 1}', '{"step": 5, "loss": 1, "val_top1": null}'])
def test_a_row_that_is_none_of_the_historys_is_named(row: str, tmp_path: Path) -> None:
    train(network(), tmp_path, checkpoint_every=5)
    (tmp_path / "metrics.jsonl").write_text(row + "\n" + (tmp_path / "metrics.jsonl").read_text())
    with pytest.raises(InputError, match=r"metrics\.jsonl, row 1: "):
        train(network(), tmp_path, checkpoint_every=5, resume=True)


def test_a_row_that_is_there_twice_counts_once(undisturbed: Undisturbed, tmp_path: Path) -> None:
    train(network(), tmp_path, checkpoint_every=5)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], *lines]) + "\n")
    finish(tmp_path, undisturbed)


@pytest.mark.parametrize("change", [{"net": {}}, {"optimizer": 5}, {"window": 7}, {"seconds": "x"}, {"thread_counts": [1]}])
def test_a_checkpoint_of_another_shape_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    train(network(), tmp_path, checkpoint_every=5)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"state": saved["state"] | change}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="does not hold the state of this training"):
        train(network(), tmp_path, checkpoint_every=5, resume=True)
