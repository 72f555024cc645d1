"""Images to batches: data sets, splits, presets and augmentation."""

from __future__ import annotations

from pathlib import Path

from mobilefit.data.augment import AUGMENTS, INCEPTION, LIGHT, MILD, Augment
from mobilefit.data.batches import Feed, batches, by_workers
from mobilefit.data.classification import ClassificationData, SkippedFile
from mobilefit.data.fashion_mnist import load_fashion_mnist
from mobilefit.data.folder import load_folder
from mobilefit.data.images import ImageSet
from mobilefit.data.names import check_class_names
from mobilefit.data.order import Sampling, batch_count, class_weights
from mobilefit.data.preset import Preset
from mobilefit.data.shards import is_shards, load_shards
from mobilefit.errors import InputError, did_you_mean

__all__ = [
    "AUGMENTS",
    "INCEPTION",
    "LIGHT",
    "MILD",
    "Augment",
    "ClassificationData",
    "Feed",
    "ImageSet",
    "Preset",
    "Sampling",
    "SkippedFile",
    "batch_count",
    "batches",
    "by_workers",
    "class_weights",
    "load",
]

DATA_SETS = {"fashion-mnist": load_fashion_mnist}


def load(
    source: str | Path, *, seed: int = 0, holdout: float = 0.1, progress: str | None = None
) -> ClassificationData:
    """Load a data set for classification.

    Args:
        source: ``"fashion-mnist"``, a folder of class folders (see ``mobilefit.data.folder``), or
            shards (see ``mobilefit.data.shard_names``).
        seed: chooses what is held out, and the test set where the folder does not say.
        holdout: part of the training images set apart for search and NetAdapt, 0 to 0.5.
        progress: label of the progress shown on standard error; ``None``: silent.

    Raises:
        InputError: there is no such data set or folder, or it cannot be used; the message says why.
    """
    if not 0 <= holdout <= 0.5:
        raise InputError(f"holdout is {holdout}, must be from 0 to 0.5")
    if str(source) in DATA_SETS:
        if Path(source).is_dir():
            raise InputError(
                f"'{source}' is a data set that comes with mobilefit, and a folder of that name is here too",
                f"give ./{source} for the folder; for the other, call this from elsewhere",
            )
        return DATA_SETS[str(source)](seed=seed, holdout=holdout)
    if is_shards(str(source)):
        data = load_shards(str(source), seed=seed, holdout=holdout, progress=progress)
        check_class_names(data.classes, data.name)
        return data
    root = Path(source)
    if not root.exists():
        hint = did_you_mean(str(source), DATA_SETS) or "give a folder of class folders"
        raise InputError(f"no such folder or data set: '{source}'", hint)
    return load_folder(root, seed=seed, holdout=holdout, progress=progress)
