"""The proxy's trials on Ray: the same as in this process, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mobilefit.cluster import RayPool
from mobilefit.errors import InputError
from mobilefit.search import Evaluator, Outcome, Proxy, Reward, SearchSettings, search, strategy
from mobilefit.search.cluster import ProxyOnRay

from . import small
from .cluster_tasks import Crashing, Full, Noted, Slow, began, noted

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'mobilefit[cluster]'")
HERE = Path(__file__).parents[1]
SEARCH_PATH = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """One local Ray for two trials at a time, over all of the module's tests: it starts slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", SEARCH_PATH)  # the workers must find cluster_tasks
        with RayPool(workers=2) as pool:
            pool.open()
            yield
    assert not ray.is_initialized()


def by_number(outcomes: Iterator[Outcome]) -> dict[int, tuple[float | None, str | None]]:
    found: dict[int, tuple[float | None, str | None]] = {}
    for outcome in outcomes:
        assert outcome.number not in found
        found[outcome.number] = outcome.accuracy, outcome.error
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- the same as here


def test_a_search_finds_the_same_with_two_workers_as_with_none(two_cpus: None, tmp_path: Path) -> None:
    def log(evaluator: Evaluator, name: str) -> list[dict[str, object]]:
        chosen = small.space()
        found = search(
            chosen, strategy("evolution", chosen.sizes, 5), evaluator,
            lambda specs: [spec.cost().madds / 1e5 for spec in specs],
            Reward(form="soft", target_ms=1.0),
            SearchSettings(strategy="evolution", trials=12, batch=6, seed=5), tmp_path / name,
        )  # fmt: skip
        return [{k: v for k, v in row.items() if k != "seconds"} for row in found.log.in_order()]

    here = log(Proxy(small.task(steps=45)), "here")
    there = log(ProxyOnRay(small.task(steps=45), workers=2), "there")
    assert there == here
    assert len({row["accuracy"] for row in here}) > 2 and len(here) == 12


def test_a_crash_is_the_same_failed_outcome_as_here(two_cpus: None) -> None:
    task = small.task(kind=Crashing)
    found = by_number(ProxyOnRay(task).evaluate(small.trials(3)))
    assert found[1] == (None, "RuntimeError: out of memory")
    assert found == by_number(Proxy(task).evaluate(small.trials(3)))


def test_a_problem_of_the_user_s_passes_through(two_cpus: None) -> None:
    with pytest.raises(InputError) as caught:
        list(ProxyOnRay(small.task(kind=Full)).evaluate(small.trials(2)))
    assert (caught.value.message, caught.value.hint) == ("the disk is full", "free some space")


def test_the_data_are_sent_once(two_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    puts, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    evaluator = ProxyOnRay(noted(Noted, tmp_path / "notes"))
    for trials in (small.trials(3), small.trials(5)):
        assert len(list(evaluator.evaluate(trials))) == len(trials)
    assert len(puts) == 1


# ---- lost workers


def test_a_worker_that_kills_itself_loses_nothing(two_cpus: None, tmp_path: Path) -> None:
    trials = small.trials(6)
    task = noted(Noted, tmp_path / "notes", lethal=trials[2].spec.id, deaths=1)
    found = by_number(ProxyOnRay(task).evaluate(trials))
    assert found == {t.number: (1 / t.spec.cost().params, None) for t in trials}
    ids = began(task.notes)
    assert ids.count(trials[2].spec.id) == 2 and set(ids) == {t.spec.id for t in trials}


def test_a_worker_killed_from_outside_loses_nothing(two_cpus: None, tmp_path: Path) -> None:
    trials = small.trials(3)
    task = noted(Slow, tmp_path / "notes")
    outcomes = ProxyOnRay(task).evaluate(trials)
    first = next(outcomes)
    ended = trials[first.number].spec.id

    def running() -> list[list[str]]:
        lines = task.notes.read_text().splitlines()
        return [line.split() for line in lines if line.split()[0] != ended]

    wait_for(lambda: len(running()) == 2)  # the last one has just begun
    victim = running()[-1]
    os.kill(int(victim[1]), signal.SIGKILL)
    found = by_number(outcomes)
    assert found | {first.number: (first.accuracy, first.error)} == {n: (0.5, None) for n in range(3)}
    assert first.number not in found
    assert began(task.notes).count(victim[0]) == 2


def test_a_trial_whose_worker_is_always_lost_fails_alone(two_cpus: None, tmp_path: Path) -> None:
    trials = small.trials(3)
    task = noted(Noted, tmp_path / "notes", lethal=trials[0].spec.id, deaths=99)
    found = by_number(ProxyOnRay(task, retries=1).evaluate(trials))
    accuracy, error = found.pop(0)
    assert accuracy is None and str(error).startswith("WorkerCrashedError: ") and "\n" not in str(error)
    assert found == {t.number: (1 / t.spec.cost().params, None) for t in trials[1:]}
    assert began(task.notes).count(trials[0].spec.id) == 2


# ---- stopping


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_a_search_that_stops_cancels_what_runs(two_cpus: None, tmp_path: Path) -> None:
    task = noted(Slow, tmp_path / "notes")
    outcomes = ProxyOnRay(task).evaluate(small.trials(12))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    time.sleep(0.5)
    count = len(began(task.notes))
    time.sleep(1.2)  # longer than a trial
    assert len(began(task.notes)) == count < 12
    assert ray.is_initialized()  # it was there before


ENDLESS = """
import sys
from pathlib import Path
from search import small
from search.cluster_tasks import Endless, noted
from mobilefit.search.cluster import ProxyOnRay
assert "ray" not in sys.modules
evaluator = ProxyOnRay(noted(Endless, Path(sys.argv[1])), workers=1)
try:
    list(evaluator.evaluate(small.trials(3)))
except KeyboardInterrupt:
    import ray
    sys.exit(130 if not ray.is_initialized() else 1)
"""


def test_ray_comes_with_the_first_evaluator_and_ctrl_c_ends_it_silently(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(notes)], env=os.environ | {"PYTHONPATH": SEARCH_PATH},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: bool(began(notes)) or process.poll() is not None, 60)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "")
    (_, *pids), = (line.split() for line in notes.read_text().splitlines())  # one at a time
    for pid in pids:  # the worker and Ray's own process above it
        wait_for(lambda pid=pid: gone(int(pid)))  # type: ignore[misc]


# ---- what cannot be


def test_nobody_at_the_address() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(InputError, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port}: .*refused; start one"):
        ProxyOnRay(small.task(), address=f"127.0.0.1:{port}")
    with pytest.raises(InputError, match="'nonsense' is not the address of a Ray cluster"):
        ProxyOnRay(small.task(), address="nonsense")


def test_more_than_any_machine_has(two_cpus: None) -> None:
    with pytest.raises(InputError, match="no machine of the cluster has 1 CPUs and 64 GPUs"):
        list(ProxyOnRay(small.task(), gpus=64).evaluate(small.trials(1)))


@pytest.mark.parametrize("fields", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}])
def test_impossible_numbers(fields: dict[str, int]) -> None:
    with pytest.raises(InputError, match="workers with"):
        ProxyOnRay(small.task(), **fields)  # type: ignore[arg-type]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"need Ray; pip install 'mobilefit\[cluster\]'"):
        ProxyOnRay(small.task())
