"""Where latency is measured, and how it is predicted."""

from mobilefit.device.android import Phone
from mobilefit.device.host import device_id, measure, measure_many, shared_worker
from mobilefit.device.protocol import Latency, Protocol
from mobilefit.device.table import LatencyTable, TableCheck, kendall_tau, units
from mobilefit.device.target import check_target, opened

__all__ = [
    "Latency", "LatencyTable", "Phone", "Protocol", "TableCheck", "check_target", "device_id",
    "kendall_tau", "measure", "measure_many", "opened", "shared_worker", "units",
]  # fmt: skip
