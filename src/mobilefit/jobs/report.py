"""The page of a run, made anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilefit.errors import InputError
from mobilefit.jobs.options import option
from mobilefit.report import write_report


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of ``mobilefit report``."""

    run: Path = option(help="a run folder", argument=True)


def report(config: ReportConfig) -> Path:
    """Write ``report.html`` from the records in a run folder, finished or not.

    Raises:
        InputError: no such folder, or no records in it.
    """
    if not config.run.is_dir():
        raise InputError(f"no such run folder: {config.run}", "give the --out of an earlier run")
    page = write_report(config.run)
    print(page)
    return page
