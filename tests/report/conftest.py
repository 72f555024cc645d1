"""A run's report, written once."""

from __future__ import annotations

import pytest

from mobilefit.report import write_report

from .example import write_run


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("run"))).read_text()
