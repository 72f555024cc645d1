"""The printed table against the paper's Tables 1 and 2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mobilefit.arch import Block, spec, table

# input, operator, exp, out, SE, NL, s as the paper prints them
TABLE_1 = """
224² x 3     conv2d 3x3       -    16  -  HS  2
112² x 16    bneck 3x3        -    16  -  RE  1
112² x 16    bneck 3x3       64    24  -  RE  2
56² x 24     bneck 3x3       72    24  -  RE  1
56² x 24     bneck 5x5       72    40  x  RE  2
28² x 40     bneck 5x5      120    40  x  RE  1
28² x 40     bneck 5x5      120    40  x  RE  1
28² x 40     bneck 3x3      240    80  -  HS  2
14² x 80     bneck 3x3      200    80  -  HS  1
14² x 80     bneck 3x3      184    80  -  HS  1
14² x 80     bneck 3x3      184    80  -  HS  1
14² x 80     bneck 3x3      480   112  x  HS  1
14² x 112    bneck 3x3      672   112  x  HS  1
14² x 112    bneck 5x5      672   160  x  HS  2
7² x 160     bneck 5x5      960   160  x  HS  1
7² x 160     bneck 5x5      960   160  x  HS  1
7² x 160     conv2d 1x1       -   960  -  HS  1
7² x 960     pool, 7x7        -     -  -   -  -
1² x 960     conv2d 1x1, NBN  -  1280  -  HS  1
1² x 1280    conv2d 1x1, NBN  -  1000  -   -  1
"""
TABLE_2 = """
224² x 3     conv2d 3x3       -    16  -  HS  2
112² x 16    bneck 3x3        -    16  x  RE  2
56² x 16     bneck 3x3       72    24  -  RE  2
28² x 24     bneck 3x3       88    24  -  RE  1
28² x 24     bneck 5x5       96    40  x  HS  2
14² x 40     bneck 5x5      240    40  x  HS  1
14² x 40     bneck 5x5      240    40  x  HS  1
14² x 40     bneck 5x5      120    48  x  HS  1
14² x 48     bneck 5x5      144    48  x  HS  1
14² x 48     bneck 5x5      288    96  x  HS  2
7² x 96      bneck 5x5      576    96  x  HS  1
7² x 96      bneck 5x5      576    96  x  HS  1
7² x 96      conv2d 1x1       -   576  x  HS  1
7² x 576     pool, 7x7        -     -  -   -  -
1² x 576     conv2d 1x1, NBN  -  1024  -  HS  1
1² x 1024    conv2d 1x1, NBN  -  1000  -   -  1
"""


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


@pytest.mark.parametrize(
    ("name", "head", "printed"),
    [("mobilenet_v3_large", None, TABLE_1), ("mobilenet_v3_small", "table2", TABLE_2)],
)
def test_rows_are_the_papers(name: str, head: str | None, printed: str) -> None:
    rows = words(table(spec(name, head=head)))[1:-1]
    assert [row[0] for row in rows] == [str(i) for i in range(len(rows))]
    pool = next(i for i, row in enumerate(rows) if "pool," in row)
    costs = [row[-2:] for i, row in enumerate(rows) if i != pool]
    assert [row[1:-2] for row in rows] == words(printed)
    assert rows[pool][-2:] == ["-", "-"]
    total = [sum(int(n.replace(",", "")) for n in column) for column in zip(*costs)]
    cost = spec(name, head=head).cost()
    assert total == [cost.params, cost.madds]


def test_the_last_line_sums_up() -> None:
    assert table(spec("mobilenet_v3_small")).splitlines()[-1] == (
        "mobilenet_v3_small (175a9a4a97b9): 2,542,856 parameters, 56,510,400 multiply-adds, "
        "peak activations 351,232 elements, padding 'same'"
    )


def test_columns_line_up() -> None:
    for name in ("mobilenet_v3_edgetpu", "mobilenet_v1"):
        lines = table(spec(name).resolution(97)).splitlines()
        assert all(line == line.rstrip() for line in lines)
        assert len({line.find(" x ") > 0 for line in lines[1:-1]}) == 1
        assert len({len(line) for line in lines[:-1]}) == 1


def test_other_operators_are_named() -> None:
    edgetpu, v1 = table(spec("mobilenet_v3_edgetpu")), table(spec("mobilenet_v1"))
    assert "fused bneck 3x3" in edgetpu and "conv2d 1x1" in edgetpu
    assert v1.count("separable 3x3") == 13 and "R6" in v1


def test_universal_bottlenecks_show_their_depthwise_convolutions() -> None:
    lines = table(spec("mobilenetv4_conv_medium")).splitlines()
    assert lines[3].split()[4:10] == ["dw", "3x3", "+", "bneck", "5x5", "192"]
    assert lines[10].split()[4:9] == ["dw", "3x3", "+", "ffn", "640"]
    assert lines[11].split()[4:6] == ["ffn", "320"]


def test_a_convolution_shows_its_squeeze() -> None:
    made = replace(spec("mobilenet_v1"), blocks=(Block(op="conv", kernel=5, out=32, se="mnasnet"),))
    row = table(made).splitlines()[2].split()
    assert row[1:-2] == ["112²", "x", "32", "conv2d", "5x5", "-", "32", "x", "RE", "1"]
