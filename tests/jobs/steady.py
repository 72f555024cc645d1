"""``mobilefit`` on the steady device, as a process that can be told when to die.

``STOP=module:name:n`` in the environment kills the process, as ``kill -9`` does, at the ``n``-th
call of that function.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from jobs.small import hold_steady
from mobilefit.cli import main


def stop_at(place: str) -> None:
    module, name, count = place.split(":")
    *owners, last = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), iter(range(1, 10_000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, last, wrapped)


if __name__ == "__main__":
    hold_steady(setattr)
    if os.environ.get("STOP"):
        stop_at(os.environ["STOP"])
    sys.exit(main())
