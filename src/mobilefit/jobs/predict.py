"""What a file sees in images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilefit.data.folder import image_files
from mobilefit.device import shared_worker
from mobilefit.errors import InputError
from mobilefit.jobs.lab import check_positive
from mobilefit.jobs.model import file_info, naming, read_file
from mobilefit.jobs.options import option


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of ``mobilefit predict``."""

    file: Path = option(help="a .tflite that mobilefit wrote", argument=True)
    images: tuple[Path, ...] = option(help="images, or folders of them", argument=True)
    top: int = option(3, help="how many classes of each image")
    json: bool = option(False, help="print JSON")


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Print the likeliest classes of each image; images that cannot be read are said, and left out.

    Raises:
        InputError: a bad file, no image, or none that can be read.
    """
    check_positive(top=config.top)
    blob = read_file(config.file)
    described = file_info(blob, config.file)
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    for path in _images(config.images):
        try:
            pixels = described.preset.apply(path)
        except InputError as error:
            problems.append({"image": str(path), "problem": error.message})
            continue
        with naming(config.file):
            logits = shared_worker().run(blob, pixels[None])[0]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[: config.top]
        classes = [{"class": described.classes[i], "share": float(shares[i])} for i in best]
        rows.append({"image": str(path), "classes": classes})
    if not rows:
        raise InputError(problems[0]["problem"])
    if config.json:
        print(json.dumps([*rows, *problems], indent=1))
    else:
        for row in rows:
            named = ", ".join(f"{c['class']} {c['share']:.1%}" for c in row["classes"])
            print(f"{row['image']}: {named}")
        for row in problems:
            print(row["problem"])
    return [*rows, *problems]


def _images(paths: tuple[Path, ...]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise InputError(f"no image in the folder {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"no such image or folder: {path}")
    return found
