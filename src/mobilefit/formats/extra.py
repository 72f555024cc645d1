"""Packages that only one format needs: imported where used, named by their extra where missing."""

from __future__ import annotations

import importlib
from typing import Any

from mobilefit.errors import InputError


def needed(module: str, extra: str) -> Any:
    """The module of that name.

    Raises:
        InputError: it is not installed; the hint names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"this needs the package {module.partition('.')[0]} ({error})",
            f"pip install 'mobilefit[{extra}]'",
        ) from error
