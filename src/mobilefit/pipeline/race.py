"""Successive halving: every candidate is trained briefly, the better half for longer, and so on.

Jamieson and Talwalkar, 2016 (arXiv:1502.07943). All candidates of a rung see the same batches and are
judged on the same held-out images, so that what tells two of them apart is a paired difference of their
losses with its standard error, and not two noisy accuracies.

Every result is a row of ``race.jsonl`` and a file of losses: a race that was killed anywhere goes on, and
as a candidate's result depends on its own training alone, it has the same winner.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mobilefit.adapt.judgement import Judgement, load_losses
from mobilefit.errors import InputError
from mobilefit.pipeline.candidates import Candidate
from mobilefit.runs import append_jsonl, atomic_file, read_log
from mobilefit.train.statistics import paired

LOG = "race.jsonl"
_FIELDS = {"rung": str, "name": str, "spec_id": str, "score": float, "seconds": float}
HOPELESS = 3.0
"""Standard errors behind the best by which a candidate is out, however many may go on."""

T = TypeVar("T")
Judge = Callable[[Candidate], "Judged"]
"""Trains a candidate as a rung has it and judges it on the held-out images."""
Map = Callable[[Callable[[T], Any], Sequence[T]], Iterator[tuple[int, Any]]]
"""Applies a function to items, and gives each item's place with its result as they come."""


@dataclass(frozen=True, kw_only=True)
class Judged(Judgement):
    """What a rung says of a candidate."""

    seconds: float
    images_per_second: float = 0.0
    """In training; 0: not measured, or in an earlier run."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round of the race."""

    name: str
    """Of its rows and files: ``probe``, ``rung_1``."""
    survivors: int
    """How many may go on, at most."""
    what: str = ""
    """What is done in it, a few words for progress."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A candidate after a rung."""

    candidate: Candidate
    judged: Judged
    behind: float
    """Mean loss above the best one's, on the same images."""
    error: float
    """Standard error of that."""
    survives: bool


def in_order(map_function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """A :data:`Map` that works here, one item after the other."""
    for index, item in enumerate(items):
        yield index, map_function(item)


class Race:
    """A race in a folder, whose log is its state.

    Args:
        folder: of the log and the losses; made with the first result.
        say: takes a line for every result.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.rows: list[dict[str, Any]] = read_log(folder / LOG, lambda row: _FIELDS)

    def rung(
        self, rung: Rung, candidates: Sequence[Candidate], judge: Judge, *, run: Map[Candidate] = in_order
    ) -> list[Standing]:
        """Judge every candidate that was not judged yet, and rank them all, the best first.

        Args:
            candidates: all those of the rung.
            judge: of one candidate; its result must not depend on which others there are.
            run: how the candidates are gone through: here, or on workers.
        """
        judged = {c.slug: result for c in candidates if (result := self._judged(rung, c)) is not None}
        missing = [c for c in candidates if c.slug not in judged]
        for index, result in run(judge, missing):
            candidate = missing[index]
            self._keep(rung, candidate, result)
            judged[candidate.slug] = result
            self.say(
                f"{rung.what or rung.name}, {len(judged)}/{len(candidates)}: {candidate.name}, "
                f"{candidate.latency_ms:.3g} ms, {result.score:.1%}, loss {result.losses.mean():.3f}"
            )
        if len({len(result.losses) for result in judged.values()}) > 1:
            raise InputError(
                f"the losses in {self.folder / rung.name} are of different numbers of images",
                "delete that folder: its candidates are then trained again",
            )
        return standings([(c, judged[c.slug]) for c in candidates], rung.survivors)

    def _judged(self, rung: Rung, candidate: Candidate) -> Judged | None:
        """An earlier run's result: its latest row, and its losses beside it; ``None`` if either is lost."""
        key = rung.name, candidate.name, candidate.spec.id
        for row in reversed(self.rows):
            if (row["rung"], row["name"], row["spec_id"]) == key:
                with contextlib.suppress(OSError, ValueError):  # missing, torn or empty
                    losses = load_losses(self._path(rung, candidate))
                    return Judged(losses=losses, score=row["score"], seconds=row["seconds"])
                return None
        return None

    def _keep(self, rung: Rung, candidate: Candidate, result: Judged) -> None:
        path = self._path(rung, candidate)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.save(file, result.losses)
        row = {
            "rung": rung.name, "name": candidate.name, "spec_id": candidate.spec.id,
            "origin": candidate.origin, "latency_ms": candidate.latency_ms, "score": result.score,
            "loss": float(result.losses.mean()), "seconds": result.seconds,
        }  # fmt: skip
        append_jsonl(self.folder / LOG, row)
        self.rows.append(row)

    def _path(self, rung: Rung, candidate: Candidate) -> Path:
        return self.folder / rung.name / f"{candidate.slug}.npy"


def standings(results: Sequence[tuple[Candidate, Judged]], survivors: int) -> list[Standing]:
    """Candidates by their mean loss, the best first, and which of them go on.

    The best ``survivors`` do, but for those that are behind the best by more than :data:`HOPELESS`
    standard errors. Of equals the faster one is ahead, then the one that came first.
    """
    ranked = sorted(results, key=lambda pair: (float(pair[1].losses.mean()), pair[0].latency_ms))
    best = ranked[0][1].losses
    standing = []
    for rank, (candidate, judged) in enumerate(ranked):
        difference = paired(judged.losses, best)
        hopeless = rank > 0 and difference.mean > HOPELESS * difference.error  # False of NaN
        standing.append(Standing(
            candidate=candidate, judged=judged, behind=difference.mean,
            error=0.0 if math.isnan(difference.error) else difference.error,
            survives=rank < survivors and not hopeless,
        ))  # fmt: skip
    return standing


def to_dict(standing: Standing) -> dict[str, Any]:
    """A candidate after a rung, for the record."""
    candidate = standing.candidate
    return {
        "name": candidate.name, "origin": candidate.origin, "spec_id": candidate.spec.id,
        "latency_ms": candidate.latency_ms, "pretrained": candidate.weights is not None,
        "score": standing.judged.score, "loss": float(standing.judged.losses.mean()),
        "behind": standing.behind, "error": standing.error, "survives": standing.survives,
    }  # fmt: skip
