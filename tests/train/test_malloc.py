"""A training's freed memory is not given back at every step, and is at the end."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

SCRIPT = """
import resource
import psutil, torch
from mobilefit.train.malloc import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(100 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def mebibytes():
    return psutil.Process().memory_info().rss >> 20

faults(); start = mebibytes()
with freed_memory_kept():
    faults()
    print(faults(), mebibytes() - start)
print(faults(), mebibytes() - start)
with freed_memory_kept(False):
    print(faults(), mebibytes() - start)
"""


def test_pages_are_asked_for_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=True
    )
    (kept, held), (after, left), (unwanted, _) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    pages = 10 * (100 << 20) // resource.getpagesize()
    assert kept < 0.01 * pages and held >= 99
    assert left < 20  # given back
    assert min(after, unwanted) > 50 * max(kept, 1)
