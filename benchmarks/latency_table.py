"""What ``benchmarks.latency`` found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Result = dict[str, Any]
NAMES = {"hard_swish": "h-swish", "swish": "swish", "relu": "ReLU"}


def table(results: list[Result], accuracies: dict[str, Any]) -> Iterator[str]:
    """The lines of the page.

    Args:
        accuracies: of the networks with other activations; see ``latency.ACCURACIES``. May lack any.
    """
    yield "# Against peers"
    for result in results:
        yield from ("", f"## {result['network']} at {result['resolution']}", "")
        yield f"{result['device']}, {result['machine']['date']}. {result['protocol']}."
        yield from ("", *_files(result), "", *_ratios(result))
        if not result["lowerings"]:
            continue
        yield from ("", "Lowerings, each but the default in one choice:", "", *_lowerings(result))
        found = accuracies.get(result["network"], {})
        yield from ("", "h-swish against others (the paper's Table 5):", "", *_activations(result, found))
    yield ""


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _files(result: Result) -> Iterator[str]:
    def row(name: str, ms: float) -> Iterator[str]:
        size = result["file_bytes"].get(name)
        yield from (name, f"{ms:.3f}", str(result["partitions"].get(name, "")))
        yield f"{size / 1e6:.1f}" if size else ""

    rows = (row(name, ms) for name, ms in result["latency_ms"].items())
    return _rows(("file", "median ms", "XNNPACK partitions", "MB"), rows)


def _ratios(result: Result) -> Iterator[str]:
    yield from _rows(
        ("ratio", "found", "target", "met"),
        (
            (f"{r['of']} / {r['to']}", f"{r['ratio']:.3f}", f"at most {r['target']:g}", _yes(r["met"]))
            for r in result["ratios"]
        ),
    )
    c = result["compile"]
    yield (
        f"| compile time, litert-torch {c['litert_torch_s']:.2f} s / mobilefit {c['mobilefit_s']:.3f} s "
        f"| {c['ratio']:.0f} | at least 20, ours under 0.5 s | {_yes(c['met'])} |"
    )


def _lowerings(result: Result) -> Iterator[str]:
    return _rows(
        ("lowering", "median ms", "of the default", "XNNPACK partitions"),
        (
            (r["name"], f"{r['ms']:.3f}", f"{r['of_default']:.3f}", str(r["partitions"]))
            for r in result["lowerings"]
        ),
    )


def _activations(result: Result, accuracies: dict[str, Any]) -> Iterator[str]:
    def row(r: Result) -> Iterator[str]:
        yield from (NAMES[r["activation"]], f"{r['float32_ms']:.3f}", f"{r['int8_ms']:.3f}")
        yield from (f"{r['int8_of_float32']:.3f}", str(r["partitions"]))
        found = accuracies.get(r["activation"], {})
        for arithmetic in ("float32", "int8"):
            yield f"{found[arithmetic]:.2%}" if arithmetic in found else ""

    return _rows(
        ("activation", "float32 ms", "int8 ms", "int8 / float32", "int8 partitions",
         "float32 accuracy", "int8 accuracy"),
        map(row, result["activations"]),
    )  # fmt: skip


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
