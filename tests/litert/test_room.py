"""What importing the room does."""

import os
import subprocess
import sys

import pytest


def test_importing_the_room_loads_no_torch():
    code = "import sys, mobilefit.litert; print({'torch', 'ai_edge_litert'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"


def test_functions_are_not_hidden_by_their_modules():
    import mobilefit.litert as room
    import mobilefit.litert.compiler  # noqa: F401

    assert all(callable(getattr(room, name)) for name in room.__all__)
    with pytest.raises(AttributeError):
        _ = room.nothing
