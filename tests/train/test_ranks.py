"""Several processes at one training take the steps that one process takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilefit.errors import InputError
from mobilefit.train import fit, open_fabric
from mobilefit.train.ranks import SyncBatchNorm2d, synchronized

from .small import PRESET, RECIPE, network, shades, with_fixed_statistics

STEPS, LR = 50, 2.0


def started(
    out: Path, processes: int, *, script: str = "train/ranks_script.py", **options: Any
) -> subprocess.Popen[str]:
    out.mkdir(exist_ok=True)
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "--max-restarts=1", script, str(out), json.dumps(options),
    ]  # fmt: skip
    tests = Path(__file__).parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    return subprocess.Popen(words, cwd=tests, env=env, stderr=subprocess.PIPE, text=True)


def run(out: Path, processes: int, **options: Any) -> dict[str, Any]:
    process = started(out, processes, **options)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert found["processes"] == processes
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    run(out, 1, steps=STEPS, sync_bn=True, lr=LR)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    run(out, 2, steps=STEPS, sync_bn=True, lr=LR)
    return out


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def test_two_processes_with_synchronized_batch_norm_take_ones_steps(one: Path, two: Path) -> None:
    losses, theirs = result(one)["losses"], result(two)["losses"]
    assert len(losses) == STEPS and losses[-1] < 0.7 * losses[0]
    np.testing.assert_allclose(theirs, losses, atol=1e-4)
    a, b = torch.load(one / "net.pt"), torch.load(two / "net.pt")
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_without_synchronization_they_do_not(one: Path, tmp_path: Path) -> None:
    losses = result(one)["losses"]
    theirs = run(tmp_path, 2, steps=STEPS, sync_bn=False, lr=LR)["losses"]
    assert np.abs(np.subtract(theirs, losses)).max() > 1e-3


def test_evaluation_over_processes_is_exactly_ones(one: Path, two: Path) -> None:
    """53 images in batches of 8 over two processes: seven batches, the last of five images."""
    assert np.array_equal(np.load(one / "logits.npy"), np.load(two / "logits.npy"))
    assert result(one)["confusion"] == result(two)["confusion"]
    assert result(one)["count"] == result(two)["count"] == 53


def test_torchrun_starts_a_killed_process_again_from_the_last_checkpoint(two: Path, tmp_path: Path) -> None:
    losses = run(tmp_path, 2, steps=STEPS, sync_bn=True, lr=LR, killed_at=23)["losses"]
    assert losses == result(two)["losses"]
    a, b = torch.load(two / "net.pt"), torch.load(tmp_path / "net.pt")
    assert all(value.equal(b[key]) for key, value in a.items())


def test_the_processes_part_before_python_ends(two: Path) -> None:
    assert [(two / f"joined-{rank}").read_text() for rank in (0, 1)] == ["False", "False"]


def test_the_first_process_alone_writes(two: Path) -> None:
    names = {path.name for path in (two / "run").iterdir()}
    assert names == {"best.safetensors", "checkpoint.pt", "metrics.jsonl"}
    rows = (two / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, STEPS + 1))


def test_accumulated_parts_are_one_batch_but_for_batch_norm(tmp_path: Path) -> None:
    """With frozen statistics in every row nothing but rounding differs."""
    whole, parts = with_fixed_statistics(network()), with_fixed_statistics(network())
    for net, accumulate in ((whole, 1), (parts, 4)):
        recipe = replace(RECIPE, accumulate=accumulate, dropout=0.0, ema_decay=None)
        fit(net, shades(), preset=PRESET, seed=5, steps=6, accelerator="cpu", recipe=recipe)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_synchronized_batch_norm_is_batch_norm_in_one_process(tmp_path: Path) -> None:
    """Forward, gradients and statistics, against torch's own."""
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        own, ours = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
        with torch.no_grad():
            own.weight.copy_(torch.rand(5))
            own.bias.copy_(torch.rand(5))
        ours.load_state_dict(own.state_dict())
        x = torch.randn(6, 5, 4, 4) * 3 + 1
        there, here = (x.clone().requires_grad_() for _ in range(2))
        expected = own(there)
        with synchronized(ours, True):
            assert type(ours) is SyncBatchNorm2d
            found = ours(here)
        assert type(ours) is nn.BatchNorm2d
        weights = torch.randn_like(expected)
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.weight.grad, own.weight.grad, rtol=1e-4, atol=1e-5)
        for key, value in own.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    fabric = open_fabric("cpu")
    with pytest.raises(InputError, match="a batch of 8 images cannot be divided into 1 processes x 8 parts"):
        fit(network(), shades(), preset=PRESET, recipe=replace(RECIPE, accumulate=8), fabric=fabric)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_accelerator_that_is_not_here_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot train on 1 x 'cuda' here") as caught:
        open_fabric("cuda")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="16-mixed needs a GPU"):
        open_fabric("cpu", "16-mixed")
