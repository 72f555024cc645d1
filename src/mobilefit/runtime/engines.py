"""The runtimes that can run a file, by name. None of them is imported here."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from mobilefit.errors import InputError, unknown

LITERT = "litert"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A runtime."""

    label: str
    """As messages name it."""
    suffix: str
    """Of the files that it reads."""
    package: str
    """That it is installed by."""
    extra: str | None
    """Of this package, which brings it; ``None``: it is always there."""
    home: str
    """The module that runs it, in the child process."""


ENGINES: dict[str, Engine] = {
    LITERT: Engine(label="LiteRT", suffix=".tflite", package="ai-edge-litert", extra=None,
                   home="_litert"),
    "onnxruntime": Engine(label="ONNX Runtime", suffix=".onnx", package="onnxruntime", extra="onnx",
                          home="_onnxruntime"),
    "openvino": Engine(label="OpenVINO", suffix=".onnx", package="openvino", extra="openvino",
                       home="_openvino"),
}  # fmt: skip


def engine(name: str) -> Engine:
    """The runtime of that name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in ENGINES:
        raise unknown("runtime", name, ENGINES)
    return ENGINES[name]


def runtime_version(name: str = LITERT) -> str:
    """Package and version of a runtime, such as ``ai-edge-litert 2.3.0``.

    Raises:
        InputError: it is not installed; the hint names the extra that brings it.
    """
    found = engine(name)
    try:
        return f"{found.package} {importlib.metadata.version(found.package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"{found.label} is not installed", f"pip install 'mobilefit[{found.extra}]'"
        ) from error
