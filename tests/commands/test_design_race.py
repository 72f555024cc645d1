"""The race of ``mobilefit design``: sizes, networks and budgets, on a device that always takes the same time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import small
from jobs.small import SPEC, World, make_images, milliseconds, record, run

from mobilefit import arch
from mobilefit.arch import ClassifierHead, Conv, NetSpec
from mobilefit.device import Latency
from mobilefit.jobs import lab
from mobilefit.jobs.model import int8_for_timing
from mobilefit.nn import load_network
from mobilefit.pipeline import budget_run, candidates
from mobilefit.runs import read_json, read_jsonl

Refusal = Callable[..., str]
NETWORK = replace(
    SPEC, name="wide", input_size=64, last=Conv(out=256), head=ClassifierHead(num_classes=3)
)
"""With a head that is far too wide for three classes."""


def latency(size: int, network: NetSpec = NETWORK) -> float:
    return milliseconds(int8_for_timing(network.resolution(size)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for 64 px."""
    return make_images(tmp_path_factory.mktemp("large") / "shades", size=(80, 70))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "wide.json"
    path.write_text(NETWORK.to_json())
    return path


def words(images: Path | str, out: Path, latency: str, **changes: object) -> list[str]:
    options = {"latency": latency, "epochs": 1, "shrink": "none", "max_drop": 100, "out": out, **changes}
    command = ["design", str(images)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return [*command, "--quiet"]


def race(folder: Path) -> list[dict[str, Any]]:
    rungs: list[dict[str, Any]] = record(folder)["race"]
    return rungs


@pytest.fixture(scope="module")
def finished(images: Path, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A budget between the latencies at 48 and 56 px, where 56 px with a narrower head would do."""
    out = tmp_path_factory.mktemp("race") / "run"
    budget = f"{latency(56) * 0.999:.6f}ms"
    with pytest.MonkeyPatch.context() as patch:
        small.hold_steady(patch.setattr)
        assert run(*words(images, out, budget, seed_network=network)) == 0
    return out


def test_every_size_and_head_within_the_budget_races(finished: Path) -> None:
    names = {standing["name"] for standing in race(finished)[0]["standings"]}
    assert names == {"wide 48 px", "wide_head128 56 px"}
    for rung in race(finished):
        assert all(s["latency_ms"] <= record(finished)["budget_ms"] for s in rung["standings"])


def test_the_result_is_taught_by_a_larger_network_that_does_not_ship(finished: Path) -> None:
    result = record(finished)
    larger = next(row for row in result["results"] if row["kind"] == "seed")
    assert result["plan"]["taught"] and larger["latency"]["median_ms"] > result["budget_ms"]
    assert result["final"]["kind"] != "seed"
    assert result["final"]["latency"]["median_ms"] <= result["budget_ms"]
    network = load_network(finished / "model.safetensors")
    assert network.spec == NetSpec.from_dict(result["final_spec"])


def test_what_a_user_could_do_by_hand_stands_beside_it(finished: Path) -> None:
    result = record(finished)
    kinds = [row["kind"] for row in result["results"]]
    assert kinds.count("width") == 1 and kinds.count("resolution") == 1
    verdict = result["verdict"]
    assert verdict["label"] == result["final"]["label"]
    against = {row["kind"] for row in verdict["against"]}
    assert against == {"width", "resolution"} - {result["final"]["kind"]}
    assert all(row["error"] >= 0 for row in verdict["against"])


def test_several_budgets_share_the_larger_network(
    images: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.hold_steady(monkeypatch.setattr)
    out, first, second = tmp_path / "run", latency(40) * 1.1, latency(48) * 1.1
    budgets = f"{first:.6f}ms,{second:.6f}ms"
    assert run(*words(images, out, budgets, seed_network=network)) == 0
    result = record(out)
    assert len(result["designs"]) == 2
    for name, budget_ms in zip(result["designs"], (first, second)):
        own = read_json(out / name / "record.json")
        assert own["final"]["latency"]["median_ms"] <= budget_ms
        assert {"model_int8.tflite", "model_float32.tflite", "report.html"} <= {p.name for p in (out / name).iterdir()}
    assert [path.name for path in (out / "train").glob("seed-*")] == ["seed-0"]
    assert (out / "report.html").exists()

    # Interrupted at the end of the smaller one: the larger one is not exported and measured again.
    small_one, large_one = result["designs"]
    for lost in (out / "record.json", out / small_one / "record.json", out / small_one / "report.html"):
        lost.unlink()
    written = (out / large_one / "record.json").stat().st_mtime_ns
    assert run(*words(images, out, budgets, seed_network=network)) == 0
    assert (out / large_one / "record.json").stat().st_mtime_ns == written
    assert (out / small_one / "record.json").exists() and record(out)["designs"] == result["designs"]


@pytest.mark.parametrize(
    ("budgets", "part"),
    [
        ("2ms,1ms", "--latency 2ms,1ms is out of order, or names a budget twice"),
        ("1ms,1ms", "--latency 1ms,1ms is out of order, or names a budget twice"),
        ("1ms,50%", "--latency 1ms,50% mixes times and shares"),
        ("1ms,", "'' is not a latency"),
        ("1ms,-2ms", "'-2ms' is not a latency"),
    ],
)
def test_bad_lists_of_budgets(
    budgets: str, part: str, images: Path, network: Path, tmp_path: Path, refused: Refusal
) -> None:
    assert part in refused(*words(images, tmp_path / "run", budgets, seed_network=network))
    assert not (tmp_path / "run").exists()


# ---- the end: within the budget, at the speed that the machine had


def again(finished: Path, out: Path) -> None:
    """A run that lacks nothing but its end."""
    shutil.copytree(finished, out)
    for name in ("record.json", "report.html", "model_int8.tflite", "model_float32.tflite"):
        (out / name).unlink()


def slower(factors: list[float]) -> Callable[..., list[Latency]]:
    """In the place of ``lab.side_by_side``: the reference, the larger network, the winner and what stands beside it."""
    measure = lab.side_by_side

    def side_by_side(blobs: list[bytes], *arguments: Any) -> list[Latency]:
        latencies = measure(blobs, *arguments)
        if len(blobs) != len(factors):
            return latencies
        return [replace(one, median_ms=one.median_ms * factor) for one, factor in zip(latencies, factors)]

    return side_by_side


def end_words(finished: Path, out: Path) -> list[str]:
    """The command that made a run, for a copy of it."""
    config = read_json(finished / "config.json")
    return words(config["data"], out, config["latency"], seed_network=config["seed_network"])


def test_a_machine_that_became_slower_takes_nothing_away(
    finished: Path, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    again(finished, tmp_path / "run")
    before = record(finished)
    monkeypatch.setattr(lab, "side_by_side", slower([2.0] * (1 + len(before["results"]))))
    assert run(*end_words(finished, tmp_path / "run")) == 0
    after = record(tmp_path / "run")
    assert after["final"]["label"] == before["final"]["label"]
    assert after["final"]["latency"]["median_ms"] == pytest.approx(2 * before["final"]["latency"]["median_ms"])
    assert after["final"]["judged_ms"] == pytest.approx(before["final"]["judged_ms"])
    assert "at the speed that the machine had at the start), within the budget" in capsys.readouterr().out


def test_the_next_best_takes_the_place_of_a_network_that_is_over(
    finished: Path, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(finished, tmp_path / "run")
    before = record(finished)
    factors = [1.0, *(2.0 if row["label"] == before["final"]["label"] else 1.0 for row in before["results"])]
    monkeypatch.setattr(lab, "side_by_side", slower(factors))
    assert run(*end_words(finished, tmp_path / "run")) == 0
    after = record(tmp_path / "run")
    assert after["final"]["label"] not in (before["final"]["label"], before["results"][0]["label"])
    assert after["final"]["judged_ms"] <= after["budget_ms"]


def test_from_scratch_the_family_races(
    world: World, tmp_path: Path, steady: None
) -> None:
    """Without a network and without weights: the family's networks and widths, at small sizes."""
    out = tmp_path / "run"
    assert run(*words(world.images, out, "120%", weights="none", resolution=32)) == 0
    first = race(out)[0]["standings"]
    assert len(first) >= 3 and len({s["name"] for s in first}) == len(first)
    assert not any(s["pretrained"] for s in first)
    assert record(out)["final"]["latency"]["median_ms"] <= record(out)["budget_ms"]


# ---- from scratch, without a larger network: what a user could do by hand is still there


SMALL = arch.spec("mobilenet_v3_small").classes(3)
FITS_40 = f"{1.05 * milliseconds(int8_for_timing(SMALL.resolution(40))):.6f}ms"
"""A budget that MobileNetV3-Small meets at 40 px."""


@pytest.fixture
def narrow(steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """MobileNetV3-Small at width 0.75 is the only one that races, and no larger network teaches it."""
    monkeypatch.setattr(candidates, "SCRATCH_FAMILY", ("mobilenet_v3_small",))
    monkeypatch.setattr(candidates, "spread", lambda within: [c for c in within if c.spec.name.endswith("_0.75")])
    monkeypatch.setitem(budget_run.TEACHER_MADDS, "classify", (1e6, 1e6))


def test_both_stand_beside_a_winner_from_scratch(world: World, tmp_path: Path, narrow: None) -> None:
    out = tmp_path / "run"
    assert run(*words(world.images, out, FITS_40, weights="none")) == 0
    made = record(out)
    assert [row["kind"] for row in made["results"]] == ["candidate", "resolution", "width"]
    assert not made["plan"]["taught"] and made["verdict"]["left_out"] == []
    winner, lower, scaled = (
        load_network(out / "train" / f"{row['kind']}-0" / "model.safetensors").spec for row in made["results"]
    )
    assert lower.id == SMALL.resolution(40).id
    assert winner.name == "mobilenet_v3_small_0.75" and winner.input_size < 64 == scaled.input_size
    winner_ms, scaled_ms = (milliseconds(int8_for_timing(spec)) for spec in (winner, scaled))
    widths = [milliseconds(int8_for_timing(SMALL.resolution(64).width(w / 100))) for w in range(5, 100)]
    assert abs(scaled_ms - winner_ms) == pytest.approx(min(abs(ms - winner_ms) for ms in widths))
    steps = {read_jsonl(path)[-1]["step"] for path in (out / "train").glob("*/metrics.jsonl")}
    assert steps == {made["plan"]["train_steps"]}  # all are trained alike


def test_a_fixed_resolution_is_what_is_exported(world: World, tmp_path: Path, narrow: None) -> None:
    """A lower one stands beside it, to say what the choice costs; its width takes all of the budget."""
    out = tmp_path / "run"
    assert run(*words(world.images, out, "80%", weights="none", resolution=64)) == 0
    made = record(out)
    assert [row["kind"] for row in made["results"]] == ["width", "resolution"]  # its width is the multiplier's
    assert made["final"]["label"] == "mobilenet_v3_small_0.79" and made["final_spec"]["input_size"] == 64
    assert 0.9 * made["budget_ms"] < made["final"]["latency"]["median_ms"] <= made["budget_ms"]
    assert [row["kind"] for row in made["verdict"]["against"]] == ["resolution"]


def test_without_time_the_winner_is_trained_alone(
    world: World, tmp_path: Path, narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = words(world.images, out, FITS_40, weights="none", minutes=0.001)
    at = command.index("--epochs")
    assert run(*command[:at], *command[at + 2 : -1]) == 0  # by the time, and not silent
    made = record(out)
    assert [row["kind"] for row in made["results"]] == ["candidate"]
    assert made["verdict"] | {"label": ""} == {
        "kind": "candidate", "label": "", "against": [], "left_out": ["resolution", "width"]
    }  # fmt: skip
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 1 and "lower resolution and the width multiplier" in said[0] and "--minutes" in said[0]
    assert "no time to train lower resolution and the width multiplier" in (out / "report.html").read_text()


def test_what_stands_beside_the_winner_is_decided_once(
    world: World, tmp_path: Path, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever time and measurements say after an interruption."""
    out, train = tmp_path / "run", lab.train

    def stop(*arguments: Any, folder: Path, **options: Any) -> Any:
        if folder.name == "resolution-0":
            raise KeyboardInterrupt
        return train(*arguments, folder=folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(budget_run.BudgetRun, "affordable_beside", lambda *_: 1)
        patch.setattr(lab, "train", stop)
        assert run(*words(world.images, out, FITS_40, weights="none")) == 130
    before = read_json(out / "state.json")
    monkeypatch.setattr(lab, "measured", None)
    assert run(*words(world.images, out, FITS_40, weights="none")) == 0
    made = record(out)
    assert [row["kind"] for row in made["results"]] == ["candidate", "resolution"]
    assert made["verdict"]["left_out"] == ["width"]
    assert made["plan"]["full"] == before["plan full"]


def test_a_race_killed_anywhere_has_the_same_winner(
    finished: Path, images: Path, network: Path, tmp_path: Path
) -> None:
    budget = f"{latency(56) * 0.999:.6f}ms"
    out = tmp_path / "run"
    stops = [
        "mobilefit.pipeline.race:append_jsonl:1",  # after the first candidate's training, before its row
        "mobilefit.pipeline.race:append_jsonl:2",
        "mobilefit.train.run:save_checkpoint:3",  # while the larger network trains
        "mobilefit.jobs.lab:write_atomic:1",  # while files are written
        "",
    ]
    for stop in stops:
        done = subprocess.run(
            [sys.executable, str(Path(small.__file__).with_name("steady.py")),
             *words(images, out, budget, seed_network=network)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "STOP": stop, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if stop else 0), done.stderr
    again, whole = record(out), record(finished)
    assert again["final_spec"] == whole["final_spec"]
    assert [[s["name"] for s in rung["standings"]] for rung in race(out)] == [
        [s["name"] for s in rung["standings"]] for rung in race(finished)
    ]


def test_a_teacher_of_ones_own(
    world: World, images: Path, network: Path, finished: Path, tmp_path: Path, steady: None, refused: Refusal
) -> None:
    budget = f"{latency(48) * 1.05:.6f}ms"
    teacher = finished / "train" / "seed-0" / "model.safetensors"
    options = {"seed_network": network, "resolution": 48, "teacher": teacher}
    assert run(*words(images, tmp_path / "run", budget, **options)) == 0
    assert record(tmp_path / "run")["plan"]["taught"]
    message = refused(*words(images, tmp_path / "other", budget, **{**options, "teacher": "nowhere.safetensors"}))
    assert "nowhere.safetensors" in message


# ---- on workers


def test_a_race_on_workers_interrupted_has_the_same_winner(
    finished: Path, images: Path, network: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'mobilefit[cluster]'")
    budget = f"{latency(56) * 0.999:.6f}ms"
    out = tmp_path / "run"
    for workers, stop in ((2, "mobilefit.pipeline.race:append_jsonl:2"), (1, "")):
        done = subprocess.run(
            [sys.executable, str(Path(small.__file__).with_name("steady.py")),
             *words(images, out, budget, seed_network=network, workers=workers)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "STOP": stop, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if stop else 0), done.stderr
    assert record(out)["final_spec"] == record(finished)["final_spec"]
    for rung, undisturbed in zip(race(out), race(finished), strict=True):
        assert [s["name"] for s in rung["standings"]] == [s["name"] for s in undisturbed["standings"]]
        for here, there in zip(rung["standings"], undisturbed["standings"]):
            assert here["loss"] == pytest.approx(there["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"workers": 0}, "--workers is 0"),
        ({"workers": 2, "cluster": "x"}, "give one of them"),
        ({"cluster": "nonsense"}, "HOST:PORT or auto"),
        ({"cluster": "127.0.0.1:1"}, "no Ray cluster answers at 127.0.0.1:1"),
        ({"cluster": "auto"}, "Ray does not start at auto"),
    ],
)
def test_workers_that_cannot_be(
    options: dict[str, object], part: str, images: Path, network: Path, tmp_path: Path, refused: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("ray", reason="needs Ray: pip install 'mobilefit[cluster]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert part in refused(*words(images, tmp_path / "run", "1ms", seed_network=network, **options))
    assert nothing_done(tmp_path / "run")


def test_workers_without_ray(
    images: Path, network: Path, tmp_path: Path, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused(*words(images, tmp_path / "run", "1ms", seed_network=network, workers=2))
    assert "pip install 'mobilefit[cluster]'" in message
    assert nothing_done(tmp_path / "run")


def nothing_done(folder: Path) -> bool:
    """Whether nothing was measured or trained."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= {"config.json", ".lock"}


def test_a_narrowed_network_learns_at_one_rate(
    images: Path, network: Path, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer decay keeps what pretrained rows have; the width multiplier's have to learn, or it is no baseline."""
    decays, train = {}, lab.train

    def spy(net: Any, data: Any, preset: Any, recipe: Any, **options: Any) -> Any:
        decays[options["folder"].name] = recipe.layer_decay
        return train(net, data, preset, recipe, **options)

    monkeypatch.setattr(lab, "train", spy)
    budget = f"{latency(48) * 1.05:.6f}ms"
    assert run(*words(images, tmp_path / "run", budget, seed_network=network, recipe="finetune")) == 0
    assert decays["width-0"] == 1.0 and decays["seed-0"] < 1.0
