"""Networks drawn side by side: a bar for each row, as wide as its channels, coloured by operator.

The drawing's colours are the page's CSS variables; its classes are in ``page.css``.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mobilefit.arch import Block, ClassifierHead, Conv, NetSpec

COLOURS = {
    "conv": "width", "depthwise": "seed", "separable": "seed", "mbconv": "adapted",
    "fused": "reference", "linear": "steps",
}  # fmt: skip
PANEL, GAP = 508, 24
"""Width of one network, and between two."""
HEAD, ROW, STAGE = 46, 22, 9
"""Heights: of the title, of a row, and between stages of different resolution."""
BARS, LONGEST = 38, 128
"""Where the bars begin, and the length of the longest."""
WORDS, CHANNELS, MARKS = 176, 284, 362
"""Where the columns of text begin."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of the network.

    Attributes:
        stage: height of its output in pixels.
        size: its height and width as text.
        kind: a key of :data:`COLOURS`.
        words: operator and kernel.
        wide: channels of its wide part, ``None`` where it has none.
        out: channels of its output.
        marks: whether it has squeeze-and-excite; its activation; what is added to its output.
    """

    stage: int
    size: str
    kind: str
    words: str
    wide: int | None
    out: int
    marks: tuple[str, str, str]


def bars(spec: NetSpec) -> list[Bar]:
    """The rows of a network, from the stem to the layer before the logits."""
    rows: list[Conv | Block] = [spec.stem, *spec.blocks, *([spec.last] if spec.last else [])]
    (size, columns), found = spec.image_shape, list[Bar]()
    for row in rows:
        inputs = found[-1].out if found else spec.in_channels
        size, columns = -(-size // row.stride), -(-columns // row.stride)
        kind, words, wide = _operator(row, inputs)
        added = ""
        if isinstance(row, Block) and row.has_residual(inputs):
            added = "pool skip" if row.skip == "pool" else "skip"
        found.append(Bar(
            stage=size, size=f"{size}²" if size == columns else f"{size}×{columns}", kind=kind, words=words, wide=wide, out=row.out,
            marks=("SE" if row.se else "", _act(row.act), added),
        ))  # fmt: skip
    if isinstance(spec.head, ClassifierHead) and spec.head.hidden is not None:
        found.append(Bar(stage=1, size="1²", kind="linear", words="linear", wide=None, out=spec.head.hidden,
                         marks=("", _act(spec.head.act), "")))  # fmt: skip
    return found


def _operator(row: Conv | Block, inputs: int) -> tuple[str, str, int | None]:
    """Kind, words, and channels of the wide part."""
    side = f"{row.kernel}×{row.kernel}"
    if isinstance(row, Conv) or row.op == "conv":
        return "conv", f"conv {side}", None
    if row.op == "separable":
        return "separable", f"separable {side}", None
    if row.expand is None:
        return "depthwise", f"depthwise {side}", None
    ratio, start = f"{row.expand / inputs:.3g}", row.start_kernel
    if row.op == "fused":
        return "fused", f"fused{ratio} {side}", row.expand
    if not row.kernel:
        return "mbconv", f"convnext{ratio} {start}×{start}" if start else f"ffn{ratio}", row.expand
    return "mbconv", f"extradw{ratio} {start}+{row.kernel}" if start else f"mbconv{ratio} {side}", row.expand


def _act(name: str) -> str:
    return "" if name == "none" else {"hard_swish": "h-swish"}.get(name, name)


def figure(networks: Sequence[tuple[str, NetSpec]]) -> str:
    """The networks beside each other as an SVG element of the page, stages at one height.

    Args:
        networks: titles and networks; their order is that of the panels, left to right.
    """
    drawn = [bars(spec) for _, spec in networks]
    stages = sorted({bar.stage for rows in drawn for bar in rows}, reverse=True)
    tops, height = {}, HEAD
    for stage in stages:
        tops[stage] = height
        height += ROW * max(sum(bar.stage == stage for bar in rows) for rows in drawn) + STAGE
    longest = max(max(bar.out, bar.wide or 0) for rows in drawn for bar in rows)
    width = len(networks) * (PANEL + GAP) - GAP
    root = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}", "class": "networks",
        "role": "img", "aria-label": "rows of " + " and ".join(title for title, _ in networks),
    })  # fmt: skip
    for place, ((title, spec), rows) in enumerate(zip(networks, drawn)):
        panel = ET.SubElement(root, "g", {"transform": f"translate({place * (PANEL + GAP)} 0)"})
        cost = spec.cost()
        _text(panel, 0, 15, title, "title")
        _text(panel, 0, 32, f"{cost.params / 1e6:.2f} M parameters, {cost.madds / 1e6:.1f} M "
              "multiply-adds", "muted")  # fmt: skip
        for stage in stages:
            alike = [bar for bar in rows if bar.stage == stage]
            for number, bar in enumerate(alike):
                _draw(panel, bar, tops[stage] + ROW * number, longest, first=number == 0)
    return ET.tostring(root, encoding="unicode")


def _draw(panel: ET.Element, bar: Bar, top: int, longest: int, *, first: bool) -> None:
    line = top + 15
    if first:
        _text(panel, BARS - 8, line, bar.size, "muted end")
    fill = f"fill: var(--{COLOURS[bar.kind]})"
    for channels, opacity in _lengths(bar):
        ET.SubElement(panel, "rect", {
            "x": str(BARS), "y": str(top + 3), "width": f"{_length(channels, longest):.1f}",
            "height": str(ROW - 6), "rx": "3", "style": f"{fill}; fill-opacity: {opacity}",
        })  # fmt: skip
    _text(panel, WORDS, line, bar.words)
    wide = "" if bar.wide is None else f"{bar.wide} → "
    _text(panel, CHANNELS, line, f"{wide}{bar.out}")
    styles = ("strong", "strong" if bar.marks[1] == "h-swish" else "muted", "muted")
    for offset, mark, style in zip((0, 28, 88), bar.marks, styles):
        if mark:
            _text(panel, MARKS + offset, line, mark, style)


def _lengths(bar: Bar) -> Iterator[tuple[int, float]]:
    """The wide part pale, the output on it."""
    if bar.wide is not None:
        yield bar.wide, 0.3
    yield bar.out, 1.0


def _length(channels: int, longest: int) -> float:
    """Lengths grow with the square root: from 8 channels to 1280 all can be seen."""
    return LONGEST * math.sqrt(channels / longest)


def _text(panel: ET.Element, x: int, y: int, text: str, style: str = "") -> None:
    place = {"x": str(x), "y": str(y)} | ({"class": style} if style else {})
    ET.SubElement(panel, "text", place).text = text
