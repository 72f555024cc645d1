"""The lookup table: by hand, with a clock of our own, and once for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mobilefit import litert
from mobilefit.arch import (
    DETECTORS,
    SEGMENTERS,
    BatchNorm,
    Block,
    ClassifierHead,
    Conv,
    NetSpec,
    detector,
    segmenter,
    spec,
)
from mobilefit.device import LatencyTable, Phone, TableCheck, device_id, units
from mobilefit.device import table as latency_table
from mobilefit.errors import InputError
from mobilefit.litert.graph import parse
from mobilefit.nn import build
from mobilefit.runtime import TimingSamples, Worker

TINY = NetSpec(
    name="tiny",
    input_size=32,
    stem=Conv(out=8, kernel=3, stride=2),
    blocks=(Block(expand=16, out=8), Block(expand=16, out=8), Block(expand=24, out=16, stride=2)),
    last=Conv(out=32),
    head=ClassifierHead(num_classes=4),
)


class Clock(Worker):
    """Stands in for the device: a file's time follows its size; whole networks' may be set."""

    def __init__(self) -> None:
        super().__init__()
        self.timed: list[bytes] = []
        self.networks: dict[int, float] = {}
        """Milliseconds of a whole network by the side of its input, three channels deep."""

    def time_many(self, blobs, **options):  # type: ignore[no-untyped-def]
        self.timed += blobs
        return [TimingSamples([self._milliseconds(blob)] * 3, stable=True) for blob in blobs]

    def _milliseconds(self, blob: bytes) -> float:
        _, side, _, channels = parse(blob).inputs[0].shape
        if channels == 3 and side in self.networks:
            return self.networks[side]
        return len(blob) / 1000


def table(specs: Sequence[NetSpec] = (TINY,), **fields: object) -> LatencyTable:
    """A table whose n-th row takes n milliseconds; it measures nothing."""
    keys = list(dict.fromkeys(unit.key for s in specs for unit in units(s)))
    rows = {key: float(number) for number, key in enumerate(keys, 1)}
    return LatencyTable(device=device_id(), rows=rows, **{"frozen": True, **fields})  # type: ignore[arg-type]


# ---- units


def test_units_are_the_rows_with_the_shapes_of_their_inputs() -> None:
    assert [(unit.name, unit.shape) for unit in units(TINY)] == [
        ("stem", (1, 3, 32, 32)),
        ("blocks.0", (1, 8, 16, 16)),
        ("blocks.1", (1, 8, 16, 16)),
        ("blocks.2", (1, 8, 16, 16)),
        ("last", (1, 16, 8, 8)),
        ("head", (1, 32, 8, 8)),
    ]
    odd = [unit.shape[2] for unit in units(TINY.resolution(35))]
    assert odd == [35, 18, 18, 18, 9, 9]  # a stride rounds up


def test_keys_of_older_tables_are_what_they_were() -> None:
    found = {unit.name: unit.key for unit in units(TINY)}
    assert found["blocks.2"] == (
        '{"act": "relu", "expand": 24, "inputs": 8, "kernel": 3, "kind": "Block", "op": "inverted", '
        '"out": 16, "padding": "same", "se": null, "size": 16, "skip": "none", "stride": 2}'
    )
    assert found["last"] == (
        '{"act": "relu", "inputs": 16, "kernel": 1, "kind": "Conv", "out": 32, "padding": "same", '
        '"se": null, "size": 8, "stride": 1}'
    )
    assert found["head"] == '{"act": "none", "hidden": null, "inputs": 32, "num_classes": 4, "size": 8}'


def test_long_images_have_rows_of_their_own() -> None:
    long = TINY.resolution(32, 48)
    assert [unit.shape[2:] for unit in units(long)] == [(32, 48), *[(16, 24)] * 3, *[(8, 12)] * 2]
    assert differing(long) == differing(TINY.resolution(48, 32)) == set(keys(TINY))
    assert keys(TINY.resolution(32, 32)) == keys(TINY)
    assert set(keys(long).values()).isdisjoint(keys(TINY.resolution(48, 32)).values())


def keys(net: NetSpec) -> dict[str, str]:
    return {unit.name: unit.key for unit in units(net)}


def differing(other: NetSpec) -> set[str]:
    ours, theirs = keys(TINY), keys(other)
    return {name for name in ours if ours[name] != theirs[name]}


def test_equal_rows_at_equal_sizes_share_a_key() -> None:
    assert keys(TINY)["blocks.0"] == keys(TINY)["blocks.1"]
    assert len(set(keys(TINY).values())) == 5


@pytest.mark.parametrize(
    "other",
    [
        replace(TINY, name="other"),
        replace(TINY, stem=replace(TINY.stem, scaling="never")),
        replace(TINY, last=replace(TINY.last, scaling="above_one")),
        replace(TINY, head=replace(TINY.head, scaling="always", dropout=0.7)),
    ],
    ids=["name", "stem's scaling", "last's scaling", "head's scaling and dropout"],
)
def test_what_does_not_run_on_the_device_does_not_count(other: NetSpec) -> None:
    assert differing(other) == set()


def test_what_runs_on_the_device_counts() -> None:
    def changed(index: int, **fields: object) -> NetSpec:
        blocks = list(TINY.blocks)
        blocks[index] = replace(blocks[index], **fields)  # type: ignore[arg-type]
        return replace(TINY, blocks=tuple(blocks))

    every = set(keys(TINY))
    assert differing(TINY.resolution(64)) == every
    assert differing(TINY.padded("torch")) == every - {"head"}
    assert differing(changed(1, expand=24)) == {"blocks.1"}
    assert differing(changed(1, se="v3")) == differing(changed(1, act="hard_swish")) == {"blocks.1"}
    assert differing(changed(1, dilation=2)) == differing(changed(1, start_kernel=3)) == {"blocks.1"}
    linear, normed = (keys(replace(TINY, head=ClassifierHead(hidden=8, hidden_norm=n))) for n in (False, True))
    assert linear["head"] != normed["head"]
    assert differing(changed(1, kernel=5)) == differing(changed(1, skip="none")) == {"blocks.1"}
    assert differing(changed(2, out=24)) == {"blocks.2", "last"}
    assert differing(replace(TINY, stem=replace(TINY.stem, out=16))) == {"stem", "blocks.0"}
    assert differing(TINY.classes(5)) == {"head"}


# ---- heads

DEEP = replace(
    TINY, name="deep", input_size=64,
    blocks=tuple(Block(expand=16, out=16, stride=2) for _ in range(4)),
)  # fmt: skip
DETECTOR = detector(DEEP, num_classes=3).resolution(64)
SEGMENTER = segmenter(DEEP, num_classes=3, filters=16, reduced=False).resolution(64, 96)
HEADED = (DETECTOR, SEGMENTER, segmenter(DEEP, kind="raspp", filters=16, reduced=False).resolution(64, 96))


@pytest.mark.parametrize("made", HEADED)
def test_a_head_is_one_row_behind_the_backbones(made: NetSpec) -> None:
    same = replace(made, head=ClassifierHead())
    *rows, head = units(made)
    assert rows == list(units(same))[:-1]  # also the expansion that it takes
    tapped = made.cost().of(head_taps(made)[0]).layers[-1]
    assert (head.name, head.shape) == ("head", (1, tapped.out, tapped.out_size, tapped.out_columns))


def head_taps(made: NetSpec) -> list[str]:
    taps = getattr(made.head, "taps", None) or (made.head.tap, made.head.skip)  # type: ignore[union-attr]
    return [tap for tap in taps if tap is not None]


@pytest.mark.parametrize(
    ("made", "changes", "same"),
    [
        (DETECTOR, {"scoring": "softmax"}, True),
        (DETECTOR, {"norm": BatchNorm()}, True),
        (DETECTOR, {"anchors": "torchvision"}, False),
        (DETECTOR, {"act": "relu"}, False),
        (DETECTOR, {"num_classes": 4}, False),
        (DETECTOR, {"extras": (512, 256, 248, 128)}, False),
        (DETECTOR, {"taps": ("blocks.3.depthwise", "last")}, False),  # a quarter of C4's pixels
        (SEGMENTER, {"norm": BatchNorm()}, True),
        (SEGMENTER, {"gate_bias": False}, True),
        (SEGMENTER, {"filters": 24}, False),
        (SEGMENTER, {"num_classes": 4}, False),
        (SEGMENTER, {"pool": None}, False),
        (SEGMENTER, {"align_corners": False}, False),
        (SEGMENTER, {"skip": "blocks.1"}, True),  # as many pixels of as many channels
    ],
)
def test_a_heads_row_is_known_by_what_runs(made: NetSpec, changes: dict[str, object], same: bool) -> None:
    other = replace(made, head=replace(made.head, **changes))  # type: ignore[type-var]
    before, after = keys(made), keys(other)
    assert {name for name in before if before[name] != after[name]} == (set() if same else {"head"})


def test_a_head_feels_the_widths_that_it_takes() -> None:
    def wider(index: int) -> NetSpec:
        blocks = [replace(b, expand=24) if i == index else b for i, b in enumerate(DETECTOR.blocks)]
        return replace(DETECTOR, blocks=tuple(blocks))

    def changed(other: NetSpec) -> set[str]:
        before, after = keys(DETECTOR), keys(other)
        return {name for name in before if before[name] != after[name]}

    assert DETECTOR.head.taps == ("blocks.3.expand", "last")  # type: ignore[union-attr]
    assert changed(wider(2)) == {"blocks.2"} and changed(wider(3)) == {"blocks.3", "head"}
    assert DETECTOR.last is not None
    assert changed(replace(DETECTOR, last=replace(DETECTOR.last, out=40))) == {"last", "head"}
    torch_padded = {unit.name: unit.key for unit in units(DETECTOR.padded("torch"))}
    assert torch_padded["head"] != keys(DETECTOR)["head"]


def test_logits_are_resized_to_the_image() -> None:
    # The maps of 63 rows are as high as those of 64.
    assert list(units(SEGMENTER))[-1].shape == list(units(SEGMENTER.resolution(63, 96)))[-1].shape
    assert keys(SEGMENTER)["head"] != keys(SEGMENTER.resolution(63, 96))["head"]


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS])
def test_every_head_is_cut_from_its_network_whole(name: str) -> None:
    made = spec(name).resolution(64, 96).classes(4)
    blob = latency_table._compiled(made)
    whole, head = parse(blob), parse(latency_table._cut(blob))
    layers = [made.cost().of(tap).layers[-1] for tap in head_taps(made)]
    taken = {(1, x.out_size, x.out_columns, x.out) for x in layers}
    assert {t.shape for t in head.inputs} == taken and len(head.inputs) == len(layers)
    assert [t.shape for t in head.outputs] == [t.shape for t in whole.outputs]
    # Nothing of the head stays behind, and nothing of the backbone comes along.
    backbone = litert.compile(build(made).eval().backbone, (1, 3, 64, 96))
    assert abs(len(whole.ops) - len(head.ops) - len(parse(backbone).ops)) <= 1  # two may become one


def test_a_cut_head_computes_what_the_head_does(worker: Worker) -> None:
    made = HEADED[2]
    network = build(made).eval()
    maps = torch.randn(1, *next(reversed(list(units(made)))).shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.head([maps], torch.zeros(1, 3, *made.image_shape))
    blob = latency_table._cut(litert.compile(network, (1, 3, *made.image_shape)))
    found = worker.run(blob, maps.permute(0, 2, 3, 1).contiguous().numpy())
    assert torch.allclose(torch.from_numpy(found).permute(0, 3, 1, 2), expected, rtol=1e-3, atol=1e-5)


# ---- predicting


def test_a_prediction_adds_up() -> None:
    made = table(offset=0.5, scale=2.0)
    assert made.row_times(TINY) == {
        "stem": 1, "blocks.0": 2, "blocks.1": 2, "blocks.2": 3, "last": 4, "head": 5
    }  # fmt: skip
    assert made.predict(TINY) == 0.5 + 2.0 * (1 + 2 + 2 + 3 + 4 + 5)


def test_rows_are_measured_once() -> None:
    clock = Clock()
    made = LatencyTable(device=device_id(), worker=clock)
    first = made.predict(TINY)
    assert len(made.rows) == 5 and clock.timed
    assert all(ms >= 0 for ms in made.rows.values()) and first > 0
    clock.timed.clear()
    assert made.predict(TINY) == first
    made.ensure([TINY, replace(TINY, name="again")])
    assert not clock.timed
    made.ensure([TINY, TINY.classes(5)])
    assert clock.timed and len(made.rows) == 6


def test_rows_follow_what_is_measured() -> None:
    made = LatencyTable(device=device_id(), worker=Clock())
    wide = replace(TINY, blocks=(*TINY.blocks[:2], replace(TINY.blocks[2], expand=240)))
    narrow_row, wide_row = (made.row_times(s)["blocks.2"] for s in (TINY, wide))
    assert wide_row > 2 * narrow_row > 0
    assert made.predict(wide) > made.predict(TINY)


def test_the_file_of_a_network_may_be_another() -> None:
    """With operators behind its outputs, say: they are in the offset."""
    clock = Clock()
    plain = LatencyTable.build(TINY, worker=clock)
    wider = TINY.classes(400)
    other = LatencyTable.build(TINY, worker=clock, file=lambda s: latency_table._whole(s.classes(400)))
    assert other.rows == plain.rows  # the rows are the network's
    assert other.measure([TINY]) == plain.measure([wider]) > plain.measure([TINY])
    assert other.predict(TINY) == pytest.approx(plain.measure([wider])[0], rel=0.1)


def test_a_slow_machine_is_corrected_for() -> None:
    class Slower(Clock):
        def _milliseconds(self, blob: bytes) -> float:
            return 2 * super()._milliseconds(blob)

    quick = LatencyTable(device=device_id(), worker=Clock())
    quick.ensure([TINY])
    later = LatencyTable(device=device_id(), worker=Slower(), nominal=quick.nominal)
    later.ensure([TINY])
    assert later.rows == pytest.approx(quick.rows)
    assert later.measure([TINY]) == pytest.approx(quick.measure([TINY]))


def test_a_frozen_table_measures_nothing() -> None:
    clock = Clock()
    made = table(worker=clock)
    made.predict(TINY)
    with pytest.raises(InputError, match="lacks") as caught:
        made.predict(TINY.classes(5))
    assert '"num_classes": 5' in str(caught.value)
    assert not clock.timed and len(made.rows) == 5


# ---- fitting and checking

SIDES = (32, 48, 64)


def with_clock(fields: dict[str, float], milliseconds: Sequence[float] | None = None):  # type: ignore[no-untyped-def]
    """Specs at three sizes, their table, and a clock that knows what each network takes."""
    specs = [TINY.resolution(side) for side in SIDES]
    clock = Clock()
    made = table(specs, worker=clock, **fields)
    plain = table(specs)
    clock.networks = dict(zip(SIDES, milliseconds or map(plain.predict, specs)))
    return specs, made, clock


def test_a_fit_finds_offset_and_scale() -> None:
    specs, made, clock = with_clock({"offset": 9.0, "scale": 9.0})
    clock.networks = {side: 0.75 + 1.25 * ms for side, ms in clock.networks.items()}
    made.fit(specs)
    assert (made.offset, made.scale) == pytest.approx((0.75, 1.25))
    assert [made.predict(s) for s in specs] == pytest.approx(list(clock.networks.values()))


def test_a_fit_has_the_least_relative_error() -> None:
    specs, made, clock = with_clock({}, milliseconds=(10.0, 20.0, 60.0))  # on no line
    made.fit(specs)
    sums = [made.row_times(s).values() for s in specs]

    def error(offset: float, scale: float) -> float:
        predicted = [offset + scale * sum(rows) for rows in sums]
        return sum((p / m - 1) ** 2 for p, m in zip(predicted, clock.networks.values()))

    least = error(made.offset, made.scale)
    assert least > 1e-4
    for by, of in ((0.1, 0.0), (-0.1, 0.0), (0.0, 0.01), (0.0, -0.01), (0.1, -0.01), (-0.1, 0.01)):
        assert error(made.offset + by, made.scale + of) > least


def test_a_fit_to_one_network_only_shifts() -> None:
    specs, made, clock = with_clock({})
    clock.networks = {side: ms + 3.0 for side, ms in clock.networks.items()}
    made.fit(specs[:1])
    assert (made.offset, made.scale) == pytest.approx((3.0, 1.0))


def test_a_check_pairs_prediction_and_measurement() -> None:
    specs, made, _ = with_clock({}, milliseconds=(10.0, 20.0, 40.0))
    found = made.check(specs)
    # rows 1 to 5, 6 to 10, 11 to 15, the second of each twice
    assert found.pairs == ((17.0, 10.0), (47.0, 20.0), (77.0, 40.0))
    assert found.median_error == pytest.approx(37 / 40)  # of 7/10, 27/20, 37/40
    assert found.kendall_tau == 1.0


def check(*pairs: tuple[float, float]) -> TableCheck:
    return TableCheck(pairs=pairs)


def test_agreement_by_hand() -> None:
    # Predicted 1 2 3 4, measured 1 3 2 4: five of the six pairs are in order, one is not.
    made = check((1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0))
    assert made.kendall_tau == pytest.approx((5 - 1) / 6)
    assert made.median_error == pytest.approx((0 + 1 / 3) / 2)  # of 0, 1/3, 1/2, 0
    assert check((3.0, 1.0), (2.0, 2.0), (1.0, 3.0)).kendall_tau == -1.0
    # A tie in what was predicted counts for neither side: two of three pairs.
    assert check((1.0, 1.0), (1.0, 2.0), (2.0, 3.0)).kendall_tau == pytest.approx(2 / 3)
    assert check((1.1, 1.0), (1.8, 2.0), (3.0, 4.0)).median_error == pytest.approx(0.1)


# ---- files


def test_a_table_is_saved_exactly(tmp_path: Path) -> None:
    made = table(offset=0.1 + 0.2, scale=1 / 3, nominal={"reference": 0.1, "empty": 0.01})
    path = tmp_path / "table.json"
    made.save(path)
    again = LatencyTable.load(path)
    assert (again.device, again.rows, again.nominal) == (made.device, made.rows, made.nominal)
    assert (again.offset, again.scale) == (made.offset, made.scale)
    assert again.predict(TINY) == made.predict(TINY)
    assert json.loads(path.read_text())["machine"]["cores"]


def test_a_table_of_another_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "device": "a telephone"}))
    with pytest.raises(InputError) as caught:
        LatencyTable.load(path)
    assert "'a telephone'" in str(caught.value) and f"'{device_id()}'" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"format": 2, "rows": []}', '{"format": 2}', '{"format": 1}'],
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"table\.json"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"rows": {"stem": "fast"}}, {"rows": {"stem": None}}, {"scale": "x"}]
)
def test_a_table_with_a_wrong_value_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "table.json"
    table().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"table\.json"):
        LatencyTable.load(path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table\.json"):
        LatencyTable.load(tmp_path / "table.json")


# ---- on a phone


class ClockPhone(Phone):
    """A phone without adb, whose clock is :class:`Clock`'s."""

    def __init__(self, device_id: str = "a telephone") -> None:
        self.device_id, self.core, self.clock = device_id, 7, Clock()
        self.cores: set[int | None] = set()

    def time_many(self, blobs, **options):  # type: ignore[no-untyped-def]
        self.cores.add(options["core"])
        return self.clock.time_many(blobs, **options)


def test_a_table_of_a_phone_is_measured_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(Worker, "time_many")  # nothing may be timed here
    phone = ClockPhone()
    made = LatencyTable.build(TINY, worker=phone)
    assert made.device == "a telephone" and phone.cores == {7}
    path = tmp_path / "table.json"
    made.save(path)
    again = LatencyTable.load(path, worker=phone)
    assert again.predict(TINY) == made.predict(TINY)
    assert again.predict(TINY.classes(5)) == pytest.approx(made.predict(TINY), rel=0.2)
    assert len(again.rows) == len(made.rows) + 1
    for other in (None, Worker(), ClockPhone("another telephone")):
        with pytest.raises(InputError, match="measured on 'a telephone', this is '"):
            LatencyTable.load(path, worker=other)


def test_a_table_of_this_machine_is_not_a_phones(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table().save(path)
    with pytest.raises(InputError, match="this is 'a telephone'"):
        LatencyTable.load(path, worker=ClockPhone())


# ---- for real


def test_a_real_table_is_built() -> None:
    small = replace(TINY, blocks=(Block(expand=16, out=8, se="v3", act="hard_swish"),), last=None)
    with Worker() as worker:
        made = LatencyTable.build(small, worker=worker)
        made.frozen = True
        assert made.device == device_id()
        times = made.row_times(small)
        assert list(times) == ["stem", "blocks.0", "head"] and all(ms >= 0 for ms in times.values())
        found = made.check([small, small.width(0.5)])
    assert len(found.pairs) == 2 and all(measured > 0 for _, measured in found.pairs)


@pytest.mark.parametrize("made", HEADED)
def test_a_real_table_knows_heads(made: NetSpec, worker: Worker) -> None:
    table = LatencyTable(device=device_id(), worker=worker)
    table.fit([made])
    assert all(ms >= 0 for ms in table.row_times(made).values())
    assert table.row_times(made)["head"] > 0
    assert table.predict(made) > table.row_times(made)["head"]


def test_every_row_of_the_published_networks_has_a_key_of_its_own() -> None:
    large = spec("mobilenet_v3_large")
    found = list(units(large))
    assert len(found) == 18  # stem, 15 blocks, last, head
    assert len({unit.key for unit in found}) == 15  # 4 = 5, 8 = 9 and 13 = 14
