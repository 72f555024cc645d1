from __future__ import annotations

import math

import pytest

from mobilefit.report import units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.9349, "1.93 ms"), (0.41249, "0.412 ms"), (0.0123456, "0.0123 ms"), (12.34, "12.3 ms"),
        (123.4, "123 ms"), (1234.5, "1234 ms"), (0, "0 ms"), (2, "2.00 ms"), (-0.5, "-0.500 ms"),
        (9.999, "10.0 ms"), (0.9999, "1.00 ms"), (99.96, "100 ms"),
    ],
)  # fmt: skip
def test_milliseconds(value: float, shown: str) -> None:
    assert units.ms(value) == shown


def test_other_units() -> None:
    assert units.percent(0.92314) == "92.31 %" and units.percent(0) == "0.00 %"
    assert units.share(0.0814) == "8.1 %" and units.digits(6.2518) == "6.25"
    assert units.count(1234567) == "1,234,567"
    assert units.millions(1_524_006) == "1.52 M"
    assert units.size(812_345) == "812 kB" and units.size(3_210_000) == "3.21 MB"
    assert units.size(999_999) == "1.00 MB"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7.21, "7.2 s"), (59.4, "59.4 s"), (59.7, "1 min 0 s"), (750, "12 min 30 s"),
        (3599.6, "1 h 0 min"), (3900, "1 h 5 min"),
    ],
)  # fmt: skip
def test_durations(value: float, shown: str) -> None:
    assert units.seconds(value) == shown


@pytest.mark.parametrize(
    "show", [units.ms, units.percent, units.share, units.digits, units.count, units.millions, units.size,
             units.seconds]
)  # fmt: skip
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "7", True, [], {}])
def test_what_is_no_number_is_a_dash(show: object, value: object) -> None:
    assert show(value) == units.NONE  # type: ignore[operator]
