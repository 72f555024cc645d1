"""Run folders that are changed on purpose, value by value: the same command goes on, or refuses in one line.

By fixed seeds. ``make fuzz`` (``FUZZ_TIMES=10``) changes ten times as many.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs.small import World, hold_steady, run

from .test_fuzzed_files import TIMES, changed, limits

MUTANTS = {"design": 12, "adapt": 12, "search": 12, "report": 40}
UNFINISHED = ("record.json", "report.html", "model.safetensors", "parity.json")
ENDS = {0: "went on", 2: "refused", 3: "missed"}


def commands(world: World) -> dict[str, list[object]]:
    """Each takes a second or two; the folder comes last."""
    return {
        "design": ["design", world.images, "--latency", "60%", "--seed-network", world.spec, "--resolution", 32,
                   "--epochs", 1, "--delta", 0.05, "--tune-steps", 2, "--max-drop", 50, "--out"],
        "adapt": ["adapt", world.weights, world.images, "--latency", "80%", "--delta", 0.05, "--tune-steps", 2,
                  "--out"],
        "search": ["search", world.images, "--space", world.space, "--latency", "90%", "--resolution", 32,
                   "--trials", 8, "--top", 2, "--epochs", 1, "--out"],
        "report": ["report"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each verb."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        hold_steady(patch.setattr)
        for verb, words in commands(world).items():
            if verb != "report":
                assert run(*words, root / verb) == 0
    return {verb: root / ("design" if verb == "report" else verb) for verb in commands(world)}


def files(folder: Path, verb: str) -> list[Path]:
    """What a verb reads of a run folder, as text."""
    if verb == "report":
        return [folder / "record.json", *folder.rglob("*.jsonl")]
    return [path for path in sorted(folder.rglob("*.json*")) if path.name not in UNFINISHED]


def change(path: Path, draw: random.Random) -> str:
    """Change one value or two of a file, and maybe its lines."""
    if path.suffix == ".json":
        value, what = changed(json.loads(path.read_text()), draw)
        path.write_text(json.dumps(value))
        return what
    lines = path.read_text().splitlines()
    number = draw.randrange(len(lines))
    how = draw.choice(("value", "value", "value", "twice", "gone", "cut"))
    if how == "value":
        value, how = changed(json.loads(lines[number]), draw)
        lines[number] = json.dumps(value)
    elif how == "twice":
        lines.insert(number, lines[number])
    else:
        lines[number:] = [] if how == "gone" else [lines[number][: len(lines[number]) // 2]]
    path.write_text("".join(f"{line}\n" for line in lines))
    return f"line {number}: {how}"


def mutants(finished: Path, verb: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Copies of a run, cut off before its end, each with one file changed."""
    draw = random.Random(verb)
    for number in range(TIMES * MUTANTS[verb]):
        copy = folder / str(number)
        shutil.copytree(finished, copy, symlinks=True)
        if verb != "report":
            for name in UNFINISHED:
                (copy / name).unlink(missing_ok=True)
            for trained in (copy / "train").glob("*"):
                if draw.random() < 0.5:
                    shutil.rmtree(trained)
        path = draw.choice([path for path in files(copy, verb) if path.stat().st_size])
        yield copy, f"{path.relative_to(copy)}: {change(path, draw)}"
        shutil.rmtree(copy)


@pytest.mark.parametrize("verb", [*MUTANTS])
def test_a_changed_run_goes_on_or_is_refused(
    verb: str, world: World, runs: dict[str, Path], steady: None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], record_property: Callable[[str, Any], None],
) -> None:  # fmt: skip
    words = commands(world)[verb]
    seen: Counter[str] = Counter()
    for copy, what in mutants(runs[verb], verb, tmp_path):
        capsys.readouterr()
        with limits(what, seconds=60.0):
            code = run(*words, copy)
        err = capsys.readouterr().err
        said = [line for line in err.splitlines() if line.startswith("mobilefit: ")]
        assert code in ENDS and "Traceback" not in err, (what, code, err[-500:])
        assert code == 0 or len(said) >= 1, (what, err[-500:])
        seen[ENDS[code]] += 1
    record_property("ends", dict(seen))
    assert seen["went on"] and seen["refused"], seen


def test_a_log_that_lost_its_end_is_named(
    world: World, runs: dict[str, Path], steady: None, tmp_path: Path, refused: Callable[..., str]
) -> None:
    log = shutil.copytree(runs["adapt"], tmp_path / "run") / "netadapt" / "netadapt.jsonl"
    for name in UNFINISHED:
        (tmp_path / "run" / name).unlink(missing_ok=True)
    lines = log.read_text().splitlines(keepends=True)
    last = [n for n, line in enumerate(lines) if '"accepted"' in line][-1]
    log.write_text("".join(lines[:last]))  # nobody ends so: the weights of the step before are removed after this row
    said = refused(*commands(world)["adapt"], tmp_path / "run")
    assert str(log) in said and "weights" in said and "delete that file" in said
