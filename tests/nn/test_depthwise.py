"""The fast gradient of 5x5 depthwise convolutions is the gradient."""

from __future__ import annotations

import pytest
import torch

from mobilefit.nn import depthwise
from mobilefit.nn.layers import Conv2d


def gradients(conv: Conv2d, x: torch.Tensor, along: torch.Tensor) -> list[torch.Tensor]:
    x, conv.weight.grad = x.clone(memory_format=torch.preserve_format).requires_grad_(), None
    y = conv(x)
    y.backward(along.to(y.dtype))
    assert x.grad is not None and conv.weight.grad is not None
    return [y.detach(), x.grad, conv.weight.grad]


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 7, 14])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "torch"])
def test_it_is_that_of_the_plain_convolution_in_double_precision(
    height: int, width: int, stride: int, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(height * 100 + width)
    conv = Conv2d(16, 16, 5, stride, 16, padding).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
    x = last(torch.randn(3, 16, height, width))
    along = torch.randn(3, 16, -(-height // stride), -(-width // stride))
    used: list[bool] = []
    columns = depthwise._five_columns
    monkeypatch.setattr(depthwise, "_five_columns", lambda *a: (used.append(True), columns(*a))[1])
    found = gradients(conv, x, along)
    if height * width > 1:  # the format of a single pixel is anyone's guess
        assert used == [True] * depthwise.HAS_KERNELS
    found = [value.clone() for value in found]  # one of them is the weight's own .grad
    for ours, plain in zip(found, gradients(conv.double(), x.double(), along), strict=True):
        torch.testing.assert_close(ours, plain.float(), rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for_is_computed() -> None:
    conv = Conv2d(16, 16, 5, 1, 16, "same")
    conv.weight.requires_grad_(False)
    x = last(torch.randn(2, 16, 6, 6)).requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.weight.requires_grad_(True)
    conv(x.detach()).sum().backward()
    assert conv.weight.grad is not None


@pytest.mark.skipif(not depthwise.HAS_KERNELS, reason="another processor")
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "dilation", "applies"),
    [(5, 1, 16, 1, True), (5, 2, 16, 1, True), (3, 1, 16, 1, False), (5, 1, 1, 1, False), (5, 1, 8, 1, False),
     (5, 1, 16, 2, False)],
)  # fmt: skip
def test_other_convolutions_are_left_to_torch(
    kernel: int, stride: int, groups: int, dilation: int, applies: bool
) -> None:
    conv = Conv2d(16, 16, kernel, stride, groups, "same", dilation)
    x = last(torch.randn(2, 16, 6, 6))
    assert depthwise.applies(conv, x) == applies
    assert not depthwise.applies(conv, x.contiguous())
    assert not depthwise.applies(conv.double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not depthwise.applies(conv, x)


@pytest.mark.parametrize("side", [4, 5, 7])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_gradient_of_padding_is_that_of_torchs_pad(side: int, kernel: int) -> None:
    conv = Conv2d(4, 6, kernel, 2, 1, "same")
    x = torch.randn(2, 4, side, side + 1, dtype=torch.float64)
    along = torch.randn(2, 6, -(-side // 2), -(-(side + 1) // 2), dtype=torch.float64)
    conv = conv.double()
    found = gradients(conv, x, along)
    conv.eval()  # pads by torch's own
    for ours, plain in zip(found, gradients(conv, x, along), strict=True):
        torch.testing.assert_close(ours, plain)
