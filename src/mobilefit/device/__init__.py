"""Where latency is measured, and how it is predicted."""

from mobilefit.device.host import device_id, measure, measure_many, shared_worker
from mobilefit.device.protocol import Latency, Protocol
from mobilefit.device.table import LatencyTable, TableCheck, kendall_tau, units

__all__ = [
    "Latency", "LatencyTable", "Protocol", "TableCheck", "device_id", "kendall_tau", "measure",
    "measure_many", "shared_worker", "units",
]  # fmt: skip
