"""Trainings of the race for the tests on Ray: its workers import them by name."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilefit.pipeline.candidates import Candidate
from mobilefit.pipeline.race import Judged
from mobilefit.pipeline.race_task import ShortTraining
from mobilefit.train import CHECKPOINT, run


@dataclass(frozen=True, kw_only=True)
class Lethal(ShortTraining):
    """Kills its worker, as ``kill -9`` does, when one candidate's first attempt has written two checkpoints."""

    notes: Path
    """A line for each attempt: the candidate, the process, the threads, whether there was a checkpoint."""
    victim: str = ""

    def __call__(self, candidate: Candidate) -> Judged:
        import torch

        resumes = (self.folder / candidate.slug / CHECKPOINT).exists()
        with self.notes.open("a") as file:
            file.write(f"{candidate.slug} {os.getpid()} {torch.get_num_threads()} {resumes}\n")
        if candidate.slug == self.victim and not resumes:
            _kill_after_checkpoint(2)
        return super().__call__(candidate)


def _kill_after_checkpoint(number: int) -> None:
    save, calls = run.save_checkpoint, iter(range(1, number + 1))

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    run.save_checkpoint = save_and_die  # the process ends before anything else could use it
