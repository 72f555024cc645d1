"""Tasks for the tests on Ray: its workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mobilefit.arch import NetSpec
from mobilefit.errors import InputError
from mobilefit.search import ProxyTask

from . import small


@dataclass(frozen=True, kw_only=True)
class Noted(ProxyTask):
    """Leaves a line in a file for every training that began; scores by the network's cost."""

    notes: Path
    lethal: str = ""
    """Id of the network that kills its worker."""
    deaths: int = 0
    """How often."""

    def accuracy(self, spec: NetSpec) -> float:
        with self.notes.open("a") as file:
            file.write(f"{spec.id} {os.getpid()} {os.getppid()}\n")
        if spec.id == self.lethal and began(self.notes).count(spec.id) <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.score(spec)

    def score(self, spec: NetSpec) -> float:
        return 1 / spec.cost().params


class Slow(Noted):
    """Takes its time."""

    def score(self, spec: NetSpec) -> float:
        time.sleep(1.0)
        return 0.5


class Endless(Noted):
    """Never ends."""

    def score(self, spec: NetSpec) -> float:
        time.sleep(600)
        return 0.5


class Crashing(ProxyTask):
    """Cannot train the second network."""

    def accuracy(self, spec: NetSpec) -> float:
        if spec.id == small.spec_of(1).id:
            raise RuntimeError("out of memory\nand more")
        return 0.5


class Full(ProxyTask):
    """Meets a problem of the user's."""

    def accuracy(self, spec: NetSpec) -> float:
        raise InputError("the disk is full", "free some space")


def noted(kind: type[Noted], notes: Path, **fields: object) -> Noted:
    plain = small.task()
    return kind(
        train_set=plain.train_set, held_out=plain.held_out, preset=plain.preset, recipe=plain.recipe,
        steps=1, seed=0, notes=notes, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def began(notes: Path) -> list[str]:
    """Ids of the trainings that began."""
    return [line.split()[0] for line in notes.read_text().splitlines()] if notes.exists() else []
