"""What counts as the same, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mobilefit.errors import InputError
from mobilefit.formats.parity import TOLERANCES, parity

MODULE = np.array([[4.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, -3.0], [1.0, 0.0, 0.5]])


def test_the_same_logits_are_the_same():
    for kind in TOLERANCES:
        found = parity(kind, MODULE, MODULE)
        assert (found.images, found.agreement, found.largest, found.within) == (4, 1.0, 0.0, 1.0)
        assert found.ok and found.scale == 4.0


def test_a_difference_is_measured_against_the_largest_logit():
    file = MODULE.copy()
    file[2, 2] += 0.03  # float16 may differ by 0.01 of 4
    found = parity("float16", MODULE, file)
    assert found.largest == pytest.approx(0.03) and found.within == 1.0 and found.ok
    file[2, 2] += 0.03
    found = parity("float16", MODULE, file)
    assert found.within == pytest.approx(11 / 12) and found.agreement == 1.0 and not found.ok
    assert parity("int8", MODULE, file).ok


def test_another_top_1_is_told_though_the_logits_are_near():
    many = np.tile(MODULE, (25, 1))
    file = many.copy()
    for row in range(25):  # a quarter of the images: 2 against 1 becomes 1.4 against 1.5
        file[4 * row + 1] = [0.0, 1.4, 1.5]
    found = parity("int8", many, file)
    assert found.within == 1.0 and found.agreement == 0.75 and not found.ok
    file[: 4 * 10] = many[: 4 * 10]
    assert parity("int8", many, file).ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite(value):
    file = MODULE.copy()
    file[0, 1] = value
    found = parity("float32", MODULE, file)
    assert not found.ok and found.largest == np.inf
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["largest"] is None


def test_it_goes_into_json_with_what_was_allowed():
    said = parity("dynamic", MODULE, MODULE).to_dict()
    assert said["ok"] is True and said["kind"] == "dynamic"
    assert said["tolerance"] == {"logits": 0.15, "share": 0.98, "agreement": 0.9}


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'float16'"):
        parity("float61", MODULE, MODULE)


@pytest.mark.parametrize("file", [MODULE[:3], MODULE[0], MODULE[:, :2]])
def test_logits_of_another_shape_are_a_defect(file):
    with pytest.raises(ValueError, match="logits of shape"):
        parity("int8", MODULE, file)
