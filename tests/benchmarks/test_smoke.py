"""The benchmarks' parts that need neither a quiet machine nor the peers."""

from __future__ import annotations

import ast
import json
import random
import re
from pathlib import Path
from types import ModuleType

import pytest

import mobilefit as mf
from benchmarks import family, latency, latency_table, peers, table
from mobilefit.adapt import groups


@pytest.mark.parametrize("module", [family, latency, table])
def test_command_line(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    assert "--network" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        module.main(["--netwrok", "x"])
    assert stopped.value.code == 2


def test_random_patterns_are_narrower_in_steps_of_8() -> None:
    spec = mf.spec("mobilenet_v3_small").resolution(96)
    dice = random.Random(0)
    drawn = [table.random_pattern(spec, dice) for _ in range(20)]
    assert len({s.id for s in drawn}) == 20
    full = [group.width for group in groups(spec)]
    for pattern in drawn:
        blocks = zip(pattern.blocks, spec.blocks)
        assert all(p.out <= b.out and (p.expand or 0) <= (b.expand or 0) for p, b in blocks)
        widths = [b.out for b in pattern.blocks] + [b.expand for b in pattern.blocks if b.expand]
        assert all(width % 8 == 0 or width in full for width in widths)
        assert (pattern.head, pattern.last) == (spec.head, spec.last)


RESULT = {
    "network": "n", "resolution": 32, "device": "CPU", "protocol": "turns", "machine": {"date": "now"},
    "latency_ms": {"a": 1.5, "b": 1.0}, "partitions": {"a": 3}, "file_bytes": {"a": 2_000_000},
    "ratios": [{"of": "a", "to": "b", "ratio": 1.5, "target": 0.55, "met": False}],
    "compile": {"mobilefit_s": 0.1, "litert_torch_s": 10.0, "ratio": 100.0, "met": True},
    "lowerings": [{"name": "int8, default", "ms": 1.5, "of_default": 1.0, "partitions": 1}],
    "activations": [
        {"activation": "swish", "float32_ms": 3.0, "int8_ms": 1.5, "int8_of_float32": 0.5, "partitions": 1},
    ],
}  # fmt: skip


def test_the_summary_says_what_was_missed() -> None:
    text = "\n".join(latency_table.table([RESULT], {}))
    assert "| a | 1.500 | 3 | 2.0 |\n| b | 1.000 |  |  |" in text
    assert "| a / b | 1.500 | at most 0.55 | **no** |" in text
    assert re.search(r"litert-torch 10\.00 s / mobilefit 0\.100 s \| 100 \|.*\| yes \|", text)
    assert "| int8, default | 1.500 | 1.000 | 1 |" in text
    assert "| swish | 3.000 | 1.500 | 0.500 | 1 |  |  |" in text


def test_accuracies_are_filled_in_where_they_are_known() -> None:
    known = {"n": {"swish": {"float32": 0.9, "int8": 0.8875}}, "other": {"swish": {"float32": 0.1}}}
    text = "\n".join(latency_table.table([RESULT], known))
    assert "| swish | 3.000 | 1.500 | 0.500 | 1 | 90.00% | 88.75% |" in text


def test_a_result_takes_the_place_of_the_same_network(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    assert latency.merged(path, [RESULT]) == [RESULT]
    others = [{**RESULT, "resolution": 96}, {**RESULT, "network": "m"}]
    path.write_text(json.dumps({"results": [*others, RESULT]}))
    new = {**RESULT, "device": "another"}
    assert latency.merged(path, [new]) == [*others, new]


def test_the_family_is_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family.main(["--network", "mobilenet_v3_large", "lcnet", "--resolution", "32", "--rounds", "1", "--out", str(tmp_path)])
    lines = (tmp_path / "family.md").read_text().splitlines()
    cells = {line.split(" | ")[0]: line.strip("| ").split(" | ") for line in lines if line.startswith("| ")}
    large, lcnet = cells["| mobilenet_v3_large"], cells["| lcnet"]
    assert large[6:] == ["1.000", "1, 1", "75.2"] and lcnet[1] == "2.95" and lcnet[7] == "1, 1"
    saved = {row["network"]: row for row in json.loads((tmp_path / "family.json").read_text())["networks"]}
    assert f"{saved['lcnet']['int8_ms'] / saved['mobilenet_v3_large']['int8_ms']:.3f}" == lcnet[6]
    assert all(name in mf.arch.FAMILY for name in family.TOP1)
    assert "# The family at 32 px" in capsys.readouterr().out


def test_the_peers_know_every_command_and_pin_every_package() -> None:
    source = "".join(Path(module.__file__ or "").read_text() for module in (latency, peers))
    peer = ast.parse(Path(latency.__file__).with_name("peer.py").read_text())
    methods = {node.name for node in ast.walk(peer) if isinstance(node, ast.FunctionDef)}
    asked = set(re.findall(r'(?:peers|self|process|converter)\(\s*"(\w+)"', source))
    assert len(asked) >= 8 and asked <= methods
    lines = peers.REQUIREMENTS.read_text().splitlines()
    pins = [line.partition("==") for line in lines if not line.startswith("#")]
    assert all(version for _, _, version in pins)
    assert {name for name, _, _ in pins} >= set(peers.PACKAGES)
