"""WebDataset shards: images in tar files, on disk or at a distance, for data of any size.

How a user names them is said in ``shard_names``, what a shard holds in ``shard_index``, where remote
ones are kept in ``shard_cache``, and what happens to bad images in ``shard_source``.

When shards are loaded each is indexed once: its headers and labels are read (a remote shard is
fetched for that), so that classes, counts and places of all images are known, an image is one read at
an offset, and a resumed run scans nothing. Pixels are read when they are used; nothing is decoded
beforehand but sixteen images of each shard, which tell their usual size and whether they can be
decoded at all.

Where the test set or the held-out part is not given it is set apart as in a folder: whole shards if
they hold every class in about the wanted share, else image by image.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from mobilefit.data.classification import ClassificationData
from mobilefit.data.folder import TEST_FRACTION
from mobilefit.data.images import ImageSet, Indices
from mobilefit.data.lazy import BAD_FRACTION, too_many_bad
from mobilefit.data.shard_cache import AHEAD_THREADS, Ahead, Shard, ShardCache
from mobilefit.data.shard_index import BadShardError, ShardIndex
from mobilefit.data.shard_names import Listing, is_shards, list_shards
from mobilefit.data.shard_order import WINDOW, sharded_order
from mobilefit.data.shard_remote import MissingError, look, shown
from mobilefit.data.shard_source import Names, Samples, ShardReader, ShardSource
from mobilefit.data.splits import stratified
from mobilefit.errors import InputError
from mobilefit.progress import Progress

__all__ = ["ShardSource", "is_shards", "load_shards", "sharded_order"]

LOOKS_AT_ONCE = 16
"""Shards whose size and tag are asked for at a time."""


def load_shards(
    source: str, *, seed: int, holdout: float, progress: str | None = None
) -> ClassificationData:
    """Load image classification data from tar shards; see the module's text.

    Args:
        source: a folder, an address or a path with braces, or a manifest; see ``shard_names``.
        seed: chooses what is set apart.
        holdout: part of the training images set apart for decisions.
        progress: label of the progress of indexing new shards, on standard error; ``None``: silent.

    Raises:
        InputError: shards that are missing, cannot be fetched or cannot be used, all named at once;
            labels without a class, classes without images; a cache that is too small.
    """
    listing = list_shards(source)
    cache = ShardCache.usual()
    urls = [url for part in listing.parts.values() for url in part]
    shards = _looked_up(urls)
    indices = _indexed(shards, cache, progress)
    part_of = np.repeat(list(listing.parts), [len(part) for part in listing.parts.values()])
    samples = _samples(indices)
    reader = ShardReader(shards, cache)
    keys = [index.keys for index in indices]
    names = Names(shards, samples, keys)
    classes = _classes(listing, names, samples)
    parts = _divided(samples, part_of[samples.groups], classes, seed=seed, holdout=holdout)
    _check_looked_at(indices, names)
    _check_room(shards, indices, cache)

    def image_set(part: Indices) -> ImageSet:
        chosen = samples.subset(part)
        return ImageSet(ShardSource(reader, chosen, keys), chosen.labels)

    train, held, test = map(image_set, parts)
    sides = np.concatenate([index.sides for index in indices])
    return ClassificationData(
        name=listing.name,
        classes=classes,
        train=train,
        holdout=held,
        test=test,
        skipped=(),
        fingerprint=_fingerprint(shards, indices, part_of.tolist(), classes),
        short_side=int(np.median(sides[sides > 0])),
    )


def _looked_up(urls: list[str]) -> list[Shard]:
    def one(url: str) -> Shard | str:
        try:
            return Shard(url=url, version=look(url))
        except MissingError as error:
            return error.message

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        found = list(pool.map(one, urls))
    _refuse([item for item in found if isinstance(item, str)], len(urls), "check the names")
    return [item for item in found if isinstance(item, Shard)]


def _indexed(
    shards: list[Shard], cache: ShardCache, progress: str | None
) -> list[ShardIndex]:
    indices = {shard: kept for shard in shards if (kept := cache.kept_index(shard)) is not None}
    new = [shard for shard in shards if shard not in indices]
    ahead, problems = Ahead(cache), []
    with Progress(len(new), progress if new else None, unit="shard") as bar:
        for place, shard in enumerate(new):
            ahead.want(new[place : place + 2 * AHEAD_THREADS])
            try:
                indices[shard] = cache.index(shard)
            except BadShardError as error:
                problems.append(str(error))
            bar.update(1)
    _refuse(problems, len(shards), "write bad shards anew or leave them out")
    return [indices[shard] for shard in shards]


def _refuse(problems: Sequence[str], count: int, hint: str) -> None:
    if len(problems) == 1:
        raise InputError(problems[0], hint)
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        first = "; ".join(problems[:3])
        raise InputError(f"{len(problems)} of {count} shards cannot be used: {first}{rest}", hint)


def _samples(indices: list[ShardIndex]) -> Samples:
    counts = [len(index.labels) for index in indices]
    return Samples(
        groups=np.repeat(np.arange(len(indices)), counts),
        offsets=np.concatenate([index.offsets for index in indices]),
        sizes=np.concatenate([index.sizes for index in indices]),
        labels=np.concatenate([index.labels for index in indices]),
        rows=np.concatenate([np.arange(count) for count in counts]),
    )


def _classes(listing: Listing, names: Names, samples: Samples) -> tuple[str, ...]:
    named = listing.class_names()
    present = np.unique(samples.labels)
    if named is None and present[-1] >= len(present):
        lacking = int(np.setdiff1d(np.arange(len(present)), present)[0])
        highest = names[int(samples.labels.argmax())]
        raise InputError(
            f"no image has the label {lacking}, and {highest} has {present[-1]}",
            "labels count from 0 without gaps; or name all classes, in classes.txt or a manifest",
        )
    classes = tuple(map(str, present)) if named is None else named
    if present[-1] >= len(classes):
        first = int(np.flatnonzero(samples.labels >= len(classes))[0])
        raise InputError(
            f"{names[first]} has the label {samples.labels[first]}, and the "
            f"{len(classes)} named classes have 0 to {len(classes) - 1}",
            "mend the label, or name all classes",
        )
    if len(classes) < 2:
        raise InputError(
            f"{listing.name} holds one class alone, '{classes[0]}'", "two or more are needed to tell apart"
        )
    return classes


def _divided(
    samples: Samples, part_of: npt.NDArray[np.str_], classes: Sequence[str], *, seed: int, holdout: float
) -> tuple[Indices, Indices, Indices]:
    train, held, test = (np.flatnonzero(part_of == part) for part in ("train", "val", "test"))
    needed = 1 + (not len(test)) + (not len(held) and holdout > 0)
    for part, found, least in (("train", train, needed), ("val", held, 1), ("test", test, 1)):
        if len(found) or part == "train":
            _check_enough(samples.labels[found], classes, part, least)
    if not len(test):
        train, test = _set_apart(train, samples, TEST_FRACTION, seed)
    if not len(held):
        train, held = _set_apart(train, samples, holdout, seed + 1)
    return train, held, test


def _check_enough(labels: Indices, classes: Sequence[str], part: str, needed: int) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    lacking = np.flatnonzero(counts < needed)
    if len(lacking):
        first = lacking[0]
        more = f" (and {len(lacking) - 1} classes more have too few)" if len(lacking) > 1 else ""
        raise InputError(
            f"class '{classes[first]}' (label {first}) has {counts[first]} images in its {part} part, "
            f"and needs {needed}{more}",
            "add images or leave the class out",
        )


def _set_apart(
    train: Indices, samples: Samples, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """What stays and what is set apart: whole shards where every class keeps about its share."""
    labels, groups = samples.labels[train], samples.groups[train]
    shards, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(shards))
    count = int(np.abs(np.cumsum(sizes[order]) - fraction * len(train)).argmin()) + 1
    apart = np.isin(groups, shards[order[:count]])
    shares = np.bincount(labels, apart) / np.bincount(labels)
    if fraction > 0 and (np.abs(shares - fraction) <= fraction / 2).all():
        return train[~apart], train[apart]
    stay, chosen = stratified(labels, fraction, seed)
    return train[stay], train[chosen]


def _check_looked_at(indices: list[ShardIndex], names: Names) -> None:
    first = np.cumsum([0, *(len(index.labels) for index in indices)])
    places = np.concatenate([start + index.looked_at for start, index in zip(first, indices)])
    bad = places[np.concatenate([index.sides for index in indices]) == 0]
    if too_many_bad(len(bad), len(places)) or len(bad) == len(places):
        raise InputError(
            f"{len(bad)} of {len(places)} images that were looked at are bad, the first one "
            f"{names[int(bad[0])]}",
            f"mend the shards; at most {BAD_FRACTION:.0%} of the images are replaced",
        )


def _check_room(shards: list[Shard], indices: list[ShardIndex], cache: ShardCache) -> None:
    remote = [index.size for shard, index in zip(shards, indices, strict=True) if shard.remote]
    cache.require_room(remote, min(WINDOW, len(remote)))


def _fingerprint(
    shards: list[Shard], indices: list[ShardIndex], parts: list[str], classes: Sequence[str]
) -> str:
    """Of names, keys, sizes and labels, wherever the shards lie: data that is moved stays the same.

    Not of the pixels, which would have to be read for it. The size of every image in bytes stands
    in for them.
    """
    digest = hashlib.sha256("\0".join(classes).encode())
    for shard, index, part in zip(shards, indices, parts, strict=True):
        name = posixpath.basename(shown(shard.url))
        digest.update(f"\n{part}\0{name}\0{index.size}\0".encode())
        for array in (index.keys, index.offsets, index.sizes, index.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
