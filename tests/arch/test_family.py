"""The networks by name, and that the room needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mobilefit.arch import FAMILY, spec
from mobilefit.errors import InputError


def test_every_key_is_the_name_of_its_network() -> None:
    assert [made.name for made in FAMILY.values()] == list(FAMILY)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mobilenetv3_large", "mobilenet_v3_large"),
        ("MobileNet_V3_Small", "mobilenet_v3_small"),
        ("mobilenet_v3_small_minimalist", "mobilenet_v3_small_minimalistic"),
        ("mnasnet", "mnasnet_[ab]1"),
        ("mobilnet_v2", "mobilenet_v2"),
    ],
)
def test_an_unknown_network_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"unknown network '{name}'; did you mean '{nearest}'"):
        spec(name)


def test_a_name_that_is_near_to_none_lists_all() -> None:
    with pytest.raises(InputError) as caught:
        spec("zzz")
    assert all(name in str(caught.value) for name in FAMILY)


def test_the_heads_of_small() -> None:
    assert spec("mobilenet_v3_small", head="v5") == spec("mobilenet_v3_small")
    iccv, table2 = (spec("mobilenet_v3_small", head=head) for head in ("iccv", "table2"))
    assert (iccv.head.hidden, iccv.last.se, iccv.name) == (1280, None, "mobilenet_v3_small_iccv")
    assert (table2.head.hidden, table2.last.se) == (1024, "v3")


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(InputError, match="unknown head 'icvc'; did you mean 'iccv'"):
        spec("mobilenet_v3_small", head="icvc")
    with pytest.raises(InputError, match="'mobilenet_v2' has one head only; leave 'head' out"):
        spec("mobilenet_v2", head="v5")


def test_no_torch_and_no_numpy_for_specs_and_costs() -> None:
    code = (
        "import sys, mobilefit as mf\n"
        "from mobilefit.arch import table\n"
        "net = mf.spec('mobilenet_v3_large').width(0.75).resolution(192)\n"
        "table(net), mf.NetSpec.from_json(net.to_json()).id\n"
        "print([name for name in ('torch', 'torchvision', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
