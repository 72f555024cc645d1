"""What a run found, for people: one self-contained HTML page, one figure, one table of text.

Everything here comes from a run's records; nothing is measured or computed anew.
"""

from mobilefit.report.page import write_report
from mobilefit.report.plots import frontier_figure
from mobilefit.report.search import rewards_figure
from mobilefit.report.tables import summary_table

__all__ = ["frontier_figure", "rewards_figure", "summary_table", "write_report"]
