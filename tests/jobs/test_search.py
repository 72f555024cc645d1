"""The search verb, and design with a search in front, on a device that always takes the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilefit.arch import NetSpec
from mobilefit.jobs import searching
from mobilefit.jobs.model import int8_for_timing
from mobilefit.nn import Network, load_network
from mobilefit.runs import read_jsonl
from mobilefit.search import SPACES, Proxy, ProxyTask, Space, cluster
from mobilefit.train.checkpoint import load_checkpoint

from .small import SPACE, World, hold_steady, milliseconds, record, run

REFUSED = Callable[..., str]
LOG = Path("search") / "trials.jsonl"


def words(world: World, out: Path, verb: str = "search", **changes: object) -> list[str]:
    """A search, or a design with one, that takes some seconds."""
    options: dict[str, object] = {
        "latency": "90%", "space": world.space, "resolution": 32, "trials": 24, "epochs": 1, "out": out,
    }  # fmt: skip
    options |= {"top": 2} if verb == "search" else {
        "seed_network": "search", "delta": 0.05, "tune_steps": 2,
    }  # fmt: skip
    options |= changes
    found = [verb, str(options.pop("data", world.images))]
    for name, value in options.items():
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def trials(out: Path) -> list[dict[str, Any]]:
    """The trials that count, without what differs from run to run."""
    rows: dict[int, dict[str, Any]] = {}
    for row in read_jsonl(out / LOG):
        if row["event"] == "resumed":
            rows = {n: r for n, r in rows.items() if n < row["from"]}
        elif row["event"] == "trial":
            rows[row["number"]] = {key: row[key] for key in row if key != "seconds"}
    return [rows[number] for number in sorted(rows)]


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        assert run(*words(world, out)) == 0
    return out


@pytest.fixture(scope="module")
def designed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("design") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        assert run(*words(world, out, "design", latency="60%")) == 0
    return out


# ---- the verb


def test_the_record_says_what_was_found(finished: Path, world: World) -> None:
    made = record(finished)
    found = made["search"]
    assert (found["space"], found["strategy"], found["evaluator"]) == ("small", "evolution", "supernet")
    assert found["trials"] == 24 == len(trials(finished)) and found["failed"] == 0
    assert found["best_reward"] == max(row["reward"] for row in trials(finished))
    assert [entry["label"] for entry in found["top"]] == ["search_1", "search_2"]
    rewards = [entry["reward_full"] for entry in found["top"]]
    assert rewards[found["winner"]] == max(rewards)
    assert found["rank_correlation"] in (-1.0, 0.0, 1.0)
    for entry in found["top"]:
        assert 0 <= entry["rescored_accuracy"] <= 1 and 0 <= entry["full_accuracy"] <= 1
        assert entry["measured_ms"] > 0 and entry["predicted_ms"] > 0


def test_the_front_is_kept(finished: Path) -> None:
    front, rows = record(finished)["search"]["front"], trials(finished)
    assert front and [x["latency_ms"] for x in front] == sorted(x["latency_ms"] for x in front)
    for kept in front:
        assert not any(
            row["latency_ms"] <= kept["latency_ms"] and row["accuracy"] > kept["accuracy"] for row in rows
        )
    assert max(row["accuracy"] for row in rows) == front[-1]["accuracy"]


def test_latency_can_be_measured_in_the_loop(world: World, tmp_path: Path, steady: None) -> None:
    """The steady device's own milliseconds, and not the table's estimate of them."""
    out = tmp_path / "run"
    arguments = words(world, out, evaluator="proxy", proxy_steps=1, strategy="random", trials=3, top=1)
    assert run(*arguments, "--measure") == 0
    space = Space.from_dict(SPACE).resolution(32).classes(3)
    for row in trials(out):
        own = milliseconds(int8_for_timing(space.spec(row["tokens"])))
        assert row["latency_ms"] == pytest.approx(own, rel=1e-9)


def test_what_a_trial_is_given_reaches_ray(
    world: World, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def instead(task: ProxyTask, **given: Any) -> Proxy:
        seen.append(given)
        return Proxy(task)

    monkeypatch.setattr(cluster, "ProxyOnRay", instead)
    arguments = words(
        world, tmp_path / "run", evaluator="proxy", proxy_steps=1, trials=2, top=1, cluster="host:1",
        trial_cpus=2, trial_gpus=0.5, strategy="random",
    )  # fmt: skip
    assert run(*arguments) == 0
    assert seen == [{"workers": 1, "address": "host:1", "cpus": 2.0, "gpus": 0.5}]


def test_the_winner_is_in_the_space_and_its_weights_are_its_own(finished: Path) -> None:
    made = record(finished)["search"]
    seed = NetSpec.from_json((finished / "seed.json").read_text())
    space = Space.from_dict(SPACE).resolution(32)
    assert len(space.tokens(seed)) == len(space.sizes)
    assert seed.id == made["top"][made["winner"]]["spec_id"]
    assert load_network(finished / "model.safetensors").spec.id == seed.id
    assert seed.name == "small_searched"


def test_the_reward_is_of_accuracy_and_latency(finished: Path) -> None:
    target = record(finished)["search"]["target_ms"]
    for row in trials(finished):
        expected = row["accuracy"] - 0.1 * abs(row["latency_ms"] / target - 1)
        assert row["reward"] == pytest.approx(expected)


def test_the_report_has_the_search(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Search" in page and "search_1" in page
    assert "OVER" not in page and "int8 against float32" not in page  # a target is no budget


def test_a_finished_search_is_left_alone(
    world: World, finished: Path, capsys: pytest.CaptureFixture[str], steady: None
) -> None:
    before = (finished / LOG).stat().st_mtime_ns
    (finished / "report.html").unlink()  # as after a kill between record and page
    assert run(*words(world, finished)) == 0
    assert "search_1" in (finished / "report.html").read_text()
    out, err = capsys.readouterr()
    assert "finished; delete the folder to run it again" in err
    assert str(finished / "seed.json") in out and (finished / LOG).stat().st_mtime_ns == before


def test_short_trainings_instead_of_shared_weights(world: World, tmp_path: Path, steady: None) -> None:
    changes = {"evaluator": "proxy", "proxy_steps": 2, "strategy": "random", "trials": 6, "top": 1}
    assert run(*words(world, tmp_path / "run", **changes)) == 0
    made = record(tmp_path / "run")["search"]
    assert made["evaluator"] == "proxy" and made["rank_correlation"] is None
    assert made["top"][0]["rescored_accuracy"] is None


def test_full_trainings_begin_from_the_shared_weights(
    world: World, tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = []
    extract = searching.Searching.extract

    def spy(stage: searching.Searching, tokens: tuple[int, ...]) -> Network:
        extracted.append(extract(stage, tokens))
        return extracted[-1]

    monkeypatch.setattr(searching.Searching, "extract", spy)
    assert run(*words(world, tmp_path / "run", initial="shared")) == 0
    top = record(tmp_path / "run")["search"]["top"]
    assert [network.spec.id for network in extracted] == [entry["spec_id"] for entry in top]
    state = load_checkpoint(tmp_path / "run" / "search" / "search.pt", {})["evaluator"]
    assert state and all(0 < entry["rescored_loss"] < 10 for entry in top)


def test_the_log_keeps_both_scores_of_the_shortlist(finished: Path) -> None:
    again = {row["number"]: row for row in read_jsonl(finished / LOG) if row["event"] == "rescored"}
    for entry in record(finished)["search"]["top"]:
        assert again[entry["trial"]]["accuracy"] == entry["rescored_accuracy"]
        assert again[entry["trial"]]["loss"] == entry["rescored_loss"]


def test_when_a_search_is_worth_its_time() -> None:
    assert searching.worthwhile(2_761, None)[0] and searching.worthwhile(60_000, "torchvision:x")[0]
    likely, reason = searching.worthwhile(2_761, "torchvision:mobilenet_v3_small")
    assert not likely and "torchvision:mobilenet_v3_small" in reason and "2,761" in reason
    assert searching.published_weights(SPACES["mobilenet_v3_small"]) == "torchvision:mobilenet_v3_small"


@pytest.mark.parametrize("strategy", ["rnn", "reinforce", "evolution", "random"])
def test_a_table_with_a_known_optimum(world: World, tmp_path: Path, strategy: str) -> None:
    out = tmp_path / "run"
    assert run("search", "tabular", "--space", world.space, "--latency", "20ms", "--strategy", strategy,
               "--trials", 200, "--seed", 11, "--out", out) == 0  # fmt: skip
    made = record(out)
    assert 0.9 * made["optimal_reward"] < made["best_reward"] <= made["optimal_reward"]
    assert made["search"]["trials"] == 200 and (out / "report.html").exists()


# ---- design begins with it


def test_design_searches_adapts_and_compares(designed: Path) -> None:
    made = record(designed)
    found = made["search"]
    assert found["trials"] == 24 and found["target_ms"] == pytest.approx(1.2 * made["budget_ms"])
    winner = found["top"][found["winner"]]
    assert made["seed_spec"]["blocks"] == winner["spec"]["blocks"]
    assert made["reference_spec"]["name"] == "tiny"
    kinds = [row["kind"] for row in made["results"]]
    if winner["measured_ms"] > made["budget_ms"]:
        assert kinds == ["seed", "adapted", "width"] and made["final"]["kind"] == "adapted"
    else:
        assert kinds == ["seed", "width"] and made["final"]["kind"] == "seed"
    assert made["final"]["latency"]["median_ms"] <= made["budget_ms"]
    width = next(row for row in made["results"] if row["kind"] == "width")
    assert width["label"].startswith("tiny_0.")


def test_the_network_of_the_search_is_trained_once(designed: Path) -> None:
    assert (designed / "train" / "search_1-0" / "model.safetensors").exists()
    assert not (designed / "train" / "seed-0").exists()


# ---- killed


ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def process(arguments: list[str], stop: str = "") -> int:
    environment = {**os.environ, **ONE_THREAD, "STOP": stop}
    command = [sys.executable, "-m", "jobs.steady", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert process(words(world, out, "design", latency="60%")) in (0, 3)
    return out


@pytest.mark.parametrize(
    "stop",
    [
        "mobilefit.train.loop:Trainer.step:30",  # in the warm-up or after it
        "mobilefit.search.log:TrialLog.add:21",  # in the second batch
        "mobilefit.jobs.searching:fully_trained:1",
    ],
)
def test_killed_in_its_search_design_ends_as_if_it_had_not_been(
    stop: str, world: World, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = words(world, out, "design", latency="60%")
    assert process(arguments, stop) == -signal.SIGKILL
    assert process(arguments) in (0, 3)
    assert trials(out) == trials(undisturbed)
    mine, theirs = record(out), record(undisturbed)
    assert mine["search"]["top"] == theirs["search"]["top"]
    assert mine["final_spec"] == theirs["final_spec"]
    assert mine["final"]["accuracy_int8"] == theirs["final"]["accuracy_int8"]


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": "mnasnett"}, ["did you mean 'mnasnet'?"]),
        ({"space": "nowhere.json"}, ["cannot read nowhere.json"]),
        ({"strategy": "rn"}, ["did you mean 'rnn'?"]),
        ({"reward": "sofd"}, ["did you mean 'soft'?"]),
        ({"evaluator": "supernett"}, ["supernet", "proxy"]),
        ({"trials": 0}, ["--trials is 0"]),
        ({"top": 0}, ["--top is 0"]),
        ({"workers": 2}, ["add --evaluator proxy"]),
        ({"workers": 2, "evaluator": "proxy", "cluster": "auto"}, ["give one of them"]),
        ({"trial_gpus": 1}, ["are for trials on Ray"]),
        ({"trial_gpus": -1}, ["--trial-gpus is -1"]),
        ({"latency": "2"}, ["has no unit"]),
        ({"latency": "0.0021ms"}, ["no network of the space 'small' meets 0.0021 ms", "the nearest",
                                   "raise --latency"]),
        ({"data": "tabular"}, ["write --latency 75ms"]),
        ({"data": "tabular", "latency": "0.001ms"}, ["the nearest takes", "widen the space"]),
    ],
)  # fmt: skip
def test_bad_options(
    changes: dict[str, Any], said: list[str], world: World, tmp_path: Path, refused: REFUSED,
    steady: None,
) -> None:  # fmt: skip
    message = refused(*words(world, tmp_path / "run", **changes))
    for part in said:
        assert part in message


def test_an_illegal_space_names_block_and_choice(world: World, tmp_path: Path, refused: REFUSED) -> None:
    blocks = [{**SPACE["blocks"][0], "kernel": [3, 4]}, SPACE["blocks"][1]]
    file = tmp_path / "space.json"
    file.write_text(json.dumps({**SPACE, "blocks": blocks}))
    message = refused(*words(world, tmp_path / "run", space=file))
    assert str(file) in message and "blocks[0].kernel: 4 is not an odd size" in message


def test_design_wants_weights_with_a_network(world: World, tmp_path: Path, refused: REFUSED) -> None:
    message = refused(*words(world, tmp_path / "run", "design", weights=world.weights))
    assert "name the network with --seed-network" in message


def test_a_foreign_log(world: World, tmp_path: Path, refused: REFUSED, steady: None) -> None:
    out = tmp_path / "run"
    (out / "search").mkdir(parents=True)
    (out / LOG).write_text('{"event": "space", "space": {"name": "other"}}\n')
    message = refused(*words(world, out))
    assert "is the log of another search" in message and "'other' there" in message


def test_trials_that_crash_alike_stop_the_search_and_it_goes_on(
    world: World, tmp_path: Path, refused: REFUSED, steady: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "run", []
    arguments = words(
        world, out, evaluator="proxy", proxy_steps=2, strategy="random", trials=8, top=1
    )
    works = ProxyTask.accuracy

    def breaks(task: ProxyTask, spec: NetSpec) -> float:
        calls.append(spec)
        if len(calls) > 2:
            raise RuntimeError("out of memory")
        return works(task, spec)

    with monkeypatch.context() as patch:
        patch.setattr(ProxyTask, "accuracy", breaks)
        message = refused(*arguments)
    assert "3 trials in a row failed alike: RuntimeError: out of memory" in message
    kept = [row for row in trials(out) if row["accuracy"] is not None]
    assert run(*arguments) == 0
    assert [row for row in trials(out) if row["number"] < len(kept)] == kept
    assert all(row["accuracy"] is not None for row in trials(out)) and len(trials(out)) == 8
