"""The benchmark of training, with scripts of known speed in the peers' places."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks import training, training_peers
from benchmarks.training import Contender, Setting
from benchmarks.training_peers import Done, Rule, Stopwatch

BATCH = 2
RULE = Rule(warm_up=2, warm_up_seconds=0.0, steps=4, seconds=0.0, most=8, after=1)

SCRIPT = """
import json, sys, time
import torch
from torch.utils.data import DataLoader

class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.ones(4)

open({given!r}, "w").write(json.dumps(sys.argv[1:]))
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for epoch in range(1):
    for images in DataLoader(Photos(), batch_size=2):
        optimizer.zero_grad()
        net(images).sum().backward()
        time.sleep(0.02)
        optimizer.step()
print("the whole epoch")
"""
"""Two photos of 20 ms and 20 ms a step: at most 33 photos a second, two thirds of the time waiting."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photos of two classes to train on, enough for eight steps of two, and four others."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for part, count in (("train", 48), ("validation", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.jpg")
    return root


@pytest.fixture
def checkouts(tmp_path: Path) -> dict[str, Path]:
    """Checkouts of the peers, with a script that writes down what it was given."""
    for name, peer in training.PEERS.items():
        folder = tmp_path / name
        for file, text in ((peer.script, SCRIPT.format(given=str(folder / "given.json"))),
                           (peer.version, "__version__ = '9.8'\n")):  # fmt: skip
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
    return {name: tmp_path / name for name in training.PEERS}


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three contenders, and a loader whose speed is known."""
    chosen = {name: Contender(program=name) for name in ("mobilefit", "timm", "torchvision")}
    monkeypatch.setattr(training, "contenders", lambda device: chosen)

    def alone(kept: bool, networks: list[str], *_: object) -> dict[str, float]:
        return {"loader": 300.0 if kept else 100.0, **dict.fromkeys(networks, 150.0)}

    monkeypatch.setattr(training, "alone", alone)


def given(photos: Path, checkouts: dict[str, Path], out: Path) -> list[str]:
    return [
        "--data", str(photos), "--timm", str(checkouts["timm"]), "--torchvision", str(checkouts["torchvision"]),
        "--network", "mobilenet_v3_small", "--resolution", "32", "--rounds", "1", "--batch", str(BATCH),
        "--warm-up", "2", "--steps", "4", "--seconds", "0.1", "--out", str(out),
    ]  # fmt: skip


@pytest.mark.usefixtures("three")
def test_goes_on_after_a_script_that_failed_and_writes_the_page(
    photos: Path, checkouts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = checkouts["torchvision"] / training.PEERS["torchvision"].script, tmp_path / "out"
    whole = script.read_text()
    script.write_text("import torch\nraise RuntimeError('no such photo')")
    with pytest.raises(SystemExit, match=r"classification/train.py failed:(.|\n)*no such photo"):
        training.main(given(photos, checkouts, out))
    partial = out / "training.partial.jsonl"
    assert [json.loads(line).get("name") for line in partial.read_text().splitlines()[1:]] == ["mobilefit", "timm"]

    script.write_text(whole)
    capsys.readouterr()
    training.main(given(photos, checkouts, out))
    told = capsys.readouterr()
    assert "3/5" in told.err and "1/5" not in told.err and "2/5" not in told.err
    assert not partial.exists()

    found = json.loads((out / "training.json").read_text())
    ours, timm, torchvision = found["runs"][:3]
    assert ours["steps"] >= 4 and ours["images_per_s"] > 0 and 0 <= ours["data_wait"] <= 1
    for run in (timm, torchvision):
        assert 0 < run["images_per_s"] < 34
        assert 0.2 < run["data_wait"] < 1
        assert run["steps"] >= 4 and run["peak_mib"] > 50
    assert found["results"][0]["loader"]["ratio"] == 2.0
    text = (out / "training.md").read_text()
    assert text.strip() == told.out.strip()
    assert "| timm | " in text and "the script of 9.8; " in text and "96 training photos of photos" in text


def test_each_program_gets_the_same_crop_batch_and_network(photos: Path, tmp_path: Path) -> None:
    training.link(photos, tmp_path, 1)
    setting = Setting(data=tmp_path, scripts={name: Path(name) for name in training.PEERS}, batch=32,
                      device="cpu", rule=RULE)  # fmt: skip

    def arguments(program: str, *options: str) -> str:
        contender = Contender(program=program, options=options)
        script, found = training.script_of(contender, "mobilenet_v3_large", 96, setting)
        assert script == program
        return " ".join(found)

    ours, timm, torchvision = (arguments(name) for name in ("mobilefit", "timm", "torchvision"))
    for found in (ours, timm, torchvision):
        assert "--batch-size 32 --epochs 1" in found and " cpu" in found and str(tmp_path) in found
    assert "--model mobilenet_v3_large " in ours and "--resolution 96 --augment resized" in ours
    assert "--model mobilenetv3_large_100 --num-classes 2 " in timm and "--input-size 3 96 96" in timm
    assert "--color-jitter 0 --train-interpolation bilinear" in timm
    assert "--model mobilenet_v3_large " in torchvision and "--train-crop-size 96" in torchvision
    assert arguments("timm", "--channels-last").endswith(" --channels-last")


def steps(stopwatch: Stopwatch) -> Iterator[bool]:
    """Whether steps are being timed, after each step until the stopwatch has seen enough."""
    for _ in range(50):
        try:
            stopwatch.stepped()
        except Done:
            return
        yield stopwatch.quiet.exists()
    pytest.fail("the stopwatch never has enough")


def test_times_the_steps_after_the_warm_up_and_then_looks_at_memory(tmp_path: Path) -> None:
    stopwatch = Stopwatch(RULE, tmp_path / "found.json")
    assert list(steps(stopwatch)) == [False, True, True, True, True, False]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["first"], found["last"], len(found["step_s"])) == (2, 6, 4)


def test_warms_up_for_so_many_seconds_but_times_no_step_past_the_last_prepared_one(tmp_path: Path) -> None:
    rule = Rule(warm_up=2, warm_up_seconds=1e9, steps=3, seconds=1e9, most=9, after=1)
    assert sum(steps(Stopwatch(rule, tmp_path / "found.json"))) == 3
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["first"], found["last"]) == (6, 9)


def test_a_script_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('nothing to do')")
    command = {"do": "watch", "script": str(script), "arguments": [], "kept": True}
    with pytest.raises(SystemExit, match=r"nothing to do\n.*ended after 0 steps"):
        training.in_process(command, tmp_path, RULE)


def test_waiting_is_weighed_by_time_over_the_rows_that_have_of_the_steps() -> None:
    rows = [
        {"step": step, "images_per_s": rate, "data_wait": wait}
        for step, rate, wait in ((2, 1.0, 0.9), (4, 100.0, 0.5), (8, 100.0, 0.2), (10, 1.0, 0.9))
    ]
    assert training.our_wait(rows, first=2, last=8) == pytest.approx((2 * 0.5 + 4 * 0.2) / 6)
    assert training.our_wait(rows, first=3, last=7) == training.our_wait(rows, first=2, last=8)
    assert training.our_wait(rows, first=10, last=12) is None


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system tells no PSS")
def test_memory_that_processes_share_is_counted_once() -> None:
    code = "import os, sys; kept = bytearray(100 << 20); os.fork(); os.write(1, b'ready\\n'); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == process.stdout.readline() == b"ready\n"
        found = training.memory(psutil.Process(process.pid)) / 2**20
        process.communicate()
    assert 100 < found < 150


def test_says_everything_that_is_missing_and_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        training.main(["--data", str(tmp_path), "--timm", str(tmp_path)])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert f"{tmp_path} has no train.py: git clone --depth 1 --branch v" in told
    assert "--torchvision is missing: git clone " in told and "github.com/pytorch/vision DIR" in told
    assert f"{tmp_path} does not hold train/CLASS and val/CLASS" in told


@pytest.mark.parametrize("option", ["--rounds", "--batch", "--times", "--warm-up", "--steps", "--seconds"])
def test_refuses_a_number_that_is_not_above_0(
    option: str, photos: Path, checkouts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        training.main([*given(photos, checkouts, tmp_path / "out"), option, "0"])
    assert stopped.value.code == 2
    assert f"{option} is 0" in capsys.readouterr().err


def test_no_step_is_timed_for_which_some_program_prepares_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert training.most_steps(3200, 32) == 100 - 32  # torchvision's 16 workers are 32 batches ahead
    assert training.most_steps(32000, 32) == 900 - 4  # of ours a tenth is held out
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert training.most_steps(6400, 32) == 200 - 128  # timm gets a worker a core on a GPU


def test_says_how_often_to_take_photos_that_are_too_few(
    photos: Path, checkouts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*given(photos, checkouts, tmp_path / "out"), "--steps", "200"]
    with pytest.raises(SystemExit):
        training.main(arguments)
    told = capsys.readouterr().err
    assert "96 photos are too few for 202 steps of 2 " in told
    times = told.partition("take each ")[2].partition(" times")[0]
    enough = training.parser().parse_args([*arguments, "--times", times])
    assert not list(training.problems(enough))
    one_less = training.parser().parse_args([*arguments, "--times", str(int(times) - 1)])
    assert list(training.problems(one_less))


def test_photos_taken_twice_are_links_beside_each_other(photos: Path, tmp_path: Path) -> None:
    training.link(photos, tmp_path, 2)
    found = training.photos_in(tmp_path / "train")
    assert len(found) == 2 * len(training.photos_in(photos / "train")) and all(path.is_file() for path in found)
    assert len(training.photos_in(tmp_path / "val")) == 4


@pytest.mark.usefixtures("three")
def test_runs_of_other_settings_are_not_mixed(
    photos: Path, checkouts: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = training.parser().parse_args(given(photos, checkouts, out))
    training.begun(out / "training.partial.jsonl", training.head_of(options))
    with pytest.raises(SystemExit, match="holds runs of another setting; remove it, or choose another --out"):
        training.main([*given(photos, checkouts, out), "--steps", "5"])


def test_the_page_compares_by_round_and_says_whether_the_loader_is_fast_enough() -> None:
    def runs(name: str, *rates: float) -> list[dict[str, object]]:
        return [{"round": number, "name": name, "network": "n", "resolution": 64, "images_per_s": rate,
                 "data_wait": 0.25, "peak_mib": 500.0, "median_step_ms": 9.0}
                for number, rate in enumerate(rates)]  # fmt: skip

    loader = [{"name": training.LOADER, "network": None, "resolution": 64, "loader": 140.0, "n": 100.0},
              {"name": training.UNKEPT_LOADER, "network": None, "resolution": 64, "loader": 50.0}]  # fmt: skip
    # The second round was slow for all: only ratios within a round are of use.
    rows = [*runs("mobilefit", 200, 100, 210), *runs("timm", 100, 50, 70), *loader]
    found = training.summary([*rows, *[{**row, "resolution": 96} for row in rows]], "n", 64)
    assert [c["first_by_this"] for c in found["contenders"]] == [1.0, 2.0]
    assert found["loader"]["ratio"] == 1.4 and not found["loader"]["met"]
    head = {"protocol": "turns", "machine": {"cpu": "CPU", "cores": 2, "date": "now", "packages": {"torch": "9"}}, "peers": {},
            "setting": {"batch": 32, "device": "cpu", "photos": "photos"}}  # fmt: skip
    text = "\n".join(training.table([found], head))
    assert "| mobilefit | 200 (100 to 210) | 1.00 | 25% | 500 |" in text
    assert "| timm | 70 (50 to 100) | 2.00 | 25% | 500 |" in text
    assert "| n | 64 | 100 | 140 | 50 | 1.40 | **no**, at least 1.5 |" in text


@pytest.mark.parametrize("kept", [True, False])
def test_photos_that_are_not_kept_are_decoded_for_every_batch(
    kept: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilefit.data import folder, images

    decoded = []
    read_image = images.read_image
    monkeypatch.setattr(folder, "ROOM", folder.ROOM)  # put back afterwards
    monkeypatch.setattr(images, "read_image", lambda *given: decoded.append(given) or read_image(*given))
    limits = Rule(steps=1, seconds=0.0)
    training_peers._keep(kept)
    assert training_peers.loader_rate(str(photos), 32, BATCH, "cpu", limits) > 0
    assert bool(decoded) is not kept


def test_a_network_alone_takes_steps() -> None:
    assert training_peers.network_rate("mobilenet_v3_small", 32, BATCH, "cpu", Rule(steps=1, seconds=0.0)) > 0
