"""The detector's head: its layers, the order of its outputs, fresh weights, and that it can be traced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from weights import randomized

from mobilefit.arch import DETECTORS, NetSpec, SSDLiteHead, spec
from mobilefit.errors import InputError
from mobilefit.nn import boxes, build
from mobilefit.nn.layers import ConvNormAct, Rows
from mobilefit.nn.ssdlite import RARE, SSDLite

SMALL = spec("ssdlite_mobilenet_v3_small_reduced").classes(3)


def small(made: NetSpec = SMALL) -> SSDLite:
    torch.manual_seed(0)
    head: SSDLite = build(made).eval().head
    return head


@pytest.mark.parametrize("name", list(DETECTORS))
def test_every_detector_has_the_layers_and_parameters_of_its_cost(name: str) -> None:
    made = spec(name).resolution(96)
    network = build(made).eval()
    assert sum(p.numel() for p in network.parameters()) == made.cost().params
    for layer in made.cost().layers:
        assert isinstance(network.layer(layer.name), nn.Module)
    with torch.no_grad():
        encodings, logits = network(torch.zeros(2, 3, 96, 96))
    count = len(boxes.spec_anchors(made))
    assert encodings.shape == (2, count, 4)
    assert logits.shape == (2, count, 91)


def test_outputs_are_for_long_images_too() -> None:
    made = SMALL.resolution(64, 160)
    with torch.no_grad():
        encodings, logits = build(made).eval()(torch.zeros(1, 3, 64, 160))
    assert encodings.shape[1] == logits.shape[1] == len(boxes.spec_anchors(made))


def test_rows_come_in_the_order_of_the_anchors() -> None:
    """A predictor that says where it is, and which of the place's boxes it speaks for."""
    made = replace(SMALL, head=SSDLiteHead(num_classes=1, taps=SMALL.head.taps, extras=(288,)))  # type: ignore[union-attr]
    head, maps = small(made), [torch.zeros(1, width, *at) for width, at in ((288, (2, 3)), (288, (1, 2)))]
    for index, anchors in enumerate((3, 6, 6)):
        head.boxes[index] = nn.Sequential(Place(anchors), Rows(4))
    head.extras[0] = nn.AvgPool2d((1, 2))
    found = head(maps)[0][0]
    wanted = boxes.anchors(made.head, [(2, 3), (1, 2), (1, 1)])  # type: ignore[arg-type]
    torch.testing.assert_close(found[:, :2], wanted[:, :2])
    assert found[:, 2].tolist() == [0, 1, 2] * 6 + [0, 1, 2, 3, 4, 5] * 3


class Place(nn.Module):
    """Each anchor's (x, y, number, 0) as a predictor gives them: an anchor's channels together."""

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        found = torch.zeros(1, self.anchors, 4, height, width)
        found[:, :, 0] = (torch.arange(width) + 0.5) / width
        found[:, :, 1] = ((torch.arange(height) + 0.5) / height)[:, None]
        found[:, :, 2] = torch.arange(self.anchors)[None, :, None, None]
        return found.flatten(1, 2)


def test_taps_are_the_expansion_and_the_last_layer() -> None:
    network = randomized(build(SMALL))
    head, seen = network.head, []
    assert head.taps == ("blocks.8.expand", "last")
    head.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        network(images)
        x = network.backbone.stem(images)
        for row in network.backbone.blocks[:8]:
            x = row(x)
        expected = network.backbone.blocks[8].expand(x), network.backbone(images)
    assert all(torch.equal(mine, other) for mine, other in zip(seen[0], expected, strict=True))


def test_the_heads_norms_are_its_own() -> None:
    for layer in small().modules():
        if isinstance(layer, ConvNormAct):
            assert (layer.norm.eps, layer.norm.momentum) == (1e-3, 0.03)
            assert isinstance(layer.act, nn.ReLU6)


# ---- fresh weights


def test_fresh_weights_are_tensorflows_under_a_focal_loss() -> None:
    head = small()
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            cut = name.startswith("extras")
            assert (module.weight.abs().max() <= 0.06) == cut or module.weight.numel() < 500
            assert float(module.weight.detach().std()) == pytest.approx(0.0264 if cut else 0.03, rel=0.15)
    biases = torch.cat([p.predict.bias.detach() for p in head.classes])
    torch.testing.assert_close(biases, torch.full_like(biases, RARE))
    assert all((p.predict.bias == 0).all() for p in head.boxes)


def test_every_class_begins_at_a_score_of_a_hundredth() -> None:
    network = build(SMALL).eval()
    with torch.no_grad():
        _, logits = network(torch.randn(1, 3, 96, 96))
    assert float(boxes.scores(logits, "sigmoid").mean()) == pytest.approx(0.01, rel=0.1)


def test_fresh_weights_are_torchvisions_under_softmax() -> None:
    head = small(replace(SMALL, head=replace(SMALL.head, scoring="softmax")))
    assert all((p.predict.bias == 0).all() for p in [*head.classes, *head.boxes])
    weights = torch.cat([m.weight.detach().flatten() for m in head.modules() if isinstance(m, nn.Conv2d)])
    assert float(weights.std()) == pytest.approx(0.03, rel=0.02)
    assert weights.abs().max() > 0.1


# ---- tracing, training


class Tracer(fx.Tracer):
    """Stops at the layers that the compiler translates by themselves."""

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        return isinstance(m, (nn.Conv2d, Rows)) or super().is_leaf_module(m, qualname)


def test_it_can_be_traced() -> None:
    network = randomized(build(SMALL))
    traced = fx.GraphModule(network, Tracer().trace(network))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for mine, other in zip(traced(images), network(images), strict=True):
            assert torch.equal(mine, other)


def test_a_step_on_one_image_lowers_its_loss() -> None:
    made = SMALL.resolution(96)
    network, anchors = build(made).train(), boxes.spec_anchors(made)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[[0.1, 0.1, 0.5, 0.6]], [[0.3, 0.2, 0.9, 0.9]]])
    labels = torch.tensor([[0], [2]])
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.05), []
    for _ in range(4):
        loss = boxes.ssd_loss(*network(images), truth, labels, anchors, "sigmoid").mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_classifier_has_no_such_head() -> None:
    with pytest.raises(InputError, match="'mobilenet_v2' is no detector: its head is for 'classify'"):
        SSDLite(spec("mobilenet_v2"))
