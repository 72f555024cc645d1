"""The process that owns LiteRT interpreters, for :class:`mobilefit.runtime.worker.Worker`.

LiteRT aborts the whole process on some files, so no interpreter lives in the user's own. Started as
``python -m mobilefit.runtime._child FD``; imports only numpy and LiteRT. One request at a time comes
over the socket FD as ``(command, keys, {key: file}, threads, arguments)``; the answer is
``("ok", result)``, ``("send", keys)`` (these files are not here: send them along) or
``("input", (message, hint))``. A closed socket ends the process, also in the middle of a timing.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from mobilefit.errors import InputError
from mobilefit.litert.graph import unpack

INTERPRETERS_KEPT = 8


class _Child:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.interpreters: OrderedDict[tuple[str, int], Interpreter] = OrderedDict()
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

    def serve(self) -> None:
        while True:
            try:
                request = self.connection.recv()
                self.connection.send(self.answer(*request))
            except InputError as error:
                self.connection.send(("input", (error.message, error.hint)))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return

    def answer(
        self,
        command: str,
        keys: list[str],
        files: dict[str, bytes],
        threads: int,
        arguments: dict[str, Any],
    ) -> tuple[str, Any]:
        for key, blob in files.items():
            self.interpreters[key, threads] = _load(blob, threads)
        missing = [key for key in keys if (key, threads) not in self.interpreters]
        if missing:
            return "send", missing
        for key in keys:
            self.interpreters.move_to_end((key, threads))
        while len(self.interpreters) > max(INTERPRETERS_KEPT, len(set(keys))):
            self.interpreters.popitem(last=False)
        return "ok", getattr(self, command)(
            [self.interpreters[k, threads] for k in keys], **arguments
        )

    # ---- commands

    def run(self, interpreters: list[Interpreter], array: np.ndarray) -> np.ndarray:
        interpreter = interpreters[0]
        source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        shape = [int(side) for side in source["shape"]]
        if (
            list(array.shape[1:]) != shape[1:]
            or array.dtype != source["dtype"]
            or len(array) % shape[0]
        ):
            raise InputError(
                f"the network takes {np.dtype(source['dtype'])} arrays of shape {shape}, "
                f"not {array.dtype} {list(array.shape)}"
            )
        outputs = np.empty((len(array), *target["shape"][1:]), target["dtype"])
        for start in range(0, len(array), shape[0]):
            interpreter.set_tensor(source["index"], array[start : start + shape[0]])
            interpreter.invoke()
            outputs[start : start + shape[0]] = interpreter.get_tensor(target["index"])
        return outputs

    def time(
        self, interpreters: list[Interpreter], core: int | None, rule: dict[str, float]
    ) -> list[tuple[list[float], bool]]:
        self.pin(core)
        try:
            return self.rounds([_prepared(i) for i in interpreters], rule)
        finally:
            self.pin(None)

    def rounds(
        self, interpreters: list[Interpreter], rule: dict[str, float]
    ) -> list[tuple[list[float], bool]]:
        """Bursts of runs, each network in turn, until every median is stable or time is up."""
        samples: list[list[float]] = [[] for _ in interpreters]
        bursts = [_Burst(i, rule["warmup_seconds"]) for i in interpreters]
        end = time.perf_counter() + rule["max_seconds"] * len(interpreters)
        gc.collect()
        gc.disable()
        try:
            while True:
                for burst, mine in zip(bursts, samples, strict=True):
                    mine.extend(burst())
                    if self.connection.poll():  # a request here is a closed socket: stop
                        raise SystemExit
                stable = [_stable(mine, rule) for mine in samples]
                if all(stable) or time.perf_counter() > end:
                    return list(zip(samples, stable, strict=True))
        finally:
            gc.enable()

    def inspect(self, interpreters: list[Interpreter]) -> dict[str, Any]:
        details = interpreters[0]._get_ops_details()
        delegates = [d for d in details if d["op_name"] == "DELEGATE"]
        ops = [d for d in details if d["op_name"] != "DELEGATE"]
        return {
            "ops": tuple(d["op_name"] for d in ops),
            "partitions": len(delegates),
            "outside": tuple(_outside(ops, delegates)),
        }

    def pin(self, core: int | None) -> None:
        if self.cores:
            os.sched_setaffinity(0, self.cores if core is None else {core})


def _load(blob: bytes, threads: int) -> Interpreter:
    unpack(blob)  # a damaged file must not reach the interpreter, which would crash on it
    try:
        interpreter = Interpreter(model_content=blob, num_threads=threads)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"LiteRT cannot load the model: {reason}") from error
    return interpreter


def _prepared(interpreter: Interpreter) -> Interpreter:
    """With fixed random inputs: what is timed never depends on their values."""
    random = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = random.normal(size=detail["shape"])
        if np.issubdtype(detail["dtype"], np.integer):
            values = values * 32
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    return interpreter


class _Burst:
    """Times a handful of consecutive runs; the first of each burst only refills the caches."""

    SECONDS = 0.02
    MAX_RUNS = 500

    def __init__(self, interpreter: Interpreter, warmup_seconds: float) -> None:
        self.invoke = interpreter.invoke
        self.runs = 1
        spent, count = 0.0, 0
        while spent < warmup_seconds or count < 3:
            last = self.once()
            spent, count = spent + last / 1e9, count + 1
        self.runs = max(2, min(self.MAX_RUNS, round(self.SECONDS * 1e9 / last)))

    def once(self) -> int:
        start = time.perf_counter_ns()
        self.invoke()
        return time.perf_counter_ns() - start

    def __call__(self) -> list[float]:
        self.once()
        return [self.once() / 1e6 for _ in range(self.runs)]


def _stable(samples: list[float], rule: dict[str, float]) -> bool:
    """Is the 95 % confidence interval of the median (by order statistics) narrow enough?

    With n samples, the interval is between the order statistics n/2 -+ 0.98 sqrt(n) (the normal
    approximation of the binomial distribution).
    """
    n = len(samples)
    if n < rule["min_runs"] or sum(samples) < rule["min_seconds"] * 1e3:
        return False
    if n >= rule["max_runs"]:
        return True
    ordered = sorted(samples)
    half = 0.98 * n**0.5
    low, high = ordered[max(0, int(n / 2 - half))], ordered[min(n - 1, int(n / 2 + half) + 1)]
    return high - low <= rule["spread"] * ordered[n // 2]


def _outside(ops: list[dict[str, Any]], delegates: list[dict[str, Any]]) -> list[str]:
    """Names of the operators that no delegate runs.

    The interpreter lists the original operators beside the delegates that replaced them. A delegate
    runs what lies between its inputs and its outputs.
    """
    maker = {int(t): op for op in ops for t in op["outputs"]}
    inside: set[int] = set()
    for delegate in delegates:
        known = {int(t) for t in delegate["inputs"]}
        todo = [int(t) for t in delegate["outputs"]]
        while todo:
            tensor = todo.pop()
            if tensor in known:
                continue
            known.add(tensor)
            if tensor in maker:
                inside.add(maker[tensor]["index"])
                todo.extend(int(t) for t in maker[tensor]["inputs"])
    return [op["op_name"] for op in ops if op["index"] not in inside]


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _Child(connection).serve()


if __name__ == "__main__":
    main()
