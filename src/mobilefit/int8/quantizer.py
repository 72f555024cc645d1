"""Post-training int8: per-channel weights, per-tensor activations, ranges from calibration images.

The arithmetic is the LiteRT quantizer's; what is ours is the graph it gets. HARD_SWISH is lowered
and its 1/6 folded away first (see ``passes``), so that the result runs in one XNNPACK partition.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from litert_quantizer import calibrator, qtyping, quantizer, recipe_manager
from litert_quantizer.algorithm_manager import AlgorithmName
from litert_quantizer.utils import qsv_utils

from mobilefit.errors import InputError
from mobilefit.int8 import limits
from mobilefit.int8.limits import Range, span
from mobilefit.litert.graph import CODE, Graph, Op, name_uniquely, parse, serialize
from mobilefit.litert.passes import ACT, fold_scales, lower_hard_swish


def quantize(blob: bytes, images: Iterable[np.ndarray], *, threads: int = 1) -> bytes:
    """Quantize a float32 LiteRT file to int8; its input and output stay float32.

    Args:
        blob: what ``compile`` returned.
        images: preprocessed float32 arrays ``[n, height, width, channels]`` (any n), as the
            network gets them at inference; 100 to 500 images are plenty. Each activation's range
            is the smallest and largest value seen.
        threads: for the calibration runs.

    Returns:
        The bytes of the int8 .tflite file, with the metadata and the signature of ``blob``.

    Raises:
        InputError: ``blob`` is no float32 LiteRT file, an image has another shape, there is no
            image, or a range is not finite; it names the tensor.
    """
    graph = _lowered(blob)
    recipe = _recipe(int8_edges=False)
    ranges = _calibrate(graph, images, recipe, threads)
    return _quantized(graph, recipe, ranges)


def with_random_ranges(blob: bytes, *, edges: Literal["float", "int8"] = "float") -> bytes:
    """The int8 file that ``quantize`` would make, with made-up ranges: for latency only.

    Same operators, types and shapes, so the same latency, without running a single image. Its
    outputs mean nothing.

    Args:
        blob: what ``compile`` returned; the weights may be untrained.
        edges: "float" as ``quantize`` does; "int8" for a fragment of a network: input and output
            are int8, and a factor of 1/6 that reaches the output is left out, since in the whole
            network the next layer takes both.

    Raises:
        InputError: ``blob`` is no float32 LiteRT file.
    """
    fragment = edges == "int8"
    graph = _lowered(blob, drop_at_outputs=fragment)
    name_uniquely(graph)
    ranges = {t.name: span(-4.0, 4.0) for t in graph.inputs}
    for op in graph.ops:
        ranges[op.output.name] = _made_up(op)
    return _quantized(graph, _recipe(int8_edges=fragment), ranges)


def _lowered(blob: bytes, *, drop_at_outputs: bool = False) -> Graph:
    graph = parse(blob)
    if any(t.dtype != np.float32 for t in graph.inputs) or any(
        op.code in (CODE.QUANTIZE, CODE.DEQUANTIZE) for op in graph.ops
    ):
        raise InputError("the LiteRT model is already quantized", "give the float32 file")
    lower_hard_swish(graph)
    fold_scales(graph, drop_at_outputs=drop_at_outputs)
    return graph


def _recipe(*, int8_edges: bool) -> recipe_manager.RecipeManager:
    recipe = recipe_manager.RecipeManager()
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    recipe.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
    if not int8_edges:
        for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            recipe.add_quantization_config(".*", edge, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe


def _quantized(
    graph: Graph, recipe: recipe_manager.RecipeManager, ranges: dict[str, Range]
) -> bytes:
    limits.fit(graph, ranges)
    with _quiet():
        tool = quantizer.Quantizer(serialize(graph), recipe.get_quantization_recipe())
        result = tool.quantize(ranges, enable_progress_report=False)
    assert result.quantized_model is not None
    quantized = parse(bytes(result.quantized_model))
    limits.check(quantized)
    return serialize(quantized)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's progress bars and debugging notes, which have no switch."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- ranges


def _calibrate(
    graph: Graph,
    images: Iterable[np.ndarray],
    recipe: recipe_manager.RecipeManager,
    threads: int,
) -> dict[str, Range]:
    tool = calibrator.Calibrator(
        serialize(graph),
        num_threads=threads,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=qsv_utils.min_max_update,
    )
    count = 0
    for batch in _batches(images, graph.inputs[0].shape):
        with _quiet():
            tool.calibrate({graph.signature: [{graph.input_names[0]: batch}]}, recipe)
        count += 1
    if not count:
        raise InputError("there is no calibration image", "give at least one")
    ranges: dict[str, Range] = tool.get_model_qsvs()
    return {name: _checked(name, found) for name, found in ranges.items()}


def _batches(images: Iterable[np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The images, in pieces of the file's batch size; a last piece repeats its last image."""
    size = shape[0]
    for array in images:
        array = np.ascontiguousarray(array, np.float32)
        if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not len(array):
            raise InputError(
                f"a calibration array has shape {array.shape}, the network takes "
                f"[n, {', '.join(map(str, shape[1:]))}]"
            )
        for start in range(0, len(array), size):
            piece = array[start : start + size]
            yield np.concatenate([piece, *[piece[-1:]] * (size - len(piece))])


def _checked(name: str, found: Range) -> Range:
    low, high = float(np.min(found["min"])), float(np.max(found["max"]))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            f"'{name}' reaches {low} to {high} on the calibration images",
            "the weights or the images hold values that are not finite",
        )
    return found


def _made_up(op: Op) -> Range:
    if op.activation in (ACT.RELU, ACT.RELU6):
        return span(0.0, 6.0)
    return span(-24.0, 24.0) if op.code == CODE.MUL else span(-4.0, 4.0)
