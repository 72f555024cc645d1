"""The fixtures of ``jobs.small`` and ``jobs.serving``."""

from jobs.serving import served
from jobs.small import refused, steady, world

__all__ = ["refused", "served", "steady", "world"]
