"""Small generated images and data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


def photo(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A smooth random image, so that resampling and JPEG keep it recognisable."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder of class folders with ``counts`` images a class, all different."""

    def make(
        counts: dict[str, int], under: str = "", size: tuple[int, int] = (24, 20), ext: str = "png"
    ) -> Path:
        root = tmp_path / "set"
        for place, (name, count) in enumerate(counts.items()):
            folder = root / under / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed = abs(hash((place, number, len(under)))) % 10000
                photo(seed, size).save(folder / f"{number:03d}.{ext}")
        return root

    return make
