"""The fixtures of ``jobs.small`` and ``jobs.serving``."""

from jobs.serving import browser, served
from jobs.small import refused, steady, world

__all__ = ["browser", "refused", "served", "steady", "world"]
