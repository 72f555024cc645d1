"""What importing a room does: rooms whose names load on first use bring nothing heavy."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

ROOMS = {"litert": "compiler", "int8": "quantizer"}
rooms = pytest.mark.parametrize("room", ROOMS)


@rooms
def test_importing_the_room_loads_no_torch(room: str) -> None:
    code = f"import sys, mobilefit.{room}; print({{'torch', 'ai_edge_litert'}} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"


@rooms
def test_functions_are_not_hidden_by_their_modules(room: str) -> None:
    package = importlib.import_module(f"mobilefit.{room}")
    importlib.import_module(f"mobilefit.{room}.{ROOMS[room]}")
    values = [getattr(package, name) for name in package.__all__]
    assert all(callable(value) for value in values)
    with pytest.raises(AttributeError):
        _ = package.nothing
