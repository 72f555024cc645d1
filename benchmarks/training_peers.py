"""What the benchmark of training runs in processes of their own; takes one command as JSON.

    python training_peers.py '{"do": "watch", "script": "mobilefit", "arguments": ["train", ...], ...}'

``watch`` runs a training script as it is and times its steps; ``alone`` times our data loading and
the network, each without the other. What they find goes to the file named by ``out``, as JSON.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "mobilefit"
"""The script that is a module."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which steps of a training are timed."""

    warm_up: int = 5
    """Steps before, at least."""
    warm_up_seconds: float = 3.0
    """And seconds: until then the workers of a script fill their queues."""
    steps: int = 6
    """Timed, at least."""
    seconds: float = 3.0
    """And for so long, at least."""
    most: int = 1000
    """No step after this one is timed: the workers have no images left to prepare."""
    after: int = 2
    """Steps more, in which memory is looked at, which costs time."""


class Done(SystemExit):
    """The stopwatch has seen enough."""


class Stopwatch:
    """Notes when the steps of a training are done, whoever's training it is.

    A step is done when an optimizer has stepped, which torch tells by a hook for all optimizers, and
    waiting for data is the time that the main thread spends in ``next()`` of torch's ``DataLoader``.
    The training sees nothing of it until ``Done`` is raised.

    Args:
        rule: which steps are timed.
        out: where the times are written; beside it lies ``quiet`` as long as steps are timed.
    """

    def __init__(self, rule: Rule, out: Path) -> None:
        self.rule, self.out, self.quiet = rule, out, out.with_name("quiet")
        self.done: list[float] = []
        self.waited: list[float] = []
        self._waited = 0.0
        self._first: int | None = None
        self._last: int | None = None

    def start(self) -> None:
        """Begin to listen."""
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from torch.utils.data import dataloader

        register_optimizer_step_post_hook(self.stepped)
        iterator: Any = dataloader._BaseDataLoaderIter
        iterator.__next__ = self._waiting(iterator.__next__)

    def _waiting(self, following: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(loader: Any) -> Any:
            began = time.perf_counter()
            try:
                return following(loader)
            finally:
                if threading.current_thread() is threading.main_thread():
                    self._waited += time.perf_counter() - began

        return timed

    def stepped(self, *_: Any) -> None:
        """A step is done."""
        self.done.append(time.perf_counter())
        self.waited.append(self._waited)
        if self._first is None:
            if self._is_warm():
                self._first = self._edge()
                self.quiet.touch()
        elif self._last is None:
            if self._is_enough(self._first):
                self._last = self._edge()
                self.quiet.unlink()
        elif len(self.done) > self._last + self.rule.after:
            self._write(self._first, self._last)
            raise Done

    def _is_warm(self) -> bool:
        rule, steps = self.rule, len(self.done)
        late = steps >= rule.most - rule.steps
        return late or (steps >= rule.warm_up and self.done[-1] - self.done[0] >= rule.warm_up_seconds)

    def _is_enough(self, first: int) -> bool:
        rule, steps = self.rule, len(self.done) - 1 - first
        enough = steps >= rule.steps and self.done[-1] - self.done[first] >= rule.seconds
        return enough or len(self.done) >= rule.most

    def _edge(self) -> int:
        """The step just done begins or ends what is timed: wait for a GPU that is still at it."""
        _synchronize()
        self.done[-1] = time.perf_counter()
        return len(self.done) - 1

    def _write(self, first: int, last: int) -> None:
        import torch

        loaded = {name: getattr(sys.modules.get(name), "__version__", None)
                  for name in ("torch", "torchvision", "timm")}  # fmt: skip
        steps = [after - before for before, after in zip(self.done[first:last], self.done[first + 1 :])]
        found = {
            "first": first + 1, "last": last + 1, "step_s": steps,
            "wait_s": self.waited[last] - self.waited[first],
            "threads": torch.get_num_threads(), "versions": loaded,
        }  # fmt: skip
        self.out.write_text(json.dumps(found))


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def watch(script: str, arguments: list[str], rule: dict[str, Any], kept: bool, out: str) -> None:
    """Run a script under a stopwatch, as ``python script arguments`` would, until it has seen enough."""
    stopwatch = Stopwatch(Rule(**rule), Path(out))
    stopwatch.start()
    _keep(kept)
    sys.argv = [script, *arguments]
    if script == OURS:
        runpy.run_module(OURS, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    raise SystemExit(f"{script} ended after {len(stopwatch.done)} steps, too few to time")


def _keep(kept: bool) -> None:
    """With ``False`` our loader decodes every photo for every batch, as if there were no room for any."""
    if not kept:
        import mobilefit.data.folder

        vars(mobilefit.data.folder)["ROOM"] = 0


def alone(
    data: str, networks: list[str], resolution: int, batch: int, device: str, rule: dict[str, Any],
    kept: bool, out: str,
) -> None:  # fmt: skip
    """Images a second of our loader without a network, and of networks on a batch that is there."""
    _keep(kept)
    limits = Rule(**rule)
    found = {"loader": loader_rate(data, resolution, batch, device, limits)}
    for name in networks:
        found[name] = network_rate(name, resolution, batch, device, limits)
    Path(out).write_text(json.dumps(found))


def loader_rate(data: str, resolution: int, batch: int, device: str, rule: Rule) -> float:
    """Our training batches as fast as they come, prepared as ``mobilefit train`` has them prepared."""
    from mobilefit.data import AUGMENTS, Feed, by_workers, load
    from mobilefit.data.images import worker_count
    from mobilefit.train.loop import MOST_WORKERS

    images = load(data)
    feed = Feed(images.train, images.preset(resolution), batch, augment=AUGMENTS["resized"])
    workers = 0 if device == "cpu" else min(MOST_WORKERS, worker_count())
    batches = by_workers(feed, range(1_000_000), workers, pin=device == "cuda")
    return batch / _seconds_a_call(lambda: next(batches), rule)


def network_rate(name: str, resolution: int, batch: int, device: str, rule: Rule) -> float:
    """Plain SGD steps on one batch, channels last: the most that a loader could be asked for."""
    import torch
    import torch.nn.functional as F

    import mobilefit as mf

    spec = mf.spec(name).resolution(resolution).classes(10)
    net = mf.build(spec).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = torch.randn(batch, 3, resolution, resolution, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return batch / _seconds_a_call(step, rule)


def _seconds_a_call(call: Callable[[], object], rule: Rule) -> float:
    for _ in range(3):
        call()
    _synchronize()
    began, calls = time.perf_counter(), 0
    while calls < rule.steps or time.perf_counter() - began < rule.seconds / 2:
        call()
        calls += 1
    _synchronize()
    return (time.perf_counter() - began) / calls


COMMANDS: dict[str, Callable[..., None]] = {"watch": watch, "alone": alone}

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules are not the scripts'
    command = json.loads(sys.argv[1])
    COMMANDS[command.pop("do")](**command)
