"""The command line: one verb each of ``mobilefit.jobs``, its options made of the verb's configuration."""

from mobilefit.cli.main import main

__all__ = ["main"]
