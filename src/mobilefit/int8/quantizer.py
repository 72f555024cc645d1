"""From a float32 LiteRT file to int8: per-channel weights, per-tensor activations.

The file is written by the LiteRT quantizer; what is ours is the graph that it gets (see
``litert.lowerings``) and the ranges, so that the result runs in one XNNPACK partition.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from litert_quantizer import qtyping, quantizer, recipe_manager
from litert_quantizer.algorithm_manager import AlgorithmName

from mobilefit.errors import InputError
from mobilefit.int8 import limits
from mobilefit.int8.correction import correct_biases
from mobilefit.int8.limits import Range, span
from mobilefit.int8.observers import Observer, observe
from mobilefit.int8.policy import Policy, exceptions
from mobilefit.int8.simulation import Simulation
from mobilefit.litert.graph import CODE, Graph, Op, name_uniquely, parse, serialize
from mobilefit.litert.lowerings import DEFAULT, INT8, Lowering, arranged, lower, named
from mobilefit.litert.outputs import join, split
from mobilefit.litert.passes import ACT

Edges = Literal["float", "int8"]
_BATCH = 16  # images that calibration runs at once: a few hundred MB at 224 pixels


def quantize(
    blob: bytes,
    images: Iterable[np.ndarray],
    *,
    observer: Observer = "percentile",
    policy: Policy | None = None,
    bias_correction: bool = False,
    edges: Edges = "float",
    lowering: str = DEFAULT,
) -> bytes:
    """Quantize a float32 LiteRT file to int8, after training (PTQ).

    Args:
        blob: what ``compile`` returned; what :func:`~mobilefit.litert.outputs.with_outputs` put
            behind its outputs stays float32.
        images: preprocessed float32 arrays ``[n, height, width, channels]`` (any n), as the
            network gets them at inference; 100 to 500 images are plenty.
        observer: the rule that makes a range of the values seen; see :data:`Observer`.
        policy: which layers are not int8; default none.
        bias_correction: shift each layer's bias by the mean error of its outputs on ``images``
            (Nagel et al., 2019, arXiv:1906.04721, appendix D).
        edges: ``"float"``: input and output stay float32; ``"int8"``: both are int8, with the scales
            that the file states (boxes, scores and label maps behind the outputs stay what they are).
        lowering: which operators the layers become: a key of ``litert.lowerings.INT8``.

    Returns:
        The bytes of the int8 .tflite file, with the metadata and the signature of ``blob``.

    Raises:
        InputError: ``blob`` is no float32 LiteRT file, an image has another shape, there is no
            image, or a range is not finite; it names the tensor.
    """
    simulation = calibrated(blob, images, observer=observer, policy=policy, lowering=lowering)
    if bias_correction:
        correct_biases(simulation, batches_of(simulation.graph, images))
    return written(simulation, edges=edges, lowering=lowering)


def calibrated(
    blob: bytes,
    images: Iterable[np.ndarray],
    *,
    observer: Observer = "percentile",
    policy: Policy | None = None,
    lowering: str = DEFAULT,
) -> Simulation:
    """A float32 file's simulation with ranges from images: what :func:`written` makes a file of.

    Args and errors as of :func:`quantize`.
    """
    network, tail = split(blob)
    graph = lowered(network, named(lowering, INT8))
    name_uniquely(graph)
    policy = policy or Policy()
    policy.check(graph)
    simulation = Simulation(graph, policy=policy)
    ranges = observe(simulation, batches_of(graph, images), observer)
    limits.fit(graph, ranges, policy)
    made = Simulation(graph, ranges, policy)
    made.tail = tail
    return made


def written(
    simulation: Simulation, *, edges: Edges = "float", lowering: str = DEFAULT
) -> bytes:
    """The int8 file with a simulation's weights and ranges.

    Raises:
        InputError: a scale that LiteRT cannot compute with; it names the tensor.
    """
    graph, ranges = simulation.trained_graph(), simulation.range_table()
    limits.fit(graph, ranges, simulation.policy)
    made = _arranged_and_quantized(graph, ranges, simulation.policy, edges, named(lowering, INT8))
    return join(made, simulation.tail)


def with_random_ranges(
    blob: bytes, *, edges: Edges = "float", lowering: str = DEFAULT
) -> bytes:
    """The int8 file that ``quantize`` would make, with made-up ranges: for latency only.

    Same operators, types and shapes, so the same latency, without running a single image. Its
    outputs mean nothing.

    Args:
        blob: what ``compile`` returned; the weights may be untrained.
        edges: "float" as ``quantize`` does; "int8" for a fragment of a network: input and output
            are int8, and a factor of 1/6 that reaches the output is left out, since in the whole
            network the next layer takes both.
        lowering: as of :func:`quantize`.

    Raises:
        InputError: ``blob`` is no float32 LiteRT file.
    """
    chosen = named(lowering, INT8)
    network, tail = split(blob)
    graph = lowered(network, chosen, drop_at_outputs=edges == "int8")
    name_uniquely(graph)
    ranges = {t.name: span(-4.0, 4.0) for t in graph.inputs}
    for op in graph.ops:
        ranges[op.output.name] = _made_up(op)
    limits.fit(graph, ranges, Policy())
    return join(_arranged_and_quantized(graph, ranges, Policy(), edges, chosen), tail)


def lowered(
    blob: bytes, lowering: Lowering = INT8[DEFAULT], *, drop_at_outputs: bool = False
) -> Graph:
    """The graph of a float32 file, made of operators that have an int8 form in the delegate.

    Raises:
        InputError: ``blob`` is no float32 LiteRT file.
    """
    graph = parse(blob)
    if any(t.dtype != np.float32 for t in graph.inputs) or any(
        op.code in (CODE.QUANTIZE, CODE.DEQUANTIZE) for op in graph.ops
    ):
        raise InputError("the LiteRT model is already quantized", "give the float32 file")
    lower(graph, lowering, drop_at_outputs=drop_at_outputs)
    return graph


def batches_of(graph: Graph, images: Iterable[np.ndarray]) -> list[torch.Tensor]:
    """Images ``[n, height, width, channels]`` as a graph's simulation takes them.

    Raises:
        InputError: one has another shape than the graph's input, or there is none.
    """
    shape = graph.inputs[0].shape
    batches = []
    for array in images:
        array = np.ascontiguousarray(array, np.float32)
        if array.ndim != len(shape) or array.shape[1:] != shape[1:] or not len(array):
            raise InputError(
                f"a calibration array has shape {array.shape}, the network takes "
                f"[n, {', '.join(map(str, shape[1:]))}]"
            )
        batches.append(torch.from_numpy(array))
    if not batches:
        raise InputError("there is no calibration image", "give at least one")
    whole = torch.cat(batches)
    whole = whole.permute(0, 3, 1, 2) if whole.dim() == 4 else whole
    return list(torch.split(whole, _BATCH))


# ---- the LiteRT quantizer


def _arranged_and_quantized(
    graph: Graph, ranges: dict[str, Range], policy: Policy, edges: Edges, lowering: Lowering
) -> bytes:
    graph, same = arranged(graph, lowering, lambda op: policy.of_op(op) == "int8")
    ranges = ranges | {new: ranges[old] for new, old in same.items()}
    return _quantized(graph, _recipe(policy, graph, edges), ranges)


def _recipe(policy: Policy, graph: Graph, edges: Edges) -> recipe_manager.RecipeManager:
    recipe = recipe_manager.RecipeManager()
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    recipe.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
    for op, arithmetic in exceptions(policy, graph):
        scope = f"^{re.escape(op.output.name)};?$"
        if arithmetic == "int16":
            recipe.add_static_config(scope, every, activation_num_bits=16, weight_num_bits=8)
        else:
            recipe.add_quantization_config(scope, every, algorithm_key=AlgorithmName.NO_QUANTIZE)
    if edges == "float":
        for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            recipe.add_quantization_config(".*", edge, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe


def _quantized(
    graph: Graph, recipe: recipe_manager.RecipeManager, ranges: dict[str, Range]
) -> bytes:
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


def _made_up(op: Op) -> Range:
    if op.activation in (ACT.RELU, ACT.RELU6):
        return span(0.0, 6.0)
    return span(-24.0, 24.0) if op.code == CODE.MUL else span(-4.0, 4.0)
