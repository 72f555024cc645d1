"""The pictures of a data set with boxes: looked at when it is loaded, or when they are used."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from mobilefit.data.decode import BadImageError, Pixels, decode, open_picture, read_image, shrink
from mobilefit.data.folder import LOOKED_AT
from mobilefit.data.images import Indices, worker_count
from mobilefit.data.lazy import BAD_FRACTION, LeftOut
from mobilefit.data.store import ROOM, Kept, Store
from mobilefit.errors import InputError
from mobilefit.progress import Progress
from mobilefit.runs import open_file, read_bytes

WORKING_SIDE = 640
"""Short side in pixels of the pictures kept for training: a crop of half of it still fills 320 px."""
MEND = f"mend or remove them; at most {BAD_FRACTION:.0%} are left out"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was found good, as far as it was looked at."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    digest: str
    """SHA-256 of the file; of one not looked at, its size in bytes."""
    kept: Kept | None
    """Uint8 [height, width, 3], the short side at most ``WORKING_SIDE``; ``None``: decoded when used."""
    looked_at: bool

    @property
    def whole(self) -> bool:
        """What is kept is the whole picture."""
        return self.kept is not None and self.kept.shape[:2] == self.size[::-1]


class Pictures:
    """The pictures of a data set; the sets share them.

    Args:
        pictures: all of them.
        groups: int [n]; a bad one may be replaced by another of the same group.
    """

    def __init__(self, pictures: Sequence[Picture], groups: npt.NDArray[np.int64]) -> None:
        self.pictures, self._groups = pictures, groups
        self._left_out = LeftOut(len(pictures), what="pictures", instead="another picture", hint=MEND)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def replaced(self) -> Indices:
        """Those that turned out bad in use, in whichever process."""
        return self._left_out.found

    def working(self, index: int) -> tuple[int, Image.Image]:
        """As training sees it, with a short side of at most ``WORKING_SIDE``, and which picture it is."""
        return self._good(index, _working)

    def whole(self, index: int) -> tuple[int, Image.Image]:
        """As it is in the file, and which picture it is: another where this one turns out bad."""
        return self._good(index, _whole)

    def _good(self, index: int, read: Callable[[Picture], Image.Image]) -> tuple[int, Image.Image]:
        for candidate in self._candidates(index):
            picture = self.pictures[candidate]
            try:
                return candidate, read(picture)
            except InputError as error:
                if picture.looked_at:  # it was good a while ago: something is going on
                    raise
                self._left_out.add(candidate, error.message)
        raise InputError(f"no usable picture is left to stand for {self.pictures[index].path}", MEND)

    def standing(self, index: int) -> int:
        """Itself, or which stands for it, as far as is known."""
        return next(self._candidates(index), index)

    def _candidates(self, index: int) -> Iterator[int]:
        if index not in self._left_out:
            yield index
        good = (self._groups == self._groups[index]) & ~self._left_out.flags
        others = np.flatnonzero(good)
        yield from np.roll(others, -int(np.searchsorted(others, index, "right"))).tolist()


def _working(picture: Picture) -> Image.Image:
    if picture.kept is not None:
        return Image.fromarray(picture.kept.pixels())
    return shrink(read_image(picture.path, WORKING_SIDE), WORKING_SIDE)


def _whole(picture: Picture) -> Image.Image:
    if picture.kept is not None and picture.whole:
        return Image.fromarray(picture.kept.pixels())
    return read_image(picture.path)


def looked_at(paths: Sequence[Path], progress: str | None) -> Iterator[Picture | str]:
    """Each file's picture, or why it is bad. Decoding runs outside the GIL.

    Args:
        progress: label of the progress shown on standard error; ``None``: silent.
    """
    look = _look_at if len(paths) <= LOOKED_AT else _glance_at
    store = Store(ROOM)

    def one(path: Path) -> tuple[Picture, Pixels | None] | str:
        try:
            return look(path)
        except BadImageError as error:
            return str(error)
        except FileNotFoundError:
            return "there is no such picture"
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    with ThreadPoolExecutor(worker_count()) as pool, Progress(len(paths), progress) as bar:
        for seen in pool.map(one, paths):
            bar.update(1)
            if isinstance(seen, str):
                yield seen
                continue
            picture, pixels = seen
            yield picture if pixels is None else dataclasses.replace(picture, kept=store.keep(pixels))


def _look_at(path: Path) -> tuple[Picture, Pixels]:
    """Read a picture to the end; what training is to see of it is not kept yet."""
    data = read_bytes(path)
    image, full_size = decode(data, WORKING_SIDE)
    reduced = sorted(image.size) != sorted(full_size)  # a JPEG, decoded at a part of its size
    picture = Picture(
        path=path,
        size=_upright_size(open_picture(io.BytesIO(data))) if reduced else image.size,
        digest=hashlib.sha256(data).hexdigest(),
        kept=None,
        looked_at=True,
    )
    return picture, np.asarray(shrink(image, WORKING_SIDE))


def _glance_at(path: Path) -> tuple[Picture, None]:
    """Read no more of a picture than its size."""
    try:
        with open_file(path) as stream, open_picture(stream) as file:
            size = _upright_size(file)
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except (OSError, Image.DecompressionBombError):
        raise
    except Exception as error:  # headers too raise anything at all on damaged bytes
        raise BadImageError(f"cannot be decoded: {error}") from error
    picture = Picture(path=path, size=size, digest=str(path.stat().st_size), kept=None, looked_at=False)
    return picture, None


def _upright_size(file: Image.Image) -> tuple[int, int]:
    if file.format == "PNG" and "exif" not in file.info:
        return file.size  # Pillow would decode it all to look for more
    turned = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    size = file.size
    if isinstance(file, TiffImagePlugin.TiffImageFile):  # newer Pillows state the upright one's, older ones the file's
        size = file.tag_v2[ExifTags.Base.ImageWidth], file.tag_v2[ExifTags.Base.ImageLength]
    return size[::-1] if turned else size
