from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobilefit.errors import InputError
from mobilefit.train import RECIPES, Recipe, recipe
from mobilefit.train.optim import peak_lr

FIELDS = dataclasses.fields(Recipe)


def test_all_problems_at_once_in_one_line() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(
            epochs=0, batch_size=-1, lr=float("nan"), weight_decay=-1e-5, momentum=1.5, decay=1.01,
            label_smoothing=-0.1, ema_decay=2, bn_momentum=3, clip_norm=0.0, erasing=1.1,
            optimizer="adam", schedule="cosinus", augment="lite", precision="bf16",  # type: ignore[arg-type]
            decays="weight", balance="los", policy="trivial", erasing_fill="nose",  # type: ignore[arg-type]
        )  # fmt: skip
    message = str(caught.value)
    assert message.startswith("bad recipe: ") and "\n" not in message
    for problem in (
        "epochs is 0", "batch_size is -1", "lr is nan", "weight_decay is -1e-05", "momentum is 1.5",
        "decay is 1.01", "label_smoothing is -0.1", "ema_decay is 2", "bn_momentum is 3",
        "clip_norm is 0.0", "erasing is 1.1", "unknown optimizer 'adam'; did you mean 'adamw'?",
        "did you mean 'cosine'?", "did you mean 'light'?", "unknown precision 'bf16'",
        "did you mean 'weights'?", "did you mean 'loss'?", "did you mean 'trivialaugment'?",
        "did you mean 'noise'?",
    ):  # fmt: skip
        assert message.count(problem) == 1, problem


BAD: list[dict[str, Any]] = [
    *({name: 0} for name in ("epochs", "batch_size", "lr", "decay", "decay_epochs", "accumulate",
                             "layer_decay", "ema_every", "repeats", "temperature", "train_scale",
                             "clip_norm", "eps")),
    *({name: -0.1} for name in ("weight_decay", "warmup_epochs", "freeze", "mixup", "cutmix", "min_train_size")),
    *({name: value} for value in (-0.1, 1.1) for name in (
        "momentum", "rho", "lr_noise", "label_smoothing", "distillation", "ema_decay", "bn_momentum",
        "dropout", "drop_path", "erasing", "warmup_from")),
    *({name: float("inf")} for name in ("lr", "weight_decay", "eps", "clip_norm", "warmup_epochs")),
    *({name: float("nan")} for name in ("lr", "weight_decay", "eps", "momentum", "decay")),
    {"layer_decay": 1.1}, {"decay": 1.1}, {"batch_size": 100, "accumulate": 8}, {"policy": "rand-m9-q3"},
]  # fmt: skip


@pytest.mark.parametrize("values", BAD, ids=str)
def test_a_value_out_of_range_is_one_line_that_names_it(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^bad recipe: .*{next(iter(values))}") as caught:
        Recipe(**values)
    assert "\n" not in str(caught.value)


def test_edges_are_allowed() -> None:
    edges = Recipe(
        epochs=1, batch_size=1, momentum=0, rho=1, label_smoothing=0, ema_decay=None, bn_momentum=None,
        weight_decay=0, warmup_epochs=0, decay=1, layer_decay=1, dropout=0, drop_path=1, erasing=1,
        lr_noise=1, warmup_from=1, augment="none",
    )  # fmt: skip
    assert json.loads(json.dumps(edges.to_dict()))["ema_decay"] is None
    assert edges.augmentation is not None and edges.augmentation.erasing == 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_its_values_and_from_json(name: str) -> None:
    changed = replace(RECIPES[name], epochs=7, mixup=0.3, clip_norm=2.5)
    for one in (RECIPES[name], changed):
        assert Recipe(**one.to_dict()) == one
        assert Recipe(**json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_where_it_is_from(name: str) -> None:
    assert recipe(name) is RECIPES[name] and RECIPES[name].name == name
    assert RECIPES[name].source


def test_a_typo_in_a_recipes_name_suggests() -> None:
    with pytest.raises(InputError, match="unknown recipe 'papr'; did you mean 'paper'"):
        recipe("papr")
    with pytest.raises(InputError, match="did you mean 'torchvision-v"):
        recipe("torchvision")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_setting_has_a_line_for_the_command_line(field: dataclasses.Field[Any]) -> None:
    line = field.metadata["help"]
    if field.name in ("name", "source", "task"):
        assert line is None
    else:
        assert line and "\n" not in line and "default" not in line  # the option adds its default
        assert line == line.strip() and not line.endswith(".")


@pytest.mark.parametrize("name", ["decays", "augment", "policy"])
def test_the_line_names_the_choices_that_need_words(name: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**{name: "qqqq"})
    choices = re.search(r"choose from (.*)", str(caught.value))
    assert choices is not None
    assert all(choice in HELP[name] for choice in re.split(r"[,;] ", choices[1])), choices[1]


HELP = {field.name: str(field.metadata["help"]) for field in FIELDS}

PUBLISHED: dict[str, dict[str, Any]] = {
    # tensorflow/models, research/slim/nets/mobilenet/README.md, "Training, V3"; mobilenet.py's
    # training_scope for what decays.
    "paper": {
        "peak": 0.16, "batch_size": 8 * 192, "optimizer": "rmsprop_tf", "momentum": 0.9, "rho": 0.9,
        "eps": None, "weight_decay": 1e-5, "decays": "not_depthwise", "schedule": "exponential",
        "decay": 0.99, "decay_epochs": 3, "warmup_epochs": 5, "warmup_from": 0, "by_epoch": False,
        "label_smoothing": 0.1, "ema_decay": 0.9999, "ema_every": 1, "bn_momentum": 1 - 0.997,
        "dropout": 1 - 0.8, "augment": "inception", "policy": "none", "erasing": 0,
    },
    # pytorch/vision, references/classification/README.md, "MobileNetV3 Large & Small", and train.py.
    "torchvision-v1": {
        "peak": 0.064, "batch_size": 8 * 128, "epochs": 600, "optimizer": "rmsprop", "momentum": 0.9,
        "rho": 0.9, "eps": 0.0316, "weight_decay": 1e-5, "decays": "all", "schedule": "exponential",
        "decay": 0.973, "decay_epochs": 2, "warmup_epochs": 0, "by_epoch": True, "label_smoothing": 0,
        "ema_decay": None, "augment": "resized", "policy": "autoaugment", "erasing": 0.2,
        "erasing_fill": "mean", "bn_momentum": None,
    },
    # pytorch/vision, issue 3995, "New Recipe + FixRes mitigations", and train.py.
    "torchvision-v2": {
        "peak": 0.5, "batch_size": 8 * 128, "epochs": 600, "optimizer": "sgd", "momentum": 0.9,
        "nesterov": False, "weight_decay": 2e-5, "decays": "not_norms", "schedule": "cosine",
        "warmup_epochs": 5, "warmup_from": 0.01, "by_epoch": True, "label_smoothing": 0.1, "mixup": 0.2,
        "cutmix": 1.0, "ema_every": 32, "augment": "resized", "policy": "trivialaugment",
        "erasing": 0.1, "repeats": 1, "train_scale": 176 / 224,
    },
    # huggingface/pytorch-image-models, hfdocs/source/training_script.mdx, "MobileNetV3-Large-100", and
    # the defaults of train.py in March 2020.
    "timm-ra": {
        "peak": 0.064, "batch_size": 2 * 512, "epochs": 600, "optimizer": "rmsprop_tf", "momentum": 0.9,
        "rho": 0.9, "eps": 0.001, "weight_decay": 1e-5, "decays": "weights", "schedule": "exponential",
        "decay": 0.973, "decay_epochs": 2.4, "warmup_epochs": 3, "by_epoch": True, "lr_noise": 0.67,
        "label_smoothing": 0.1, "ema_decay": 0.9999, "bn_momentum": 0.1, "dropout": 0.2,
        "drop_path": 0.2, "augment": "resized", "policy": "rand-m9-mstd0.5", "erasing": 0.2,
        "erasing_fill": "noise",
    },
    # d-li14/mobilenetv3.pytorch, README.md, "Training recipe"; imagenet.py of its mobilenetv2.pytorch.
    "d-li14": {
        "peak": 0.4, "batch_size": 1024, "epochs": 150, "optimizer": "sgd", "momentum": 0.9,
        "nesterov": False, "weight_decay": 4e-5, "decays": "weights", "schedule": "cosine",
        "warmup_epochs": 5, "warmup_from": 0.1 / 0.4, "by_epoch": False, "label_smoothing": 0.1,
        "ema_decay": None, "bn_momentum": 0.1, "dropout": 0.2, "augment": "resized", "policy": "none",
    },
    # tensorflow/models, object_detection/samples/configs/ssdlite_mobilenet_v3_large_320x320_coco.config;
    # COCO's train2017 has 118,287 images.
    "ssdlite": {
        "task": "detect", "peak": 0.4, "batch_size": 512, "epochs": round(400_000 * 512 / 118_287),
        "optimizer": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 4e-5, "schedule": "cosine",
        "warmup_epochs": 2000 * 512 / 118_287, "warmup_from": 0.13333 / 0.4, "bn_momentum": 1 - 0.97,
        "ema_decay": None,
    },
    # tensorflow/models, deeplab/train.py's flags; Cityscapes has 2,975 images.
    "deeplab": {
        "task": "segment", "peak": 0.007, "batch_size": 16, "epochs": round(90_000 * 16 / 2975),
        "optimizer": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 4e-5, "schedule": "poly",
        "warmup_epochs": 0, "bn_momentum": 1 - 0.9997, "augment": "deeplab",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_values_are_the_published_ones(name: str) -> None:
    found = {**RECIPES[name].to_dict(), "peak": peak_lr(RECIPES[name])}
    for key, value in PUBLISHED[name].items():
        assert found[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key


@pytest.mark.parametrize("name", RECIPES)
def test_the_documented_table_has_the_recipes_numbers(name: str) -> None:
    pages = Path(__file__).parents[2] / "docs" / "recipes.md"
    (row,) = [line for line in pages.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    one = RECIPES[name]
    sizes = [math.prod(map(int, found.split(" x "))) for found in re.findall(r"\d+ x \d+|\d+", row)]
    assert one.batch_size in sizes and one.epochs in sizes
    assert f" {peak_lr(one):g}, " in row
    for value in (one.erasing, one.mixup, one.label_smoothing, one.drop_path, one.lr_noise):
        assert not value or f" {value:g}" in row


def test_torchvisions_average_is_as_its_script_adjusts_it() -> None:
    """``1 - (1 - model_ema_decay) * adjust`` of its train.py, from the defaults of its options."""
    adjust = 8 * 128 * 32 / 600
    steps = 600 * (1_281_167 // 1024)
    assert recipe("torchvision-v2").ema_decay_for(steps) == pytest.approx(1 - (1 - 0.99998) * adjust)


@pytest.mark.parametrize(
    ("steps", "decay"), [(1, 0.0), (20, 0.0), (40, 0.5), (2000, 0.99), (10**6, 0.9999)]
)
def test_the_average_spans_a_twentieth_of_the_training_at_most(steps: int, decay: float) -> None:
    assert Recipe(epochs=1).ema_decay_for(steps) == pytest.approx(decay)
    assert Recipe(epochs=1, ema_decay=0.3).ema_decay_for(steps) == min(0.3, decay)
    assert Recipe(epochs=1, ema_decay=None).ema_decay_for(steps) is None
    assert Recipe(epochs=1, ema_every=4).ema_decay_for(4 * steps) == pytest.approx(decay)


def test_what_a_recipe_varies_in_an_image_is_what_its_fields_say() -> None:
    found = recipe("timm-ra").augmentation
    assert found is not None
    assert (found.area, found.flip, found.policy) == ((0.08, 1.0), True, "rand-m9-mstd0.5")
    assert (found.erasing, found.erasing_fill, found.brightness) == (0.2, "noise", 0.0)
    assert Recipe(augment="none").augmentation is None
    plain = Recipe(augment="none", policy="trivialaugment").augmentation
    assert plain is not None and plain.area == (1.0, 1.0) and not plain.flip
