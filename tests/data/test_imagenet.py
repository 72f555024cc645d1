from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mobilefit.data import imagenet, load
from mobilefit.errors import InputError

from .conftest import MakeFolder, photo

CRANE_BIRD, CRANE_MACHINE, TENCH, TEDDY = "n02012849", "n03126707", "n01440764", "n04399382"


def flat_validation(root: Path, count: int) -> Path:
    folder = root / "val"
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        photo(500 + number).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return folder


def solution(path: Path, ids: list[str]) -> None:
    rows = [f"ILSVRC2012_val_{number:08d},{one} 85 1 499 272 {one} 1 2 3 4 \n" for number, one in enumerate(ids, 1)]
    path.write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


def meta(path: Path, ids: list[str]) -> None:
    torch.save(({one: (one, "a name") for one in ids}, ids), path)


@pytest.fixture
def root(make_folder: MakeFolder) -> Path:
    """Two classes for training, and five validation images of which one is of a third class."""
    root = make_folder({TENCH: 4, CRANE_MACHINE: 4}, "train", ext="JPEG")
    flat_validation(root, 5)
    return root


IDS = [CRANE_MACHINE, TENCH, CRANE_BIRD, TENCH, CRANE_MACHINE]


def test_ids_become_names_in_the_order_of_the_ids(make_folder: MakeFolder) -> None:
    data = load(make_folder({CRANE_MACHINE: 4, TENCH: 5, CRANE_BIRD: 4, TEDDY: 4}, ext="JPEG"))
    assert data.classes == ("tench", f"crane ({CRANE_BIRD})", f"crane ({CRANE_MACHINE})", "teddy")
    for name, label in zip(data.train.names, data.train.labels, strict=True):
        assert [TENCH, CRANE_BIRD, CRANE_MACHINE, TEDDY][label] == Path(name).parent.name


def test_names_are_appended_to_only_where_two_are_the_same() -> None:
    assert imagenet.readable([TENCH, CRANE_BIRD]) == ("tench", "crane")
    assert imagenet.readable([TENCH, "n99999999"]) == ("tench", "n99999999")


def test_the_thousand_names_are_those_that_torchvision_has() -> None:
    from timm.data import ImageNetInfo
    from torchvision.models import MobileNet_V2_Weights

    ours = imagenet.readable(ImageNetInfo().label_names())
    theirs = MobileNet_V2_Weights.IMAGENET1K_V2.meta["categories"]
    different = [name for name, other in zip(ours, theirs, strict=True) if name != other]
    assert different == [
        "crane (n02012849)", "crane (n03126707)", "maillot (n03710637)", "maillot (n03710721)"
    ]  # fmt: skip
    assert len(set(ours)) == 1000


def test_other_folders_keep_their_names(make_folder: MakeFolder) -> None:
    assert load(make_folder({TENCH: 4, "other": 4})).classes == (TENCH, "other")


@pytest.mark.parametrize("write", [solution, meta])
@pytest.mark.parametrize("where", [".", "val", "..", "../../.."])
def test_flat_validation_images_get_their_classes(
    tmp_path: Path, write: object, where: str
) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for one in (TENCH, CRANE_MACHINE):
        (root / "train" / one).mkdir(parents=True)
        for number in range(3):
            photo(number).save(root / "train" / one / f"{one}_{number}.JPEG")
    flat_validation(root, 5)
    name = imagenet.SOLUTION if write is solution else imagenet.META
    write(root / where / name, IDS)  # type: ignore[operator]
    data = load(root)
    assert data.classes == ("tench", "crane")
    found = {int(Path(name).stem[-8:]): label for name, label in zip(data.test.names, data.test.labels)}
    assert found == {1: 1, 2: 0, 4: 0, 5: 1}  # the third is of no class that is trained


def test_validation_in_class_folders_needs_no_file(make_folder: MakeFolder) -> None:
    make_folder({TENCH: 4, CRANE_BIRD: 4}, "train")
    data = load(make_folder({TENCH: 1, CRANE_BIRD: 2}, "val"))
    assert np.bincount(data.test.labels).tolist() == [1, 2] and data.classes == ("tench", "crane")


def test_published_test_images_have_no_classes_and_are_left_alone(root: Path) -> None:
    solution(root / imagenet.SOLUTION, IDS)
    (root / "test").mkdir()
    photo(1).save(root / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert len(load(root).test) == 4


def test_without_a_file_the_error_says_what_to_put_where(root: Path) -> None:
    with pytest.raises(InputError) as refused:
        load(root)
    said = str(refused.value)
    assert "put Kaggle's LOC_val_solution.csv, or the meta.bin that torchvision" in said
    assert f"into {root}" in said and "\n" not in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (imagenet.SOLUTION, b"", r"csv is empty"),
        (imagenet.SOLUTION, b"Id,Label\n1,2\n", r"cannot use .*csv: .*columns ImageId,PredictionString"),
        (imagenet.SOLUTION, b"ImageId,PredictionString\nILSVRC2012_val_00000001\n", "cannot use .*csv"),
        (imagenet.SOLUTION, b"ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "cannot use .*csv"),
        (imagenet.SOLUTION, b"ImageId,PredictionString\nILSVRC2012_val_00000001,12 3\n", "'12' is no WordNet id"),
        (imagenet.SOLUTION, b"ImageId,PredictionString\n\xff\xfe,n01440764\n", "cannot use .*csv"),
        (imagenet.META, b"junk", r"cannot use .*meta\.bin: .*delete it and let torchvision"),
        (imagenet.META, b"", r"cannot use .*meta\.bin"),
    ],
)  # fmt: skip
def test_a_file_of_classes_that_cannot_be_used_is_named(
    root: Path, name: str, content: bytes, message: str
) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        load(root)
    assert "\n" not in str(refused.value)


def test_an_image_without_a_class_is_named(root: Path) -> None:
    solution(root / imagenet.SOLUTION, IDS[:3])
    with pytest.raises(InputError, match=r"csv does not tell the class of .*ILSVRC2012_val_00000004\.JPEG"):
        load(root)


def test_a_class_without_validation_image_is_named(root: Path) -> None:
    meta(root / imagenet.META, [TENCH] * 5)
    with pytest.raises(InputError, match=f"no image in .*val/{CRANE_MACHINE}"):
        load(root)
