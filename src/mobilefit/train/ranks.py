"""Several processes at one training: what they tell each other, and batch norm over all of them.

Fabric starts the processes, or finds itself in one that ``torchrun`` started. With one process
everything here is free.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from mobilefit.errors import InputError
from mobilefit.train.recipe import Precision

ACCELERATORS = ("auto", "cpu", "cuda", "mps")


def open_fabric(
    accelerator: str = "auto", precision: Precision = "32-true", *, devices: int = 1, nodes: int = 1
) -> Fabric:
    """Fabric with its processes started.

    Args:
        accelerator: one of :data:`ACCELERATORS`.
        precision: Fabric's name for it.
        devices: processes on this machine, one a device; under ``torchrun`` its own number counts.
        nodes: machines.

    Raises:
        InputError: this machine has no such accelerator, not as many devices, or cannot compute so.
    """
    if accelerator not in ACCELERATORS:
        raise InputError(f"no accelerator '{accelerator}'", f"choose from {', '.join(ACCELERATORS)}")
    several = devices * nodes > 1 or dist.is_torchelastic_launched()
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=_devices(devices), num_nodes=nodes,
            precision=precision, strategy="ddp" if several else "auto",
        )  # fmt: skip
    except (ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(
            f"cannot train on {devices} x '{accelerator}' here: {reason}",
            f"choose --accelerator from {', '.join(ACCELERATORS)}, and --devices, as this machine has them",
        ) from error
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise InputError("16-mixed needs a GPU", "use bf16-mixed or 32-true on a processor")
    if several:
        _join_restarted(fabric.device)
        fabric.launch()
        if dist.get_backend() == "gloo":  # NCCL's is left by Fabric
            atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Leave the other processes while Python is still whole.

    Otherwise gloo's threads may free the tensors of the last exchange when it no longer is, and the process
    aborts ("terminate called without an active exception", pytorch/pytorch#179291): torchrun would count a
    training that is done as failed.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # DDP's cycles hold the group, whose threads end with it


def _join_restarted(device: torch.device) -> None:
    """Find the other processes of this attempt, where torchrun has started them all again.

    Its store lives on, and torch 2.14 looks in it for the addresses of the attempt before.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=dist.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
    )  # fmt: skip


def _devices(wanted: int) -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_torchelastic_launched() else wanted


def total(fabric: Fabric, *values: float) -> list[float]:
    """The sum of each value over all processes."""
    if fabric.world_size == 1:
        return list(values)
    together = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    dist.all_reduce(together)
    return [float(value) for value in together]


def gathered(fabric: Fabric | None, part: Any) -> list[Any]:
    """Every process's ``part``, in the processes' order, in every process."""
    if fabric is None or fabric.world_size == 1:
        return [part]
    parts: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(parts, part)
    return parts


@torch.no_grad()
def align(fabric: Fabric, tensors: list[Tensor]) -> None:
    """Give every process the first one's values: statistics of batch norm are each process's own."""
    if fabric.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since each one's result went into every loss."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of the batch in all processes.

    torch's own runs on GPUs only; this one runs wherever ``all_reduce`` does. The processes may have
    different numbers of images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same."""
        if not self.training:
            return super().forward(x)
        count = x.numel() / self.num_features
        values = x.float()
        sums = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), x.new_tensor([count]).float()])
        sums = _Sum.apply(sums)
        of_all = sums[-1].detach()
        mean, square = (sums[:-1] / of_all).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        self._track(mean.detach(), variance.detach() * of_all / (of_all - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


@contextlib.contextmanager
def synchronized(net: nn.Module, on: bool) -> Iterator[None]:
    """Within the block every batch norm of the network is a :class:`SyncBatchNorm2d`."""
    norms = [norm for norm in net.modules() if type(norm) is nn.BatchNorm2d] if on else []
    try:
        for norm in norms:
            norm.__class__ = SyncBatchNorm2d  # same state, other forward pass
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d
