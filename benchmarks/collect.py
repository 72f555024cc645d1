"""Keep what a run found as data: ``python -m benchmarks.collect RUN results/design/NAME``.

Of a design or a search: the record without the pictures of test images (they belong to the data
set), the logs of the race, of the search's trials and of NetAdapt's steps, the training curves, and the summary
as text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mobilefit.report import frontier_figure, summary_table
from mobilefit.runs import read_json, read_jsonl, write_atomic, write_json


def collect(run: Path, target: Path) -> None:
    """Copy the records of ``run`` into the new or old folder ``target``."""
    name = f"runs/{target.name}"
    record = json.loads(json.dumps(read_json(run / "record.json")).replace(str(run), name))
    record.get("final", {}).pop("misclassified", None)
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "record.json", record)
    steps = read_jsonl(run / "netadapt" / "netadapt.jsonl")
    logs = {"netadapt.jsonl": steps} if steps else {}
    if race := read_jsonl(run / "race" / "race.jsonl"):
        logs["race.jsonl"] = race
    if trials := read_jsonl(run / "search" / "trials.jsonl"):
        logs["trials.jsonl"] = trials
    for path in sorted(run.glob("train/*/metrics.jsonl")):
        logs[f"train-{path.parent.name}.jsonl"] = read_jsonl(path)
    for name, rows in logs.items():
        write_atomic(target / name, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(target / "summary.txt", summary_table(record) + "\n")
    write_atomic(target / "frontier.svg", frontier_figure(record, steps))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Keep what a run found as data.")
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("target", type=Path, help="such as results/design/fashion_mnist_48")
    arguments = parser.parse_args()
    collect(arguments.run, arguments.target)


if __name__ == "__main__":
    main()
