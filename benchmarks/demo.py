"""`make demo` again and again: whether it ends well, keeps its time, and is behind nothing that a user could do by hand.

    python -m benchmarks.demo                # ten runs: two hours
    python -m benchmarks.demo --busy 1       # beside one process that only computes

Runs the command of ``demo`` in the Makefile, each time in a new folder, and keeps a row of each in
``results/design/demo.jsonl`` and a table in ``demo.md``. Runs that have a row are not done again; one that was
interrupted begins anew, so that its minutes are those of one run.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.busy import busy_processes
from benchmarks.common import ROOT, header
from mobilefit.runs import append_jsonl, read_json, read_jsonl, write_atomic

Row = dict[str, Any]

MOST_MINUTES = 15.0
"""A run may take, by the clock."""
KEPT = 0.2
"""How far the minutes may be from the promised ones, part of these."""


def demo_command(makefile: str, out: Path, minutes: float | None = None) -> list[str]:
    """The arguments of ``mobilefit`` in the Makefile's ``demo``.

    Args:
        out: the run's folder.
        minutes: in the place of those in the Makefile.
    """
    (recipe,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/mobilefit (.+)$", makefile, re.MULTILINE)
    words = shlex.split(recipe.replace("$(DEMO_OUT)", shlex.quote(str(out))))
    if minutes is not None:
        words[words.index("--minutes") + 1] = f"{minutes:g}"
    return words


def run_once(words: Sequence[str], out: Path, busy: int) -> Row:
    """A run in a new folder, and what came of it."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    with busy_processes(busy), log.open("w") as file:
        began = time.monotonic()
        status = subprocess.run(
            [sys.executable, "-m", "mobilefit", *words], stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
        minutes = (time.monotonic() - began) / 60
    record = read_json(out / "record.json") if (out / "record.json").exists() else None
    lines = log.read_text().splitlines()
    return {
        "status": status, "minutes": round(minutes, 2), "promised": float(words[words.index("--minutes") + 1]),
        "error": lines[-1] if status and lines else None, **outcome(record),
    }  # fmt: skip


def outcome(record: Row | None) -> Row:
    """What a row keeps of a run's record; nothing of a run that did not get that far."""
    if record is None:
        return {}
    final, verdict = record["final"], record["verdict"]
    return {
        "network": final["label"], "accuracy": final["accuracy_int8"], "latency_ms": final["latency"]["median_ms"],
        "judged_ms": final["judged_ms"], "budget_ms": record["budget_ms"], "against": verdict["against"],
        "left_out": verdict["left_out"], "epochs": record["plan"]["epochs"], "is_by_hand": verdict["kind"],
    }  # fmt: skip


# ---- the page


def kept_time(row: Row) -> bool:
    """Whether a run kept its promise, and the limit by the clock."""
    return row["minutes"] <= MOST_MINUTES and abs(row["minutes"] / row["promised"] - 1) <= KEPT


def behind(row: Row) -> list[str]:
    """The kinds of what a user could do by hand that the result is behind by more than the stated error."""
    return [entry["kind"] for entry in row.get("against", ()) if entry["points"] < -entry["error"]]


def table(rows: Sequence[Row], head: Row) -> str:
    """A row for each run, and how many are as they should be, beside as many busy processes."""
    machine = head["machine"]
    lines = ["# make demo, again and again", "", f"{head['protocol']}.", "",
             f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}.", ""]  # fmt: skip
    for busy in sorted({row["busy"] for row in rows}):
        same = sorted((row for row in rows if row["busy"] == busy), key=lambda row: row["run"])
        count = len(same)
        lines += [
            f"## Beside {busy} busy processes", "",
            "| run | status | minutes | network | epochs | int8 | latency / budget, ms | against lower resolution | against width |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in same), "",
            f"- status 0: {sum(row['status'] == 0 for row in same)} of {count}",
            f"- at most {MOST_MINUTES:g} minutes, and within {KEPT:.0%} of those promised: {sum(map(kept_time, same))} of "
            f"{count}; the longest took {max(row['minutes'] for row in same):.1f}",
            f"- behind neither by more than the error: {sum(not behind(row) for row in same if 'network' in row)} of {count}",
            "",
        ]  # fmt: skip
    return "\n".join(lines)


def _line(row: Row) -> str:
    start = f"| {row['run']} | {row['status']} | {row['minutes']:.1f} |"
    if "network" not in row:
        return f"{start} {row['error']} | | | | | |"
    against = {entry["kind"]: f"{entry['points']:+.2f} ± {entry['error']:.2f}" for entry in row["against"]}
    against |= dict.fromkeys(row["left_out"], "no time")
    against.setdefault(row["is_by_hand"], "exported")
    return (
        f"{start} {row['network']} | {row['epochs']:.1f} | {row['accuracy']:.2%} | {row['judged_ms']:.4f} / "
        f"{row['budget_ms']:.4f} | {against.get('resolution', '')} | {against.get('width', '')} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the runs that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="of runs")
    parser.add_argument("--busy", type=int, default=0, help="processes beside it that only compute")
    parser.add_argument("--minutes", type=float, help="in the place of the Makefile's, to try it")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "demo-benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "design")
    options = parser.parse_args(arguments)
    log = options.out / "demo.jsonl"
    makefile = (ROOT / "Makefile").read_text()
    protocol = (
        "The command of `make demo`, each run in a new folder; minutes by the clock; latency at the speed that the machine "
        "had when the budget was set; differences of the int8 files on the 10,000 test images in points, with their "
        "standard errors"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for number in range(1, options.count + 1):
        key = {"busy": options.busy, "run": number}
        if any(key.items() <= row.items() for row in read_jsonl(log)):
            continue
        out = options.runs / f"busy-{options.busy}-{number}"
        append_jsonl(log, {**key, **run_once(demo_command(makefile, out, options.minutes), out, options.busy)})
        write_atomic(options.out / "demo.md", table(read_jsonl(log), header(protocol)))
    print(table(read_jsonl(log), header(protocol)))


if __name__ == "__main__":
    main()
