"""What a run found, for people: one self-contained HTML page, one figure, one table of text.

Everything here comes from a run's records; nothing is measured or computed anew.
"""

from mobilefit.report.classes import class_table
from mobilefit.report.page import write_report
from mobilefit.report.plots import frontier_figure, lr_curve
from mobilefit.report.search import rewards_figure
from mobilefit.report.tables import summary_table
from mobilefit.report.verdict import BY_HAND, over_budget

__all__ = [
    "BY_HAND", "class_table", "frontier_figure", "lr_curve", "over_budget", "rewards_figure", "summary_table",
    "write_report",
]  # fmt: skip
