"""Run by torchrun: the same few steps of a small detector, in as many processes as there are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from train.small import with_fixed_statistics

from mobilefit.data import Preset
from mobilefit.data.detection import load_detection
from mobilefit.nn import copy_weights
from mobilefit.tasks.detect import Detect
from mobilefit.train import SoftTargets, fit, open_fabric, recipe
from tasks.scenes import SIDE, detector_network

torch.set_num_threads(1)
out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
fabric = open_fabric("cpu")
large = detector_network(seed=7)
teacher = SoftTargets(network=copy_weights(large, large.spec.resolution(96)), preset=Preset(resolution=96, fit="stretch"))
result = fit(
    with_fixed_statistics(detector_network()), load_detection(options["data"], holdout=0.0).train,
    preset=Preset(resolution=SIDE, fit="stretch"), task=Detect(), seed=3, steps=6, fabric=fabric,
    recipe=replace(recipe("detect"), batch_size=8, optimizer="sgd", lr=0.05, warmup_epochs=0, ema_decay=None,
                   distillation=0.5 * options["taught"]),
    teacher=teacher if options["taught"] else None,
)  # fmt: skip
if fabric.is_global_zero:
    losses = [row["loss"] for row in result.history]
    (out / "result.json").write_text(json.dumps({"losses": losses, "processes": fabric.world_size}))
