from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mobilefit.train import evaluate, evaluation_of, logits_of

from .small import PRESET, network, shades


def test_confusion_and_top5_by_hand() -> None:
    logits = np.zeros((4, 7), np.float32)
    logits[0, [2, 3]] = 9, 1  # label 2: right
    logits[1, :] = [7, 6, 5, 4, 3, 2, 1]  # label 4: fifth
    logits[2, :] = [1, 2, 3, 4, 5, 6, 7]  # label 1: sixth
    logits[3, [6, 2]] = 3, 2  # label 2: second
    found = evaluation_of(logits, np.array([2, 4, 1, 2]))
    assert found.count == 4 and found.top1 == 0.25 and found.top5 == 0.75
    assert found.predictions.tolist() == [2, 0, 6, 6]
    expected = np.zeros((7, 7), int)
    for label, prediction in ((2, 2), (4, 0), (1, 6), (2, 6)):
        expected[label, prediction] += 1
    assert found.confusion.tolist() == expected.tolist()


def test_loss_and_confidence_are_softmaxs() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = np.arange(20) % 3
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = evaluation_of(logits, labels)
    assert found.loss == pytest.approx(-np.log(shares[range(20), labels]).mean(), rel=1e-5)
    np.testing.assert_allclose(found.confidence, shares.max(1), rtol=1e-5)
    assert found.top5 == 1.0  # of three classes


@pytest.mark.parametrize("batch_size", [5, 256])
def test_evaluate_equals_a_plain_loop(batch_size: int) -> None:
    net, images = network().train(), shades(23)
    with torch.no_grad():  # fresh logits are nearly all alike
        net.head.logits.weight.normal_(0, 3)
    rows = []
    net.eval()
    for index in range(23):
        pixels = images.images([index], 8)[0].permute(1, 2, 0).numpy()
        values = torch.from_numpy(PRESET.apply(Image.fromarray(pixels)))
        with torch.no_grad():
            rows.append(net(values.permute(2, 0, 1)[None])[0])
    expected = torch.stack(rows)
    right = (expected.argmax(1).numpy() == images.labels).mean()
    net.train()
    found = evaluate(net, images, PRESET, batch_size=batch_size)
    assert net.training and net.head.dropout.training
    assert found.top1 == pytest.approx(right) and found.count == 23
    assert found.predictions.tolist() == expected.argmax(1).tolist()
    entropy = torch.nn.functional.cross_entropy(expected, torch.from_numpy(images.labels))
    assert found.loss == pytest.approx(entropy.item(), rel=1e-4)
    logits = logits_of(net, images, PRESET, batch_size=batch_size)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_mode_is_restored_when_a_batch_fails() -> None:
    net = network().train()
    net.head.logits.weight = torch.nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(RuntimeError):
        evaluate(net, shades(3), PRESET)
    assert net.training
