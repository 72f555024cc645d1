"""Run by torchrun: the same small training and evaluation, in as many processes as there are."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from mobilefit.train import SoftTargets, evaluate, fit, logits_of, open_fabric
from mobilefit.train.trainer import Trainer
from train.small import PRESET, RECIPE, SPEC, network, shades

torch.set_num_threads(1)
out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
steps, killed_at = options.pop("steps", 50), options.pop("killed_at", None)
cache = options.pop("cache", None)  # of a teacher; without one nobody teaches
recipe = replace(RECIPE, dropout=0.0, ema_decay=None, **options)
rank = os.environ["RANK"]
atexit.register(lambda: (out / f"joined-{rank}").write_text(str(dist.is_initialized())))  # runs after the later ones
fabric = open_fabric("cpu")
if killed_at is not None and fabric.global_rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    step = Trainer.step

    def dying(self: Trainer, *batch: torch.Tensor) -> float:
        if self.done == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *batch)

    Trainer.step = dying  # type: ignore[method-assign]
net = network()
teacher = None
if cache is not None:
    teacher = SoftTargets(network=network(seed=7, spec=SPEC.resolution(16)),
                          preset=replace(PRESET, resolution=16), cache=Path(cache))  # fmt: skip
result = fit(
    net, shades(), preset=PRESET, recipe=recipe, steps=steps, seed=5, validation=shades(21, seed=1),
    fabric=fabric, out=out / "run", checkpoint_every=1, resume=(out / "run" / "checkpoint.pt").exists(), teacher=teacher,
)
logits = logits_of(network(), shades(53, seed=2), PRESET, batch_size=8, fabric=fabric)
found = evaluate(network(), shades(53, seed=2), PRESET, batch_size=8, fabric=fabric)
if fabric.is_global_zero:
    np.save(out / "logits.npy", logits)
    saved = {"losses": [row["loss"] for row in result.history], "count": found.count,
             "val": [row["val_loss"] for row in result.history if "val_loss" in row],
             "confusion": found.confusion.tolist(), "processes": fabric.world_size}
    (out / "result.json").write_text(json.dumps(saved))
    torch.save(net.state_dict(), out / "net.pt")
