"""The end of a budget: which trained network is exported, and what it is worth beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mobilefit import adapt
from mobilefit.arch import NetSpec
from mobilefit.device import Latency
from mobilefit.jobs import lab
from mobilefit.jobs.lab import Trained
from mobilefit.jobs.model import Exported, int8_for_timing
from mobilefit.pipeline.by_hand import STANDING
from mobilefit.pipeline.design_run import DesignRun
from mobilefit.train.statistics import Difference, bootstrapped, paired

JUDGED_AGAIN = 3
"""Measurements of a network that seems to be over the budget by less than the noise."""


def best_first(design: DesignRun, entries: Sequence[Trained], trained: Sequence[Trained]) -> list[int]:
    """Places of the networks that may be exported, the best on held-out images first.

    Labels are compared by the mean over their seeds, and of a label's networks the best is taken. Where the user
    fixed the resolution, a lower one is there to compare with and not to be exported.
    """
    trained = [e for e in trained if design.config.resolution in (None, e.network.spec.image_shape[0])]
    losses = {
        id(e): adapt.judge(design.task.port, e.network, design.held_out, e.preset).losses.mean() for e in trained
    }  # fmt: skip
    means = {
        label: float(np.mean([losses[id(e)] for e in trained if e.label == label]))
        for label in {e.label for e in trained}
    }
    ranked = sorted(trained, key=lambda e: (means[e.label], losses[id(e)]))
    return [next(i for i, other in enumerate(entries) if other is e) for e in ranked]


def within_budget(
    design: DesignRun, budget_ms: float, order: Sequence[int], files: Sequence[Exported]
) -> tuple[int, list[Latency], float]:
    """The best network that is within the budget, everybody's latency, and the best one's judged latency.

    The files are timed beside the reference. Where that is slower than when the budget was set, so is the
    machine, and the latencies are judged as if it were not. What seems to be over the budget is timed
    again: a neighbour on the machine makes a network slower, never faster. The next best takes the place of
    one that is really over.
    """
    blobs = [int8_for_timing(design.reference), *(file.int8 for file in files)]
    latencies: list[Latency] = []
    judged: list[float] = []
    for _ in range(1 + JUDGED_AGAIN):
        reference, *again = lab.side_by_side(blobs, design.phone)
        slower = design.slowdown(reference)
        latencies = [min(pair, key=lambda x: x.median_ms) for pair in zip(latencies or again, again)]
        judged = [min(pair) for pair in zip(judged or [np.inf] * len(again), (x.median_ms / slower for x in again))]
        if judged[order[0]] <= budget_ms:
            break
    best = next((i for i in order if judged[i] <= budget_ms), order[0])
    if best != order[0]:
        design.log(
            f"the best network takes {judged[order[0]]:.4g} ms and is over the budget of "
            f"{budget_ms:.4g} ms: the next best takes its place"
        )
    return best, latencies, judged[best]


def verdict(
    design: DesignRun, entries: Sequence[Trained], evaluations: Sequence[Any], best: int, left_out: Sequence[str]
) -> dict[str, Any]:
    """The exported network against what stands beside it, on the test images: paired differences."""
    own = entries[best]
    against = []
    for kind in STANDING:
        pairs = [
            (first, second)
            for i, first in enumerate(evaluations) if entries[i].label == own.label
            for j, second in enumerate(evaluations)
            if entries[j].kind == kind and entries[j].seed == entries[i].seed
        ]  # fmt: skip
        if kind == own.kind or not pairs:
            continue
        difference = difference_of(design, pairs)
        label = next(e.label for e in entries if e.kind == kind)
        against.append({
            "kind": kind, "label": label, "points": 100 * difference.mean, "error": 100 * difference.error,
            "seeds": len(pairs),
        })  # fmt: skip
    return {"kind": own.kind, "label": own.label, "against": against, "left_out": list(left_out)}


def difference_of(design: DesignRun, pairs: Sequence[tuple[Any, Any]]) -> Difference:
    """The score of the first evaluations above that of the second, by image of the test set."""
    test = design.data.test
    if design.task.task != "classify":
        return bootstrapped([(a.outcomes(test), b.outcomes(test)) for a, b in pairs], len(test))
    right = [np.stack([e.predictions == test.labels for e in side]) for side in zip(*pairs)]
    return paired(*(side.astype(np.float64) for side in right))


def layers(design: DesignRun, before: NetSpec, after: NetSpec) -> dict[str, Any] | None:
    """Milliseconds of each block before and after, where a latency table was made."""
    if not design.table.path.exists():
        return None
    design.table.fitted(after, design.log)
    return {"before": design.table.layer_rows(before), "after": design.table.layer_rows(after)}
