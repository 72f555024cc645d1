"""The fixtures of ``jobs.small``."""

from jobs.small import refused, steady, world

__all__ = ["refused", "steady", "world"]
