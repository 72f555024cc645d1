from __future__ import annotations

import copy
import json
import math
import re
import statistics
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobilefit.arch import NetSpec, spec
from mobilefit.errors import InputError
from mobilefit.report import networks, plots, rewards_figure, search, tables, trials, write_report
from mobilefit.report.trials import Log, Point

from . import example
from .example import searched_record, seed_spec, write_jsonl, write_run, write_search
from .test_page import SECTIONS, Page, paths, written
from .test_plots import texts

ROWS = example.trials()
PARTS = (
    "Reward and latency over the trials", "The best trade-offs, as the search goes on",
    "The network that was found", "What the search came to prefer", "The best networks",
    "How far the search could be trusted", "Failed trials",
)  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs"


def parts(page: Page) -> tuple[str, ...]:
    return tuple(part for part in PARTS if part in page.text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_search(tmp_path_factory.mktemp("search"))).read_text()


def log_of(rows: list[dict[str, Any]], folder: Path) -> Log:
    write_jsonl(folder / trials.LOG, rows)
    return trials.read_log(folder)


def points(*pairs: tuple[float, float]) -> list[Point]:
    """Of (latency, accuracy); the reward is the accuracy."""
    return [Point(number=i, latency=x, accuracy=y, reward=y) for i, (x, y) in enumerate(pairs)]


# ---- the page


def test_the_section_has_all_its_parts(full: str) -> None:
    found = Page(full)
    assert tuple(found.sections) == (SECTIONS[0], "search", *SECTIONS[1:]) and not found.open
    assert parts(found) == PARTS
    for text in (
        "300 trials; space mobilenet_v3_small (9.6e14 networks); proposed by an LSTM controller (rnn); "
        "accuracy from the shared weights of a supernet; reward absolute; target 0.440 ms.",
        "6 min 52 s", "search_4", "is off by 1.5 % on average, 2.9 % at most",
        "(Kendall's tau) of accuracy in the search and after full training is 0.67, over 4 networks",
        "found: search_2", "by hand: mobilenet_v3_small", "out of <memory>", "the family's network",
        "The family's mobilenet_v3_small",
    ):  # fmt: skip
        assert text in found.text, text
    assert "nan" not in found.text.lower().split() and "Undefined" not in full


def test_the_page_still_needs_nothing_else_and_its_ids_are_unique(full: str) -> None:
    found = Page(full)
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in found.references)
    targets = {r[1:] for r in found.references if r.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", full))
    assert targets <= set(found.ids) and len(found.ids) == len(set(found.ids))
    assert not re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", full))


def test_every_colour_of_the_page_has_a_light_and_a_dark_value(full: str) -> None:
    used = set(re.findall(r"var\(--(\w+)\)", full))
    light, dark = re.findall(r":root \{(.*?)\}", full, re.DOTALL)
    for side in (light, dark):
        assert used <= set(re.findall(r"--(\w+):", side))


def test_a_run_without_a_search_has_no_section(page: str) -> None:
    assert "search" not in Page(page).sections


def test_the_record_alone_shows_what_it_holds(tmp_path: Path) -> None:
    found = written(write_run(tmp_path, searched_record(ROWS)))
    assert parts(found) == (PARTS[2], PARTS[4], PARTS[5])
    assert "300 trials; space mobilenet_v3_small; proposed by" in found.text


def test_the_log_alone_shows_a_search_that_has_not_ended(tmp_path: Path) -> None:
    write_jsonl(tmp_path / trials.LOG, ROWS)
    found = written(tmp_path)
    assert found.sections == ["search"]
    assert parts(found) == (PARTS[0], PARTS[1], PARTS[3], PARTS[6])
    assert "300 trials; space mobilenet_v3_small (9.6e14 networks)" in found.text


def test_a_table_without_measurements_is_compared_with_its_optimum(tmp_path: Path) -> None:
    """As a search on the tabular benchmark leaves it: no images, nothing trained."""
    found = example.search(ROWS)
    for entry in found["top"]:
        for key in ("measured_ms", "rescored_accuracy", "full_accuracy", "reward_full"):
            del entry[key]
    best = found["best_reward"]
    found |= {"optimum": seed_spec().to_dict(), "optimal_reward": best / 0.9, "evaluator": "tabular"}
    del found["reference"], found["rank_correlation"]
    content = {"verb": "search", "search": found, "final_spec": found["top"][1]["spec"]}
    page = written(write_search(tmp_path, ROWS, content))
    assert parts(page) == tuple(part for part in PARTS if part != PARTS[5])
    assert "the best possible" in page.text and "(90.0% of the best possible)" in page.text
    assert "accuracy from a table of known accuracy" in page.text
    assert "measured" not in tables_header(page)


def tables_header(page: Page) -> str:
    start = page.text.index(PARTS[4])
    return page.text[start : page.text.index("search_1", start)]


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    rows = copy.deepcopy(ROWS)
    rows[0] |= {"space": {"name": evil}, "strategy": evil}
    rows[0]["decisions"][1] |= {"name": f"{evil}.op", "options": [evil] * 4}
    rows[5] |= {"accuracy": None, "error": evil}
    content = searched_record(ROWS)
    content["search"] |= {"space": evil, "strategy": evil, "evaluator": evil, "reward": evil,
                          "seconds": {evil: 1.0}}  # fmt: skip
    for entry in content["search"]["top"]:
        entry["label"] = evil
    content["search"]["reference"]["name"] = evil
    content["reference_spec"]["name"] = evil
    text = write_report(write_search(tmp_path, rows, content)).read_text()
    found = Page(text)
    assert "script" not in found.tags and "<script" not in text and not found.open
    assert found.text.count(evil) > 20


def small_record() -> dict[str, Any]:
    found = example.search(ROWS)
    return {"search": {**found, "top": found["top"][:2]}, "reference_spec": seed_spec().to_dict()}


FIGURES = {
    "trials_figure": {"target_ms", "optimal_reward"}, "front_figure": {"target_ms", "winner"},
    "agreement_figure": {"top"},
}  # fmt: skip
PLACES = [place for place in paths(small_record())
          if place[-1] != 0 and not {"spec", "reference_spec"} & set(place[:-1])]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_any_field_may_be_missing_or_null(
    place: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for figure, sources in FIGURES.items():
        # Others are the same as ever: drawing takes nearly all the time.
        if not sources & set(place):
            monkeypatch.setattr(search, figure, lambda *_: b"<svg></svg>")
    for kept in (True, False):
        content: Any = small_record()
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = None
        if not kept:
            del holder[place[-1]]
        found = written(write_search(tmp_path, ROWS[:40], content))
        assert "search" in found.sections and not found.open
        assert "Undefined" not in found.text and "None" not in found.text


@pytest.mark.parametrize("key", ["decisions", "space", "strategy", "target_ms", "tokens", "number",
                                 "latency_ms", "accuracy", "reward", "error"])  # fmt: skip
def test_any_field_of_the_log_may_be_missing_or_null(key: str, tmp_path: Path) -> None:
    for change in ({}, {key: None}, {key: math.nan} if key.endswith(("ms", "cy", "rd")) else {key: None}):
        rows = [{k: v for k, v in row.items() if k != key} | change for row in ROWS[:30]]
        write_jsonl(tmp_path / trials.LOG, rows)
        (tmp_path / "record.json").write_text(json.dumps({"verb": "search"}))
        found = written(tmp_path)
        assert "search" in found.sections and "Undefined" not in found.text
        assert "nan" not in found.text.lower().split()


@pytest.mark.parametrize("found", [7, "x", {"top": 3}, {"top": [7]}, {"top": [{"spec": {"name": "x"}}]},
                                   {"seconds": 5}])  # fmt: skip
def test_a_broken_record_is_refused_in_one_line(found: Any, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"search": found}))
    with pytest.raises(InputError, match=r"cannot make sense of .*record.json") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_winner_that_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    content = small_record()
    content["search"]["winner"] = 9
    assert PARTS[2] not in parts(written(write_search(tmp_path, ROWS[:20], content)))


def test_ten_thousand_trials_stay_a_small_page(tmp_path: Path) -> None:
    rows = example.trials(10_000)
    page = write_report(write_search(tmp_path, rows, {"search": {"trials": 10_000}}))
    assert page.stat().st_size < 600_000
    found = Page(page.read_text())
    assert "of so many, some are drawn" in found.text and found.text.count("10,000 trials") == 1
    drawn = search.trials_figure(trials.read_log(tmp_path).points, 0.4, {})
    assert drawn.count(b"<use") < 2 * search.MAX_POINTS + 60


# ---- the log


def test_what_was_voided_or_done_again_counts_once(tmp_path: Path) -> None:
    def trial(number: int, accuracy: float | None) -> dict[str, Any]:
        return {"event": "trial", "number": number, "latency_ms": 1.0, "accuracy": accuracy,
                "reward": accuracy}  # fmt: skip

    log = log_of([
        {"event": "space"}, trial(0, 0.1), trial(2, 0.3), trial(1, None), trial(1, 0.2),
        {"event": "resumed", "from": 2}, trial(2, 0.5), {"event": "trial"}, {"event": "else"},
    ], tmp_path)  # fmt: skip
    assert [(t.number, t.accuracy) for t in log.trials] == [(0, 0.1), (1, 0.2), (2, 0.5)]
    with (tmp_path / trials.LOG).open("a") as file:
        file.write('7\n{"event": "tri')
    assert trials.read_log(tmp_path) == log
    assert trials.read_log(tmp_path / "nowhere") == Log(heading={}, trials=[])


def test_failures_by_cause(tmp_path: Path) -> None:
    def failed(number: int, error: str | None) -> dict[str, Any]:
        return {"event": "trial", "number": number, "accuracy": None, "error": error}

    causes = ["slow", "slow", None, "x" * 999, *(f"cause {i}" for i in range(20))]
    log = log_of([failed(i, cause) for i, cause in enumerate(causes)], tmp_path)
    found = trials.failures(log)
    assert found[:3] == [("slow", 2), ("no cause given", 1), ("x" * 300, 1)]
    assert len(found) == trials.MAX_CAUSES + 1 and found[-1] == ("other causes", 11)
    assert sum(number for _, number in found) == 24
    assert trials.failures(Log(heading={}, trials=[])) == []


def test_preferences_by_hand(tmp_path: Path) -> None:
    heading = {"event": "space", "decisions": [
        {"name": "stem", "options": [0, 1]}, {"name": "blocks.0.op", "options": ["conv", "hard_swish"]},
        {"name": "blocks.1.kernel", "options": [3, 5, 7]}, {"name": "tail", "options": [0, 1]},
    ]}  # fmt: skip
    tokens = [[0, 0, 0, 0], [0, 1, 0, 0], *[[0, 0, 1, 0]] * 6, [1, 1, 2, 0], [1, 1, 1, 1]]
    rows = [{"event": "trial", "number": i, "tokens": t, "accuracy": None} for i, t in enumerate(tokens)]
    found = trials.preferences(log_of([heading, *rows], tmp_path))
    assert [(block, [(d.what, d.column) for d in row]) for block, row in found] == [
        ("", [("stem", 1), ("tail", 2)]), ("blocks.0", [("op", 1)]), ("blocks.1", [("kernel", 2)]),
    ]  # fmt: skip
    shares = {d.what: [(o.name, o.early, o.late) for o in d.options] for _, row in found for d in row}
    assert shares == {
        "stem": [("0", 1.0, 0.0), ("1", 0.0, 1.0)], "tail": [("0", 1.0, 0.5), ("1", 0.0, 0.5)],
        "op": [("conv", 0.5, 0.0), ("h-swish", 0.5, 1.0)],
        "kernel": [("3", 1.0, 0.0), ("5", 0.0, 0.5), ("7", 0.0, 0.5)],
    }  # fmt: skip
    assert trials.preferences(log_of([heading, *rows[:4]], tmp_path / "few")) == []


# ---- over the trials


def test_front_by_hand() -> None:
    found = trials.front(points((3, 0.7), (1, 0.5), (2, 0.5), (2, 0.6), (4, 0.6), (1, 0.4), (3, 0.7)))
    assert [(p.latency, p.accuracy) for p in found] == [(1, 0.5), (2, 0.6), (3, 0.7)]
    assert [p.number for p in trials.running_best(points((1, 0.5), (1, 0.4), (1, 0.5), (1, 0.6)))] == [0, 3]
    assert trials.front([]) == trials.running_best([]) == []


@pytest.mark.parametrize("window", [5, 8, 1])
def test_running_median(window: int) -> None:
    values = [float((7 * i) % 13) for i in range(20)]
    half = window // 2
    expected = [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(20)]
    assert trials.running_median(values, window) == expected
    assert trials.running_median([3.0], window) == [3.0] and trials.running_median([], window) == []


def test_thinned_keeps_the_ends() -> None:
    found = trials.thinned(range(10_000), 300)
    assert len(set(found)) == 300 and (found[0], found[-1]) == (0, 9999) and found == sorted(found)
    assert trials.thinned([1, 2], 2) == [1, 2] and trials.thinned([], 5) == []


def test_trials_figure_names_its_lines() -> None:
    few = points((1, 0.5), (0.8, 0.6), (0.9, 0.55))
    found = texts(search.trials_figure(few, 0.85, {"optimal_reward": 0.9}))
    for text in ("reward", "predicted latency (ms)", "trial", "running median", "best so far",
                 "best possible", "target 0.850 ms"):  # fmt: skip
        assert found.count(text) == 1, text
    plain = texts(search.trials_figure(few[:1], None, {}))
    assert "best possible" not in plain and not [t for t in plain if "target" in t]


def test_front_figure_names_its_lines() -> None:
    winner = {"predicted_ms": 0.8, "proxy_accuracy": 0.6}
    found = texts(search.front_figure(points((1, 0.5), (0.8, 0.6)), 0.85, winner))
    for text in ("after a third", "two thirds", "all trials", "the winner", "target 0.850 ms",
                 "accuracy in the search (%)"):  # fmt: skip
        assert found.count(text) == 1, text
    assert "the winner" not in texts(search.front_figure(points((1, 0.5)), None, None))


# ---- the best networks


def test_the_top_table() -> None:
    entry = {
        "label": "a", "spec": seed_spec().to_dict(), "trial": 1234, "proxy_accuracy": 0.5,
        "predicted_ms": 1.1, "measured_ms": 1.0, "full_accuracy": 0.75, "reward_full": 0.7412,
    }  # fmt: skip
    header, rows = trials.top({"top": [entry, {"label": "b", "predicted_ms": 2.0}], "winner": 0})
    cost = seed_spec().cost()
    assert header == ["network", "trial", "params", "MAdds", "predicted", "measured", "off by",
                      "in the search", "trained fully", "reward"]  # fmt: skip
    assert rows[0] == (True, ["a", "1,234", f"{cost.params / 1e6:.2f} M", f"{cost.madds / 1e6:.2f} M",
                              "1.10 ms", "1.00 ms", "+10.0 %", "50.00 %", "75.00 %", "0.7412"])  # fmt: skip
    assert rows[1] == (False, ["b", "–", "–", "–", "2.00 ms", *["–"] * 5])
    assert trials.top({}) == (["network"], [])


def test_agreement_uses_the_second_look_and_needs_two() -> None:
    one = {"label": "a", "predicted_ms": 1.1, "measured_ms": 1.0, "proxy_accuracy": 0.5,
           "rescored_accuracy": 0.4, "full_accuracy": 0.8}  # fmt: skip
    two = {**one, "label": "b", "rescored_accuracy": None, "full_accuracy": 0.9, "predicted_ms": 1.2}
    assert [(p.x, p.y) for p in trials.accuracies({"top": [one, two]})] == [(40, 80), (50, 90)]
    both = search.agreement_figure({"top": [one, two]})
    assert both is not None
    assert {"measured latency (ms)", "accuracy, fully trained (%)"} <= set(texts(both))
    untrained = search.agreement_figure({"top": [{**one, "full_accuracy": None}, two]})
    assert untrained is not None and "accuracy, fully trained (%)" not in texts(untrained)
    assert search.agreement_figure({"top": [one]}) is None
    assert search.agreement_figure({"top": [{"label": "x"}]}) is None
    assert search.agreement_figure({}) is None


# ---- networks side by side


def test_bars_say_what_the_rows_are() -> None:
    found = networks.bars(spec("mobilenet_v3_small"))
    assert len(found) == 1 + 11 + 1 + 1
    assert found[0] == networks.Bar(stage=112, size="112²", kind="conv", words="conv 3×3", wide=None, out=16,
                                    marks=("", "h-swish", ""))  # fmt: skip
    assert found[1] == networks.Bar(stage=56, size="56²", kind="depthwise", words="depthwise 3×3", wide=None, out=16,
                                    marks=("SE", "relu", ""))  # fmt: skip
    assert found[5] == networks.Bar(stage=14, size="14²", kind="mbconv", words="mbconv6 5×5", wide=240, out=40,
                                    marks=("SE", "h-swish", "skip"))  # fmt: skip
    assert (found[-1].words, found[-1].out, found[-1].stage) == ("linear", 1024, 1)
    assert networks.bars(spec("mobilenet_v1"))[1].words == "separable 3×3"
    assert "fused" in {bar.kind for bar in networks.bars(spec("mobilenet_v3_edgetpu"))}
    universal = [bar.words for bar in networks.bars(spec("mobilenetv4_conv_medium"))]
    assert (universal[2], universal[9], universal[10]) == ("extradw4 3+5", "convnext4 3×3", "ffn2")


def test_a_pool_skip_is_marked_where_it_acts() -> None:
    net = seed_spec()
    blocks = tuple(replace(block, skip="pool") for block in net.blocks)
    marks = [bar.marks[2] for bar in networks.bars(replace(net, blocks=blocks))[1:12]]
    assert marks == ["pool skip" if block.has_residual(width) else ""
                     for block, width in zip(blocks, net.widths)]  # fmt: skip
    assert "pool skip" in marks


def test_networks_stand_at_one_height_and_keep_to_their_panels() -> None:
    pair = [("one <b>", example.searched_spec([0] * 36)), ("other", spec("mobilenet_v3_large"))]
    root = ET.fromstring(networks.figure(pair))
    panels = [group for group in root if group.tag.endswith("}g")]
    height = float(root.attrib["viewBox"].split()[3])
    counts = []
    for panel, (title, net) in zip(panels, pair):
        words = [str(text.text) for text in panel if text.tag.endswith("}text")]
        assert words[0] == title
        assert [w for w in words if "×" in w] == [b.words for b in networks.bars(net) if "×" in b.words]
        tops = [float(box.attrib["y"]) for box in panel if box.tag.endswith("}rect")]
        assert tops == sorted(tops) and tops[-1] < height
        widths = [float(box.attrib["width"]) for box in panel if box.tag.endswith("}rect")]
        assert min(widths) > 0 and max(widths) <= networks.LONGEST
        counts.append(len(set(tops)))
    assert counts == [len(networks.bars(net)) for _, net in pair]


def stage_tops(net: NetSpec, other: NetSpec) -> dict[str, str]:
    """Where each stage begins in the first panel."""
    root = ET.fromstring(networks.figure([("a", net), ("b", other)]))
    return {str(t.text): t.attrib["y"] for t in root[0] if t.attrib.get("class") == "muted end"}


def test_stages_are_as_high_as_the_deeper_network_has_them() -> None:
    shallow = replace(seed_spec(), blocks=seed_spec().blocks[:9])
    assert stage_tops(shallow, seed_spec()) == stage_tops(seed_spec(), shallow)


# ---- kinds, rewards, docs


def test_kinds_have_words_and_the_family_its_line() -> None:
    assert tables.kinds({})["seed"] == "seed network"
    for found in ({"search": {"trials": 2}}, {"results": [{"label": "x", "kind": "reference"}]}):
        assert tables.kinds(found)["seed"] == "searched network"
    # A design writes its family's spec whether or not it has searched.
    assert tables.kinds({"search": None, "reference_spec": {"name": "x"}})["seed"] == "seed network"
    content = searched_record(ROWS)
    found = texts(plots.frontier_figure(content, []))
    for text in ("searched network", "the family's network", "NetAdapt, trained", "width multiplier"):
        assert found.count(text) == 1, text
    assert "seed network" not in found


@pytest.mark.parametrize(("kind", "on_the_line"), [("reference", True), ("seed", False)])
def test_width_line_joins_the_family(
    kind: str, on_the_line: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The searched network is no width of the family's."""
    drawn: list[list[float]] = []
    original = plots.Axes.plot

    def plot(axis: Any, *given: Any, **how: Any) -> Any:
        drawn.append(list(given[0]))
        return original(axis, *given, **how)

    monkeypatch.setattr(plots.Axes, "plot", plot)
    content = searched_record(ROWS)
    plots.frontier_figure(content, [])
    found = next(e.latency for e in tables.entries(content) if e.kind == kind)
    assert len(drawn) == 1 and found is not None and (found.mean in drawn[0]) is on_the_line


def test_rewards_figure_and_the_docs_copy() -> None:
    from benchmarks.figures import ACCURACY, reward_curves

    curves = reward_curves()
    assert all(dict(points)[1.0] == pytest.approx(ACCURACY) for points in curves.values())
    found = texts(rewards_figure(curves))
    assert [text for text in found if text in curves] == list(curves)
    assert found == texts((DOCS / "rewards.svg").read_bytes())
    assert rewards_figure(curves) == rewards_figure(curves)


def test_the_space_in_the_docs_is_legal() -> None:
    from mobilefit.search import Space

    text = (DOCS / "search.md").read_text()
    found = Space.from_dict(json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]))
    assert f"{found.size:,} networks" in text
