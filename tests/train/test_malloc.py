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
import resource, sys
import psutil, torch
from mobilefit.train.malloc import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(100 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def mebibytes():
    return psutil.Process().memory_info().rss >> 20

start = mebibytes()
with freed_memory_kept(sys.argv[1] == "kept"):
    faults()
    print(faults(), mebibytes() - start)
print(mebibytes() - start)
"""
PAGES = 10 * (100 << 20) // resource.getpagesize()


def found(how: str) -> list[int]:
    """Pages asked for within the block; MiB held within it and after it."""
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), how]
    return [int(word) for word in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()]


def test_pages_are_asked_for_once_and_given_back() -> None:
    faults, held, left = found("kept")
    assert faults < 0.01 * PAGES and held >= 95 and left < 20


def test_else_they_are_asked_for_every_time() -> None:
    faults, held, _ = found("usual")
    assert faults > 0.9 * PAGES and held < 20
