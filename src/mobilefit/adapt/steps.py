"""What NetAdapt and the knapsack share: steps from a trained network down to a latency, and their log.

A step begins with the network that the step before it left, tries smaller ones and accepts one. Everything is
logged; a run that was interrupted anywhere, also in the middle of a step, continues and takes the same steps.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from mobilefit.adapt.importance import ChannelImportance, Gates, filter_norms
from mobilefit.adapt.judgement import Judgement, LossStore, as_fields, undecided
from mobilefit.adapt.proposals import KINDS, Group, Latency, Proposal, groups, removable
from mobilefit.adapt.transfer import leave_out, transfer
from mobilefit.arch import NetSpec
from mobilefit.errors import InputError, unknown
from mobilefit.nn import Network, load_network, save_weights
from mobilefit.parsing import check_fields, shown
from mobilefit.runs import ROW_HINT, append_jsonl, read_log
from mobilefit.train.statistics import paired

TOP1 = "val_top1"


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What shrinking needs to be given."""

    latency: Latency
    """Milliseconds of a spec, from the lookup table or measured."""
    confirm: Callable[[Network], float]
    """End-to-end measurement of an accepted network's exported file, milliseconds."""
    tune: Callable[[Network, int], None]
    """Short-term fine-tuning in place, by a seed."""
    judge: Callable[[Network], Judgement]
    """How good a network is on held-out images. It may set the network's batch norm statistics, which stay; never
    its weights."""
    images: int
    """How many images it is judged on."""
    importance: Callable[[Network], ChannelImportance] = filter_norms
    """Which channels of the network that a step begins with matter: asked once a step."""
    gates: Callable[[Network], Gates] | None = None
    """What the knapsack foretells losses by, and keeps channels by; NetAdapt needs none."""
    quality: str = TOP1
    """What the score is, a :attr:`mobilefit.train.task.Task.score`."""


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """Where shrinking arrived."""

    spec: NetSpec
    steps: int
    latency_ms: float
    """Of the last step, from ``Tools.latency``."""
    measured_ms: float
    """Of the last step, confirmed end to end."""


class StepRun:
    """The steps of a run that are accepted, its log, and the weights that the last step left.

    Args:
        network: trained; not changed.
        target_ms: stop at or under this latency.
        margin: the estimate must come under the target by this part of it; the measurement need not.
        out: folder for the log and the weights; what is there is taken up.
        log: the file's name.
        seed: of the fine-tunings.
    """

    def __init__(
        self, network: Network, target_ms: float, margin: float, tools: Tools, out: Path, log: str, seed: int
    ) -> None:
        self.network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        self.target_ms, self.margin, self.tools = target_ms, margin, tools
        self.out, self.log_path, self.seed = out, out / log, seed
        self.rows = read_log(self.log_path, _fields)
        self._refuse_repeated()
        self.accepted: dict[str, Any] = {}
        self.losses = LossStore(out / "losses")
        self._before: tuple[int, Judgement] | None = None
        self._importance: tuple[int, ChannelImportance] | None = None

    def start(self) -> None:
        """Measure the seed, or take up the last accepted step of an earlier run."""
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.rows:
            quality = {} if self.tools.quality == TOP1 else {"quality": self.tools.quality}
            self._log({
                "event": "seed", "step": 0, "what": "seed", **quality,
                "latency_ms": self.tools.latency(self.network.spec),
                "measured_ms": self.tools.confirm(self.network),
                "accuracy": self.tools.judge(copy.deepcopy(self.network)).score,
                "spec_id": self.network.spec.id, "weights": _digest(self.network),
                "spec": self.network.spec.to_dict(),
            })  # fmt: skip
        self.origin = self.rows[0]
        if self.origin["event"] != "seed":
            raise InputError(f"{self.log_path} does not begin with the seed network's row", ROW_HINT)
        began = self.origin.get("spec_id"), self.origin.get("weights")
        if began != (self.network.spec.id, _digest(self.network)):
            raise InputError(f"{self.log_path} began from another network", "use another output folder")
        self.accepted = [row for row in self.rows if row["event"] in ("seed", "accepted")][-1]
        if self.accepted["step"]:
            weights = self._weights(self.accepted["step"])
            if not weights.is_file():
                raise InputError(
                    f"{self.log_path} ends with step {self.accepted['step']}, whose weights ({weights.name}) are not there",
                    ROW_HINT,
                )
            self.network = load_network(weights)
            self._forget(self.accepted["step"])

    def _refuse_repeated(self) -> None:
        """What a step is decided by counts once; a proposal whose losses were lost is judged again, and logged again."""
        decided = [(row["event"], row["step"]) for row in self.rows if row["event"] in ("seed", "plan", "accepted")]
        repeated = {key for key in decided if decided.count(key) > 1}
        if repeated:
            event, step = min(repeated)
            raise InputError(f"{self.log_path} has the row '{event}' of step {step} more than once", ROW_HINT)

    def done(self) -> bool:
        """Whether the estimate (with its margin) and the measurement are within the target."""
        return self._over() <= 1e-9  # a picosecond: rounding

    def adapted(self) -> Adapted:
        """The network of the last step."""
        last = self.accepted
        return Adapted(
            spec=self.network.spec, steps=last["step"], latency_ms=last["latency_ms"],
            measured_ms=last["measured_ms"],
        )  # fmt: skip

    def importance(self) -> ChannelImportance:
        """Which channels of the present network matter."""
        return self.tools.importance(self.network)

    def _over(self) -> float:
        """What is left to cut, milliseconds: the last step cuts no more than that."""
        estimate = self.accepted["latency_ms"] - self.target_ms * (1 - self.margin)
        return float(max(estimate, self.accepted["measured_ms"] - self.target_ms))

    def _before_step(self, step: int) -> Judgement:
        """How good the network is that a step begins with."""
        if self._before is None or self._before[0] != step:
            self._before = step, self.tools.judge(self.network)
        return self._before[1]

    def _importance_before(self, step: int) -> ChannelImportance:
        """Of the network that a step begins with."""
        self._before_step(step)  # sets its statistics
        if self._importance is None or self._importance[0] != step:
            self._importance = step, self.importance()
        return self._importance[1]

    def _inherited(self, proposal: Proposal, step: int) -> Network:
        """A proposal with the weights of the channels and blocks that stay."""
        candidate = transfer(self.network, proposal.narrowed, self._importance_before(step))
        return leave_out(candidate, proposal.left_out) if proposal.left_out else candidate

    def _tuned(self, proposal: Proposal, step: int) -> tuple[Network, Judgement]:
        """A proposal after its fine-tuning, on the batches that all proposals of the step are tuned on."""
        candidate = self._inherited(proposal, step)
        self.tools.tune(candidate, self.seed * 100_000 + step * 1000)
        return candidate, self.tools.judge(candidate)

    def _row(self, event: str, proposal: Proposal, step: int, judgement: Judgement) -> dict[str, Any]:
        """What the log keeps of a network that was judged."""
        return {
            "event": event, "step": step, "what": proposal.what,
            "latency_ms": proposal.latency_ms, "measured_ms": None, "accuracy": judgement.score,
            **as_fields(paired(judgement.losses, self._before_step(step).losses)),
            "spec_id": proposal.spec.id,
        }  # fmt: skip

    def _judged(self, step: int) -> dict[str, dict[str, Any]]:
        """The rows of the step's proposals that were judged already, by the ids of their specs."""
        rows = self._logged("proposal", step)
        count = len(self._before_step(step).losses) if rows else 0
        return {row["spec_id"]: row for row in rows if self.losses.has(step, row["spec_id"], count)}

    def _planned_change(self, entry: dict[str, Any], name: Any, width: Any) -> tuple[Group, int]:
        """A group of the present network, and the width that an entry of the log's plan gives it.

        Raises:
            InputError: the network has no such group, or the width is not below its own.
        """
        spec = self.network.spec
        by_name = {group.name: group for group in (*groups(spec, KINDS), *removable(spec, KINDS))}
        group = by_name.get(name) if isinstance(name, str) else None
        within = group is not None and type(width) is int and (
            width == 0 if group.kind == "block" else 0 < width < group.width
        )
        check_fields(entry, {"latency_ms": float}, f"{self.log_path}: the plan")
        if group is None or not within:
            raise InputError(f"{self.log_path}: the network cannot be shrunk as the plan says: {shown(entry)}", ROW_HINT)
        return group, width

    def _undecided(self, ranked: Sequence[dict[str, Any]], step: int) -> dict[str, int | None]:
        """How many other proposals have a loss that is within one and two standard errors of the best one's."""
        best, *others = (self.losses.load(step, row["spec_id"]) for row in ranked)
        return {
            "within_one_error": undecided(best, others, 1.0), "within_two_errors": undecided(best, others, 2.0)
        }  # fmt: skip

    def _accept(self, network: Network, row: dict[str, Any]) -> None:
        """End a step with a network whose weights are saved; measured end to end."""
        self._log({
            **row, "event": "accepted", "measured_ms": self.tools.confirm(network), "spec": network.spec.to_dict()
        })  # fmt: skip
        self.network, self.accepted = network, self.rows[-1]
        self._forget(self.accepted["step"])

    def _best(self, proposal: Proposal, step: int) -> Network:
        """Its saved weights; tuned again where the file is another's.

        That happens when proposals were judged together in vain, when a run was cut off between the file and its
        log row and the tuning did not repeat exactly, or when the rule was changed in between.
        """
        path = self._weights(step)
        if not path.exists() or load_network(path).spec.id != proposal.spec.id:
            save_weights(self._tuned(proposal, step)[0], path)
        return load_network(path)

    def _forget(self, step: int) -> None:
        """Remove what no step needs any more once ``step`` is accepted."""
        self._weights(step - 1).unlink(missing_ok=True)
        self.losses.remove(step)

    def _weights(self, step: int) -> Path:
        return self.out / f"step_{step:03d}.safetensors"

    def _logged(self, event: str, step: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["event"] == event and row["step"] == step]

    def _log(self, row: dict[str, Any]) -> None:
        append_jsonl(self.log_path, row)
        self.rows.append(row)


_JUDGED = {"latency_ms": float, "accuracy": float, "spec_id": str}
_FIELDS: dict[str, dict[str, Any]] = {
    "seed": _JUDGED | {"measured_ms": float},
    "plan": {"proposals": tuple[dict[str, Any], ...]},
    "proposal": _JUDGED | {"loss_change": Real},
    "joint": _JUDGED | {"loss_change": Real, "holds": bool},
    "price": {"loss_change": Real},
    "accepted": _JUDGED | {"measured_ms": float},
}
"""What a run that continues reads of its log's rows, by event."""


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    event = row.get("event")
    if not isinstance(event, str) or event not in _FIELDS:
        raise unknown("event", str(event), _FIELDS)
    if event != "plan" and not isinstance(row.get("what"), str):  # of any length: it names all groups that shrink
        raise InputError("it lacks the text 'what'")
    return {"step": int, **_FIELDS[event]}


def _digest(network: Network) -> str:
    """Twelve hexadecimal digits that stand for the weights."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
