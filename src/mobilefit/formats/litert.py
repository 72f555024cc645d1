"""LiteRT files with smaller weights that still take and give float32, and need no images.

What comes behind a detector's or segmenter's outputs (decoding, suppression) stays as it is: it is float32.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from litert_quantizer import qtyping, quantizer, recipe_manager
from litert_quantizer.algorithm_manager import AlgorithmName

from mobilefit.errors import InputError
from mobilefit.litert.graph import CODE, parse, serialize
from mobilefit.litert.metadata import labels_of, packaged
from mobilefit.litert.outputs import join, split

_EVERY = qtyping.TFLOperationName.ALL_SUPPORTED
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_DEPTHWISE = qtyping.TFLOperationName.DEPTHWISE_CONV_2D


def float16(blob: bytes) -> bytes:
    """The file with its weights as float16, which the runtime brings back to float32 when it loads.

    Half the size; the arithmetic, and so the latency, is float32's. Biases stay float32.

    Args:
        blob: a float32 .tflite file.

    Returns:
        The new file, with the metadata and signature of ``blob``, packaged if ``blob`` was.

    Raises:
        InputError: ``blob`` is no LiteRT model, is quantized already, or has a weight that float16
            cannot hold (above 65504); it names the tensor.
    """
    for tensor in parse(split(blob)[0]).tensors():
        if tensor.data is not None and tensor.dtype == np.float32:
            peak = float(np.abs(tensor.data).max(initial=0.0))
            if peak > _FLOAT16_MAX:
                raise InputError(
                    f"'{tensor.name}' holds {peak:.3g}, more than float16 can", "use float32"
                )
    recipe = recipe_manager.RecipeManager()
    recipe.add_weight_only_config(
        ".*", _EVERY, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
    )
    return _rewritten(blob, recipe)


def dynamic_int8(blob: bytes) -> bytes:
    """The file with int8 weights, a scale per channel; activations are quantized as they come.

    A quarter of the size. Depthwise kernels, a few per cent of the weights, stay float32: XNNPACK
    has no such depthwise convolution, and each one would split the delegate (12 partitions instead
    of one in MobileNetV3-Small).

    Args:
        blob: a float32 .tflite file.

    Returns:
        The new file, with the metadata and signature of ``blob``, packaged if ``blob`` was.

    Raises:
        InputError: ``blob`` is no LiteRT model, or is quantized already.
    """
    recipe = recipe_manager.RecipeManager()
    recipe.add_dynamic_config(".*", _EVERY, num_bits=8)
    recipe.add_quantization_config(".*", _DEPTHWISE, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return _rewritten(blob, recipe)


def _rewritten(blob: bytes, recipe: recipe_manager.RecipeManager) -> bytes:
    network, tail = split(blob)
    graph = parse(network)
    quantized = any(op.code in (CODE.QUANTIZE, CODE.DEQUANTIZE) for op in graph.ops)
    if quantized or any(t.dtype in (np.int8, np.float16) for t in graph.tensors()):
        raise InputError("the LiteRT model is already quantized", "give the float32 file")
    with _quiet():
        tool = quantizer.Quantizer(serialize(graph), recipe.get_quantization_recipe())
        result = tool.quantize(enable_progress_report=False)
    assert result.quantized_model is not None
    made = join(serialize(parse(bytes(result.quantized_model))), tail)
    return packaged(made) if labels_of(blob) else made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's progress bars and debugging notes, which have no switch."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
