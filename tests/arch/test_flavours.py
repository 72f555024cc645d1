"""Detectors and segmenters against the V3 paper's Tables 6, 7 and 8 and torchvision's counts."""

from __future__ import annotations

import pytest

from mobilefit.arch import (
    DETECTORS,
    FAMILY,
    SEGMENTERS,
    ClassifierHead,
    NetSpec,
    SSDLiteHead,
    detector,
    dilated,
    halved,
    segmenter,
    spec,
)
from mobilefit.errors import InputError

LARGE, SMALL, V2 = (FAMILY[n] for n in ("mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2"))

TABLE_6 = {
    # name: (millions of parameters and billions of multiply-adds in the paper, and ours)
    "ssdlite_mobilenet_v3_large": (4.97, 0.62, 5.007, 0.613),
    "ssdlite_mobilenet_v3_large_reduced": (3.22, 0.51, 3.248, 0.507),
    "ssdlite_mobilenet_v3_small": (2.49, 0.21, 2.518, 0.210),
    "ssdlite_mobilenet_v3_small_reduced": (1.77, 0.16, 1.786, 0.162),
    "ssdlite_mnasnet_a1": (4.88, 0.84, 4.912, 0.838),
    "ssdlite_mobilenet_v2@0.35": (0.93, 0.16, 0.948, 0.167),
    "ssdlite_mobilenet_v2@0.5": (1.54, 0.27, 1.562, 0.272),
    "ssdlite_mnasnet_a1@0.35": (1.02, 0.18, 1.032, 0.177),
    "ssdlite_mnasnet_a1@0.5": (1.68, 0.29, 1.690, 0.290),
}
"""The published parameters are 0.5 to 2 % under ours: the paper does not say what it counts, and no
layer left out makes all nine rows fit. torchvision's network, counted by it, is met exactly."""


def millions(network: NetSpec) -> tuple[float, float]:
    cost = network.cost()
    return cost.params / 1e6, cost.madds / 1e9


@pytest.mark.parametrize("row", TABLE_6)
def test_table_6_is_met_to_two_per_cent_in_parameters_and_to_its_rounding_in_multiply_adds(row: str) -> None:
    name, _, width = row.partition("@")
    network = spec(name).width(float(width)) if width else spec(name)
    params, madds, ours, our_madds = TABLE_6[row]
    found = millions(network)
    assert found[0] == pytest.approx(params, rel=0.02)
    assert found[1] == pytest.approx(madds, abs=0.008)
    assert found == (pytest.approx(ours, abs=5e-4), pytest.approx(our_madds, abs=5e-4))


@pytest.mark.parametrize(("name", "params", "madds"), [("mobilenet_v1", 5.1, 1.3), ("mobilenet_v2", 4.3, 0.8)])
def test_table_6_has_v1_and_v2_from_the_v2_paper_which_counted_80_classes(
    name: str, params: float, madds: float
) -> None:
    found = millions(spec(f"ssdlite_{name}").classes(80))
    assert found[0] == pytest.approx(params, abs=0.05)
    assert found[1] == pytest.approx(madds, abs=0.05)


TABLE_7 = [
    # backbone, width, kind, F, halved, stride, parameters and multiply-adds in the paper
    (V2, 1.0, "raspp", 256, False, 16, 2.11, 21.29),
    (LARGE, 1.0, "raspp", 256, False, 16, 3.60, 18.43),
    (LARGE, 1.0, "raspp", 256, True, 16, 1.76, 11.24),
    (LARGE, 1.0, "lraspp", 256, True, 16, 1.63, 10.33),
    (LARGE, 1.0, "lraspp", 128, True, 16, 1.51, 9.74),
    (V2, 0.5, "lraspp", 128, True, 16, 0.28, 4.00),
    (V2, 0.35, "lraspp", 128, True, 16, 0.16, 2.54),
    (SMALL, 1.0, "lraspp", 128, True, 16, 0.47, 2.90),
    # Table 8
    (LARGE, 1.0, "lraspp", 128, True, 32, 1.51, 7.74),
    (SMALL, 1.0, "lraspp", 128, True, 32, 0.47, 2.06),
]


@pytest.mark.parametrize(("backbone", "width", "kind", "filters", "reduced", "stride", "params", "madds"), TABLE_7)
def test_tables_7_and_8_are_met_exactly_in_parameters_and_counted_lower_in_multiply_adds(
    backbone: NetSpec, width: float, kind: str, filters: int, reduced: bool, stride: int,
    params: float, madds: float,
) -> None:  # fmt: skip
    base = backbone if width == 1.0 else backbone.width(width)
    network = segmenter(base, kind=kind, filters=filters, reduced=reduced, output_stride=stride)  # type: ignore[arg-type]
    found = millions(network)
    assert round(found[0], 2) == params
    # The paper counts more than the convolutions: by 2 to 7 %, in every row.
    assert 0.93 * madds < found[1] < 0.985 * madds


@pytest.mark.parametrize(
    ("kind", "filters", "params"), [("raspp", 256, 1.15), ("lraspp", 256, 1.02), ("lraspp", 128, 0.98)]
)
def test_table_7_has_a_hundredth_of_a_million_less_for_v2_halved(kind: str, filters: int, params: float) -> None:
    """V2's halved rows are in no released code; with the ratios kept all three are 0.7 to 1.1 % over."""
    found, _ = millions(segmenter(V2, kind=kind, filters=filters))  # type: ignore[arg-type]
    assert 1.006 * params < found < 1.012 * params


def test_torchvision_counts_the_same() -> None:
    ssdlite = detector(LARGE, anchors="torchvision", reduced=True)
    lraspp = segmenter(LARGE, num_classes=21, reduced=False, like="torchvision").resolution(520)
    assert ssdlite.cost().params == 3_440_060
    assert lraspp.cost().params == 3_221_538
    assert millions(ssdlite)[1] == pytest.approx(0.583, abs=5e-4)
    assert millions(lraspp)[1] == pytest.approx(2.086, abs=5e-4)


def test_detection_keeps_the_tapped_expansion_and_segmentation_halves_it() -> None:
    detect, segment = halved(LARGE, "detect"), halved(LARGE, "segment")
    assert [(b.expand, b.out) for b in detect.blocks[12:]] == [(672, 80), (480, 80), (480, 80)]
    assert [(b.expand, b.out) for b in segment.blocks[12:]] == [(336, 80), (480, 80), (480, 80)]
    assert detect.last is not None and detect.last.out == 480
    assert [b.expand for b in halved(SMALL, "segment").blocks[8:]] == [144, 288, 288]


def test_heads_begin_where_the_paper_says() -> None:
    head = spec("ssdlite_mobilenet_v3_large").head
    assert isinstance(head, SSDLiteHead) and head.taps == ("blocks.12.expand", "last")
    cost = spec("ssdlite_mobilenet_v3_large").cost()
    assert [cost.of(f"head.classes.{i}").layers[0].size for i in range(6)] == [20, 10, 5, 3, 2, 1]
    assert cost.of("head.classes.0").layers[0].inputs == 672
    assert [spec(f"lraspp_{n.name}").head.skip for n in (LARGE, SMALL, V2)] == [  # type: ignore[union-attr]
        "blocks.5.depthwise", "blocks.2.depthwise", "blocks.5.depthwise"
    ]  # fmt: skip


def test_dilation_takes_the_place_of_strides_and_its_two_rules_differ_in_one_block() -> None:
    slim, torchvision = dilated(LARGE, 16), dilated(LARGE, 16, "torchvision")
    assert [b.dilation for b in slim.blocks[11:]] == [1, 1, 2, 2]
    assert [b.dilation for b in torchvision.blocks[11:]] == [1, 2, 2, 2]
    assert [b.stride for b in slim.blocks[11:]] == [1, 1, 1, 1]
    assert [b.dilation for b in dilated(LARGE, 8).blocks[6:14]] == [1, 2, 2, 2, 2, 2, 2, 4]
    assert dilated(LARGE, 32) == LARGE


def test_a_block_that_lost_its_stride_gets_no_residual() -> None:
    base = LARGE.width(1.0)
    assert all(
        not block.has_residual(width)
        for before, block, width in zip(base.blocks, dilated(base, 8).blocks, base.widths)
        if before.stride == 2
    )


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS])
def test_every_network_goes_to_json_and_back_and_has_its_own_name(name: str) -> None:
    network = spec(name)
    assert NetSpec.from_json(network.to_json()) == network
    assert network.name == name


def test_a_map_may_be_wider_than_high() -> None:
    wide = spec("lraspp_mobilenet_v3_small").resolution(96, 160).cost()
    tall = spec("lraspp_mobilenet_v3_small").resolution(160, 96).cost()
    pooled = wide.of("head.gate").layers[0]
    assert (pooled.size, pooled.columns) == (1, 1)
    assert wide.madds == tall.madds
    assert spec("mobilenet_v2").resolution(96, 96) == spec("mobilenet_v2").resolution(96)


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="ends at a stride of 16"):
        detector(dilated(LARGE, 16))
    with pytest.raises(InputError, match="output stride 4"):
        dilated(LARGE, 4)
    with pytest.raises(InputError, match=r"has no layer 'blocks\.40'"):
        NetSpec(name="x", stem=LARGE.stem, blocks=LARGE.blocks, head=SSDLiteHead(taps=("blocks.40",)))
    with pytest.raises(InputError, match="no classifier"):
        _ = spec("ssdlite_mobilenet_v2").classifier
    with pytest.raises(InputError, match="unknown task 'pose'"):
        NetSpec.from_dict({**LARGE.to_dict(), "head": {"task": "pose"}})
    assert isinstance(LARGE.head, ClassifierHead)
