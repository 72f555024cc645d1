"""Against torchvision's and timm's own classes: every operation to the bit, and how often each comes."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import v2

from mobilefit.data.decode import Pixels
from mobilefit.data.policy import (
    OPERATIONS,
    AutoAugment,
    Resampling,
    Step,
    TimmRandAugment,
    policy,
)
from mobilefit.errors import InputError

from .conftest import photo

PEERS = {
    "autoaugment": v2.AutoAugment(),
    "randaugment": v2.RandAugment(),
    "trivialaugment": v2.TrivialAugmentWide(),
}
NAMES = [*PEERS, "rand-m9-mstd0.5", "rand-m7-mstd1.0-n3-inc1"]
DRAWS = 4000
SIZES = [(32, 32), (45, 28)]


def picture(seed: int, size: tuple[int, int] = (32, 32), channels: int = 3) -> Pixels:
    pixels = np.asarray(photo(seed, size))
    return pixels.copy() if channels == 3 else pixels[..., :1].copy()


def as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def the(name: str) -> Any:
    found = policy(name)
    assert found is not None
    return found


def seeded(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Every operation


def torchvision_magnitudes(peer: Any, operation: str, size: tuple[int, int]) -> tuple[Any, bool]:
    bins = 10 if isinstance(peer, v2.AutoAugment) else peer.num_magnitude_bins
    magnitudes, signed = peer._AUGMENTATION_SPACE[operation]
    return magnitudes(bins, size[1], size[0]), signed


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PEERS)
def test_operations_are_torchvisions_at_every_magnitude(
    name: str, channels: int, size: tuple[int, int]
) -> None:
    peer, ours = PEERS[name], the(name)
    image = as_image(picture(1, size, channels))
    for operation in set(peer._AUGMENTATION_SPACE) - {"Identity"}:
        magnitudes, signed = torchvision_magnitudes(peer, operation, size)
        for place in range(1 if magnitudes is None else len(magnitudes)):
            for sign in (1, -1) if signed else (1,):
                magnitude = 0.0 if magnitudes is None else float(magnitudes[place]) * sign
                expected = peer._apply_image_or_video_transform(
                    image, operation, magnitude, peer.interpolation, peer._fill
                )
                found = ours.scale.step(operation, place, sign, size).on(image)
                assert found.mode == image.mode and found.size == size
                assert np.array_equal(found, expected), (operation, place, sign)


TIMM_NAMES = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def timm_operation(operation: str, level: float, increasing: bool, how: Resampling) -> timm.AugmentOp:
    name = TIMM_NAMES.get(operation, operation)
    if increasing and operation in INCREASING:
        name += "Increasing"
    settings = {"img_mean": (128,) * 3, "interpolation": how, "magnitude_max": 20}
    return timm.AugmentOp(name, prob=1.0, magnitude=level, hparams=settings)


@pytest.mark.parametrize("how", [Resampling.BILINEAR, Resampling.BICUBIC], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("increasing", [False, True], ids=["", "inc1"])
def test_operations_are_timms_at_every_magnitude(
    monkeypatch: pytest.MonkeyPatch, increasing: bool, how: Resampling
) -> None:
    size = (45, 28)
    image = as_image(picture(2, size))
    ours = TimmRandAugment(increasing=increasing)
    for operation in set(OPERATIONS) - {"Identity"}:
        for level in (0, 0.4, 2.5, 4.9, 5, 7.3, 9, 9.6, 10, 14.5, 20):
            for sign in (1, -1):
                moves_back = operation.startswith("Translate")  # timm's positive is to the left
                lot = 0.2 if sign == (-1 if moves_back else 1) else 0.8
                monkeypatch.setattr(timm.random, "random", lambda lot=lot: lot)
                expected = timm_operation(operation, level, increasing, how)(image)
                argument = ours.argument(operation, level, sign, size)
                found = Step(operation, argument, how, 128).on(image)
                assert np.array_equal(found, expected), (operation, level, sign)


@pytest.mark.parametrize("name", NAMES)
def test_grey_comes_out_as_the_same_grey_in_colour(name: str) -> None:
    for number in range(80):
        grey = picture(number, channels=1)
        colour = np.repeat(grey, 3, axis=2)
        found = the(name).apply(grey, seeded(number))
        assert found.shape == grey.shape and found.dtype == np.uint8
        expected = the(name).apply(colour, seeded(number))
        assert np.array_equal(np.repeat(found, 3, axis=2), expected), number


# How often


@pytest.fixture
def global_seeds() -> Iterator[None]:
    """Seeds what the peers draw from, and puts it back."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


Drawn = list[list[tuple[str, float]]]
"""For each image its operations with their arguments, in our terms."""


def drawn_by_us(name: str) -> Drawn:
    ours, generator = the(name), seeded(7)
    images = [ours.draw((100, 60), generator) for _ in range(DRAWS)]
    return [[(step.operation, step.argument) for step in steps] for steps in images]


def drawn_by_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    peer = PEERS[name]
    drawn: Drawn = []

    def record(image: Any, operation: str, magnitude: float, **_: Any) -> Any:
        if operation != "Identity":
            drawn[-1].append((operation, in_our_terms(operation, magnitude)))
        return image

    monkeypatch.setattr(peer, "_apply_image_or_video_transform", record)
    for _ in range(DRAWS):
        drawn.append([])
        peer(Image.new("RGB", (100, 60)))
    return drawn


def in_our_terms(operation: str, magnitude: float) -> float:
    if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1 + magnitude
    if operation == "Solarize":
        return float(np.ceil(255 * magnitude))
    return int(magnitude) if operation.startswith("Translate") else magnitude


def drawn_by_timm(name: str) -> Drawn:
    peer, sides = timm.rand_augment_transform(name), {"TranslateX": 100, "TranslateY": 60}
    drawn: Drawn = []

    def recorder(operation: str) -> Callable[..., Image.Image]:
        def record(image: Image.Image, argument: float = 0.0, **_: Any) -> Image.Image:
            drawn[-1].append((operation, argument * sides.get(operation, 1)))
            return image

        return record

    for one in peer.ops:
        one.aug_fn = recorder(one.name.removesuffix("Increasing").removesuffix("Rel"))
    for _ in range(DRAWS):
        drawn.append([])
        peer(Image.new("RGB", (100, 60)))
    return drawn


def assert_alike(ours: Drawn, theirs: Drawn) -> None:
    """The same operations after each other, as often, with arguments of the same distribution."""
    mine, peers = (Counter(tuple(name for name, _ in steps) for steps in drawn) for drawn in (ours, theirs))
    for operations in mine | peers:
        both = mine[operations] + peers[operations]
        assert abs(mine[operations] - peers[operations]) < 5 * both**0.5, operations
    for operation in {name for steps in ours for name, _ in steps}:
        one, two = (
            np.array([value for steps in drawn for name, value in steps if name == operation])
            for drawn in (ours, theirs)
        )
        # Kolmogorov and Smirnov's test, at 0.005 %
        assert difference(one, two) < 2.3 * (1 / len(one) + 1 / len(two)) ** 0.5, operation


def difference(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> float:
    """The largest between the shares of values below any bound."""
    one, two = np.sort(one.round(4)), np.sort(two.round(4))
    bounds = np.concatenate([one, two])
    shares = [np.searchsorted(values, bounds, "right") / len(values) for values in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.usefixtures("global_seeds")
@pytest.mark.parametrize("name", PEERS)
def test_torchvision_draws_the_same_as_often(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_alike(drawn_by_us(name), drawn_by_torchvision(name, monkeypatch))


@pytest.mark.usefixtures("global_seeds")
@pytest.mark.parametrize(
    "name",
    ["rand-m9-mstd0.5", "rand-m7-mstd1.5-inc1-n3", "rand-m8-mstd101-p0.9", "rand-m15-mmax20-mstd4-n1", "rand-m15-p1"],
)  # fmt: skip
def test_timm_draws_the_same_as_often(name: str) -> None:
    assert_alike(drawn_by_us(name), drawn_by_timm(name))


def test_timms_noise_has_the_deviation_asked_for() -> None:
    generator, ours = seeded(1), the("rand-m5-mstd1.5-n8-p1")
    drawn = [step for _ in range(3000) for step in ours.draw((9, 9), generator)]
    levels = [(step.argument - 0.1) / 0.18 for step in drawn if step.operation == "Color"]
    assert np.mean(levels) == pytest.approx(5, abs=0.2) and np.std(levels) == pytest.approx(1.5, rel=0.08)


def test_timms_resampling_is_bilinear_or_bicubic_by_lot() -> None:
    generator, ours = seeded(1), the("rand-m9-mstd0.5")
    drawn = [step for _ in range(2000) for step in ours.draw((9, 9), generator)]
    bilinear = sum(step.resampling == Resampling.BILINEAR for step in drawn)
    assert {step.resampling for step in drawn} == {Resampling.BILINEAR, Resampling.BICUBIC}
    assert abs(bilinear / len(drawn) - 0.5) < 0.06
    assert {step.fill for step in drawn} == {128}


def test_the_pairs_are_torchvisions() -> None:
    found = v2.AutoAugment()._get_policies(v2.AutoAugmentPolicy.IMAGENET)
    expected = tuple(tuple((*part[:2], part[2] or 0) for part in pair) for pair in found)
    assert len(expected) == 25 and AutoAugment().pairs == expected


def assert_even(values: list[float], expected: list[float]) -> None:
    counts = Counter(np.round(values, 5).tolist())
    assert set(counts) == set(np.round(expected, 5).tolist())
    mean = len(values) / len(expected)
    assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5


def test_each_pair_is_as_likely() -> None:
    ours = AutoAugment(pairs=tuple((("Rotate", 1.0, place),) for place in range(10)))
    generator = seeded(2)
    drawn = [abs(ours.draw((8, 8), generator)[0].argument) for _ in range(4000)]
    assert_even(drawn, np.linspace(0, 30, 10).tolist())


@pytest.mark.parametrize(("operation", "far"), [("Rotate", 135), ("ShearX", 0.99), ("ShearY", 0.99)])
def test_each_magnitude_of_trivialaugment_is_as_likely(operation: str, far: float) -> None:
    ours, generator = the("trivialaugment"), seeded(2)
    drawn = [step for _ in range(20_000) for step in ours.draw((8, 8), generator)]
    values = [abs(step.argument) for step in drawn if step.operation == operation]
    assert_even(values, np.linspace(0, far, 31).tolist())


# The same again


def applied(name: str, number: int, seed: int = 3) -> Pixels:
    return np.array(the(name).apply(picture(number), seeded(seed, number)))


def same(one: list[Pixels], two: list[Pixels]) -> int:
    return sum(np.array_equal(first, second) for first, second in zip(one, two, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_follows_its_generator_alone(name: str) -> None:
    first = [applied(name, number) for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda number: applied(name, number), reversed(range(60))))
    assert same(first, again[::-1]) == 60
    assert same(first, [applied(name, number, seed=4) for number in range(60)]) < 30


@pytest.mark.usefixtures("global_seeds")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_drawn_from_global_generators(name: str) -> None:
    def states() -> tuple[str, str, bytes]:
        return str(random.getstate()), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = states()
    for number in range(20):
        applied(name, number)
    assert states() == before


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_image_given_stays_as_it_is(name: str, channels: int) -> None:
    pixels = picture(5, (45, 28), channels)
    before = pixels.copy()
    changed = 0
    for number in range(40):
        found = the(name).apply(pixels, seeded(number))
        assert found.shape == pixels.shape and found.dtype == np.uint8
        changed += not np.array_equal(found, before)
    assert np.array_equal(pixels, before) and changed > 15


@pytest.mark.parametrize("name", NAMES)
def test_worker_processes_can_be_given_it(name: str) -> None:
    assert pickle.loads(pickle.dumps(the(name))) == the(name)


# Names


def test_none_is_no_policy() -> None:
    assert policy("none") is None


def test_timms_settings_are_read_in_any_order() -> None:
    assert policy("rand-m9-mstd0.5") == TimmRandAugment(magnitude=9, noise=0.5)
    assert policy("rand-inc1-n3-p0.25-mmax15-mstd1-m12") == TimmRandAugment(
        magnitude=12, noise=1, most=15, count=3, probability=0.25, increasing=True
    )
    assert policy("rand-n1-inc0") == TimmRandAugment(count=1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trivialaugmnt", "unknown policy 'trivialaugmnt'; did you mean 'trivialaugment'?"),
        ("rand", "did you mean 'randaugment'?"),
        ("rand_m9_mstd0.5", "did you mean 'rand-m9-mstd0.5'?"),
        ("mixup", "choose from none, autoaugment, randaugment, trivialaugment, rand-m9-mstd0.5"),
        ("rand-", "'' is none of m, mstd, mmax, n, p, inc"),
        ("rand-x3", "'x3' is none of m, mstd, mmax, n, p, inc"),
        ("rand-tweights", "'tweights' is none of"),
        ("rand-m-n2", "'m' must be m and a number"),
        ("rand-m9-mstd", "'mstd' must be mstd and a number"),
        ("rand-m9-mstd0.5.1", "'mstd0.5.1' must be mstd and a number"),
        ("rand-m9-mmax0", "'mmax0' must be mmax and a whole number above 0"),
        ("rand-m9-n0", "'n0' must be n and a whole number above 0"),
        ("rand-m9-n1.5", "'n1.5' must be n and a whole number above 0"),
        ("rand-m9-p1.5", "'p1.5' must be p and a number from 0 to 1"),
        ("rand-m9-inc2", "'inc2' must be inc and 0 or 1"),
        ("rand-m9-m8", "m is given twice"),
        ("rand-q1-n0", "'q1' is none of m, mstd, mmax, n, p, inc; 'n0' must be n"),
    ],
)
def test_bad_names_say_what_is_wrong(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        policy(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    if name.startswith("rand-"):
        assert f"bad policy '{name}'" in str(caught.value) and "rand-m9-mstd0.5" in str(caught.value)
