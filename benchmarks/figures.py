"""The figures of docs/ that are computed and not measured: ``python -m benchmarks.figures``."""

from __future__ import annotations

from benchmarks.common import ROOT
from mobilefit.report import rewards_figure
from mobilefit.runs import write_atomic
from mobilefit.search.reward import FORMS, Reward

ACCURACY = 0.75


def reward_curves() -> dict[str, list[tuple[float, float]]]:
    """Each reward form over latency / target from 0.4 to 2, at one accuracy."""
    ratios = [0.4 + 0.02 * i for i in range(81)]
    forms = {name: Reward(form=name, target_ms=1.0) for name in FORMS}
    return {
        name: [(ratio, reward(ACCURACY, ratio)) for ratio in ratios] for name, reward in forms.items()
    }


if __name__ == "__main__":
    write_atomic(ROOT / "docs" / "rewards.svg", rewards_figure(reward_curves()))
