"""A value is named for what it is, not for what happened to it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mobilefit

SOURCE = Path(mobilefit.__file__).parent
ROOMS = ("commands", "pipeline", "data/layout.py", "data/names.py", "data/yolo.py", "cores.py", "train/threads.py",
         "train/distillation.py", "parsing.py", "nn/torch_checkpoint.py", "nn/program_weights.py",
         "litert/shapes.py")  # fmt: skip
"""Where the rule holds already."""
VAGUE = frozenset(
    ["found", "one", "made", "told", "said", "known", "kept", "chosen", "given", "wanted", "seen", "mine", "theirs", "place"]
)


def stored_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that is assigned, passed or a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def test_the_rule_sees_assignments_parameters_and_fields() -> None:
    tree = ast.parse("found = 1\ndef f(kept): ...\nclass C:\n    seen: int\nfor place in x: print(given)\n")
    assert [name for _, name in stored_names(tree) if name in VAGUE] == ["found", "place", "kept", "seen"]


@pytest.mark.parametrize("room", ROOMS)
def test_values_are_named_for_what_they_are(room: str) -> None:
    path = SOURCE / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    vague = [
        f"{file.relative_to(SOURCE)}:{line} {name}"
        for file in files for line, name in stored_names(ast.parse(file.read_text())) if name in VAGUE
    ]  # fmt: skip
    assert not vague
