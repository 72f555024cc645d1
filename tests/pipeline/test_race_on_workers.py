"""The race on Ray: the same standings with one worker as with two, and nothing lost with a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs.small import SPEC, make_images

from mobilefit.cluster import RayPool
from mobilefit.errors import InputError
from mobilefit.jobs import lab
from mobilefit.jobs.kinds import KINDS, Source
from mobilefit.nn import save_weights
from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.initial_weights import InitialWeights
from mobilefit.pipeline.race import Race, Rung, Standing, in_order
from mobilefit.pipeline.race_task import FeatureProbe, ShortTraining, ShrunkWeights, TeacherFile

from .race_workers import Lethal

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'mobilefit[cluster]'")
KIND = KINDS["classify"]
CANDIDATES = [Candidate(spec=SPEC.resolution(size), latency_ms=size / 50) for size in (32, 40, 48)]
RUNG = Rung(name="rung_1", survivors=2)
STEPS = 12
"""A checkpoint after each of them."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return KIND.load(Source(name=str(make_images(tmp_path_factory.mktemp("images") / "shades"))))


@pytest.fixture(scope="module")
def teacher(data: Any, tmp_path_factory: pytest.TempPathFactory) -> TeacherFile:
    """Not trained: its answers are a function of the images all the same."""
    folder = tmp_path_factory.mktemp("teacher")
    spec = SPEC.resolution(64)
    network, preset = InitialWeights(task=KIND, data=data).network(spec, None, 7)
    save_weights(network, folder / "teacher.safetensors", preset=preset.to_dict(), classes=data.classes)
    return TeacherFile(
        source=str(folder / "teacher.safetensors"), preset=preset, classes=tuple(data.classes), quiet=True,
        cache=folder / "answers", spec=spec,
    )  # fmt: skip


def initial_weights(data: Any) -> dict[str, Any]:
    weights = InitialWeights(task=KIND, data=data)
    return {c.slug: partial(weights.network, c.spec, c.weights, whole=c.whole) for c in CANDIDATES}


def training(kind: type[ShortTraining], data: Any, folder: Path, **fields: Any) -> ShortTraining:
    recipe = replace(KIND.recipe("fast", None, data), batch_size=16, mixup=0.0, cutmix=0.0)
    taught = fields.get("teacher") is not None
    options = {"teacher": None, **fields}
    return kind(
        task=KIND, data=data, held_out=lab.held_out(data, 2000, 0), initial=initial_weights(data),
        recipe=replace(recipe, distillation=0.5 if taught else 0.0), steps=STEPS, seed=3,
        folder=folder, quiet=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(data: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Standing]:
    """In this process, with one thread."""
    assert torch.get_num_threads() == 1
    folder = tmp_path_factory.mktemp("here")
    return race(folder, training(ShortTraining, data, folder / "trainings"), in_order)


@pytest.fixture(scope="module", autouse=True)
def tests_on_path() -> Iterator[None]:
    """The workers must find this package's modules."""
    tests = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield


@pytest.fixture(scope="module")
def two_workers() -> Iterator[RayPool]:
    """One for all tests: workers start slowly."""
    with RayPool(workers=2) as pool:
        pool.open()
        yield pool


def race(folder: Path, judge: Any, run: Any) -> list[Standing]:
    return Race(folder, lambda line: None).rung(RUNG, CANDIDATES, judge, run=run)


def same(first: Sequence[Standing], second: Sequence[Standing]) -> None:
    assert [(s.candidate, s.survives) for s in first] == [(s.candidate, s.survives) for s in second]
    for one, other in zip(first, second):
        np.testing.assert_allclose(one.judged.losses, other.judged.losses, rtol=0, atol=1e-6)


def test_one_worker_and_two_have_the_same_standings(
    data: Any, undisturbed: list[Standing], tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    with RayPool(workers=1) as pool:
        alone = race(folder, training(ShortTraining, data, folder / "trainings"), pool.map)
    folder = tmp_path / "two"
    judge = training(Lethal, data, folder / "trainings", notes=tmp_path / "notes")
    with RayPool(workers=2) as pool:
        together = race(folder, judge, pool.map)
    same(alone, together)
    same(alone, undisturbed)
    attempts = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert len(attempts) == len(CANDIDATES) and {threads for *_, threads, _ in attempts} == {"1"}
    assert len({process for _, process, *_ in attempts}) == 2
    assert all(s.judged.images_per_second > 0 for s in together)


def test_a_worker_killed_in_the_middle_of_a_training_loses_nothing(
    data: Any, undisturbed: list[Standing], two_workers: RayPool, tmp_path: Path
) -> None:
    victim = CANDIDATES[1].slug
    judge = training(Lethal, data, tmp_path / "trainings", notes=tmp_path / "notes", victim=victim)
    same(race(tmp_path, judge, two_workers.map), undisturbed)
    attempts = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    assert [resumes for slug, *_, resumes in attempts if slug == victim] == ["False", "True"]
    assert len(attempts) == len(CANDIDATES) + 1


def test_a_teacher_s_answers_are_shared_between_workers(
    data: Any, teacher: TeacherFile, two_workers: RayPool, tmp_path: Path
) -> None:
    taught = training(ShortTraining, data, tmp_path / "trainings", teacher=teacher)
    together = race(tmp_path / "two", taught, two_workers.map)
    kept_nothing = replace(teacher.opened(), cache=None)
    alone = replace(taught, teacher=kept_nothing, folder=tmp_path / "here")
    same(together, race(tmp_path / "one", alone, in_order))
    (cache,) = teacher.cache.iterdir()
    chunks = [np.load(path) for path in sorted(cache.glob("*.npy"))]
    assert not any(np.isnan(chunk[: STEPS - 32 * i]).any() for i, chunk in enumerate(chunks))


def test_probes_and_shrunk_networks_travel_too(data: Any, two_workers: RayPool, tmp_path: Path) -> None:
    network, preset = InitialWeights(task=KIND, data=data).network(CANDIDATES[0].spec, None, 5)
    shrunk = ShrunkWeights(spec=network.spec, preset=preset, inherited=network)
    weights = {**initial_weights(data), CANDIDATES[0].slug: shrunk}
    probe = FeatureProbe(data=data, held_out=data.holdout, initial=weights, seed=0)
    same(race(tmp_path / "two", probe, two_workers.map), race(tmp_path / "here", probe, in_order))


def test_inherited_weights_are_not_trained_in_place(data: Any) -> None:
    network, preset = InitialWeights(task=KIND, data=data).network(SPEC, None, 5)
    first, _ = ShrunkWeights(spec=SPEC, preset=preset, inherited=network)(0)
    torch.nn.init.zeros_(next(first.parameters()))
    second, _ = ShrunkWeights(spec=SPEC, preset=preset, inherited=network)(0)
    assert torch.equal(next(second.parameters()), next(network.parameters()))
    fresh, _ = ShrunkWeights(spec=SPEC, preset=preset, inherited=None)(0)
    assert not torch.equal(next(fresh.parameters()), next(network.parameters()))


def test_a_problem_of_the_user_s_passes_through(
    data: Any, teacher: TeacherFile, two_workers: RayPool, tmp_path: Path
) -> None:
    missing = replace(teacher, source=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        race(tmp_path, training(ShortTraining, data, tmp_path / "trainings", teacher=missing), two_workers.map)
    assert not (tmp_path / "race.jsonl").exists()


def test_a_worker_that_is_always_lost_is_an_error_of_one_line(two_workers: RayPool) -> None:
    pool = RayPool(workers=2, retries=0)
    with pytest.raises(InputError, match="a worker was lost 1 times at the same work") as caught:
        list(pool.map(os._exit, [1]))
    assert "\n" not in str(caught.value)


def test_a_cluster_takes_as_many_as_it_has_cpus_for(two_workers: RayPool) -> None:
    two_workers.open()  # it ends with an error of the test before
    with RayPool(address="auto") as pool, RayPool(address="auto", cpus=2) as wide:
        assert (pool.parallel, wide.parallel) == (2, 1)
    assert ray.is_initialized()  # it was there before
    with pytest.raises(InputError, match="no machine of the cluster has 3 CPUs"):
        RayPool(address="auto", cpus=3).open()
