from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mobilefit.errors import InputError
from mobilefit.train import fit
from mobilefit.train.tensorboard import EVENTS, Board, require, tag

from .small import EPOCH_STEPS, PRESET, RECIPE, STEPS, network, shades

Points = list[tuple[int, float]]


def rows(first: int, last: int, loss: float = 1.0) -> list[dict[str, float]]:
    return [
        {"step": step, "epoch": step / 10, "loss": loss / step, "lr": 0.1, "images_per_s": 400.0,
         "data_wait": 0.03}
        | ({"val_top1": 0.5, "val_loss": 0.7} if step % 10 == 0 else {})
        for step in range(first, last + 1, 5)
    ]  # fmt: skip


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, Points]:
    """What TensorBoard would show: (step, value) by tag."""
    found = events(folder)
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


@pytest.fixture(autouse=True)
def there() -> None:
    pytest.importorskip("tensorboard")


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 0)
    for row in rows(5, 40):
        board.row(row)
    board.close()
    found = scalars(tmp_path / "board")
    assert sorted(found) == ["train/data_wait", "train/epoch", "train/images_per_s", "train/loss", "train/lr",
                             "val/loss", "val/top1"]  # fmt: skip
    assert found["train/loss"] == [(step, pytest.approx(1 / step)) for step in range(5, 41, 5)]
    assert [step for step, _ in found["val/top1"]] == [10, 20, 30, 40]
    assert tag("val_top1") == "val/top1" and tag("lr") == "train/lr"


def test_after_a_resume_no_step_is_there_twice_and_none_is_missing(tmp_path: Path) -> None:
    first = Board(tmp_path, 0)
    for row in rows(5, 40):
        first.row(row)
    first.close()  # the last checkpoint was after step 25
    second = Board(tmp_path, 25)
    for row in rows(30, 60, loss=2.0):
        second.row(row)
    second.close()
    found = scalars(tmp_path)
    assert [step for step, _ in found["train/loss"]] == list(range(5, 61, 5))
    assert [round(step * loss) for step, loss in found["train/loss"]] == [1] * 5 + [2] * 7
    assert [step for step, _ in found["val/top1"]] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("earlier_writers", [0, 9])  # the tenth writer's name is before the ninth's
def test_a_run_that_started_over_hides_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier_writers: int
) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(earlier_writers))
    for loss in (1.0, 3.0):
        board = Board(tmp_path, 0)
        for row in rows(5, 20, loss):
            board.row(row)
        board.close()
    assert [round(step * loss) for step, loss in scalars(tmp_path)["train/loss"]] == [3] * 4


def test_each_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    """So that a run that is killed has all rows up to its last checkpoint."""
    board = Board(tmp_path, 0)
    for count, row in enumerate(rows(5, 20), 1):
        board.row(row)
        assert len(scalars(tmp_path)["train/loss"]) == count
    board.close()


def test_the_recipe_is_told_once(tmp_path: Path) -> None:
    for start in (0, 10):
        board = Board(tmp_path, start, RECIPE.to_dict())
        for row in rows(start + 5, 20):
            board.row(row)
        board.close()
    found = events(tmp_path)
    (text,) = found.Tensors("recipe/text_summary")
    assert "| optimizer | rmsprop_tf |" in text.tensor_proto.string_val[0].decode()
    assert len(list(tmp_path.glob(EVENTS))) == 2
    given = found.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert given.plugin_name == "hparams" and b"rmsprop_tf" in given.content and b"clip_norm" in given.content
    metrics = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"val/top1" in metrics


def test_it_shows_what_fit_tells_it_and_goes_on_where_that_goes_on(tmp_path: Path) -> None:
    def run(steps: int, out: Path, **options: Any) -> Any:
        return fit(
            network(), shades(), preset=PRESET, recipe=RECIPE, validation=shades(21, seed=1), steps=steps,
            out=out, accelerator="cpu", board=lambda step: Board(tmp_path / "board", step), **options,
        )  # fmt: skip

    result = run(STEPS, tmp_path / "run")
    run(STEPS, tmp_path / "run", resume=True)  # nothing left to do
    found = scalars(tmp_path / "board")
    assert [step for step, _ in found["train/loss"]] == [row["step"] for row in result.history]
    validated = [(row["step"], pytest.approx(row["val_top1"])) for row in result.history if "val_top1" in row]
    assert found["val/top1"] == validated and len(validated) == STEPS // EPOCH_STEPS


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard."))]:
        monkeypatch.delitem(sys.modules, name)
    for needs in (require, lambda: Board(tmp_path, 0)):
        with pytest.raises(InputError, match=r"needs the package tensorboard .*; pip install 'mobilefit\[tensorboard\]'"):
            needs()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        Board(tmp_path / "file" / "board", 0)


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path) -> None:
    board = Board(tmp_path, 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    board._writer.flush = full
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        board.row(rows(5, 5)[0])
