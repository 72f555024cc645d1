"""Files that are made wrong on purpose, value by value: each is taken or refused in one line, soon, in little memory.

By fixed seeds. ``make fuzz`` (``FUZZ_TIMES=10``) runs ten times the inputs.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import struct
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import safetensors.torch
import torch
from jobs.small import SPACE, SPEC

from mobilefit import arch, litert
from mobilefit.arch import NetSpec
from mobilefit.data import Preset
from mobilefit.errors import InputError
from mobilefit.int8 import Policy, quantize, with_random_ranges
from mobilefit.jobs.ends import outputs_of
from mobilefit.jobs.model import file_info
from mobilefit.jobs.predict import opened
from mobilefit.litert.graph import parse, unpack
from mobilefit.litert.metadata import packaged
from mobilefit.nn import build, load_network, load_weights, weights
from mobilefit.nn.boxes import spec_anchors
from mobilefit.nn.weights import read_weights
from mobilefit.runtime import RuntimeCrash
from mobilefit.search.space import Space

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
PRESET = Preset(resolution=32, crop_fraction=1.0)
SAID = {
    "spec": SPEC.to_dict(), "preset": PRESET.to_dict(), "classes": ["blue", "green", "red"],
    "accuracy": {"float32": {"top1": 0.5, "images": "8 test images of shades"}},
}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 16.5, 100_000, 2**31, 10**18, 10**90, float("nan"), float("inf"), -0.0, 1e308, "", "3",
    "x" * 5000, "\ud800", "a\0b", "\x1b]0;", "²", [], [1], [[[]]], {}, {"a": 1}, ["a", None], [1] * 20_000, "relu", "v3",
]  # fmt: skip
GIBIBYTE = 2**30


@contextlib.contextmanager
def limits(what: object, seconds: float = 5.0) -> Iterator[None]:
    """A block that must end soon, in less than a GiB more than there was, without anything but an InputError."""

    def late(number: int, frame: types.FrameType | None) -> None:
        raise AssertionError(f"hangs: {what!r:.300}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor: machines are busy
    try:
        yield
    except InputError as error:
        line = f"{error.message}; {error.hint}"
        assert "\n" not in line and len(line) < 4000, line
        raise
    except (AssertionError, RuntimeCrash):
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} {error} of {what!r:.300}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIBIBYTE, what


def outcome(what: object, use: Callable[[], object]) -> str:
    try:
        with limits(what):
            use()
    except InputError:
        return "refused"
    except RuntimeCrash:
        return "crash"
    return "taken"


# ---- values in JSON


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, draw: random.Random) -> tuple[Any, str]:
    """A copy with one or two values put in another's place, dropped, doubled or added; and what was done."""
    value, done = copy.deepcopy(value), []
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice([*places(value)] or [()])
        if not path:  # nothing is left
            break
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        how = draw.choice(("put", "put", "put", "drop", "double", "add"))
        if how == "drop":
            del inner[path[-1]]
        elif how == "double" and isinstance(inner[path[-1]], list):
            inner[path[-1]] = inner[path[-1]] * draw.choice((2, 3, 5000))
        elif how == "add" and isinstance(inner[path[-1]], dict):
            inner[path[-1]][draw.choice(("x", "out", "task"))] = copy.deepcopy(draw.choice(VALUES))
        else:
            inner[path[-1]] = copy.deepcopy(draw.choice(VALUES))
        done.append(f"{how} {path}")
    return value, "; ".join(done)


def use_spec(value: Any) -> None:
    made = NetSpec.from_dict(value)
    assert NetSpec.from_json(made.to_json()) == made
    assert made.cost().params > 0 and arch.table(made)
    if made.task == "detect" and made.image_shape != (320, 320):
        assert spec_anchors(made).shape[1] == 4


def use_space(value: Any) -> None:
    made = Space.from_dict(value)
    made.spec([0] * len(made.sizes)).cost()


SUBJECTS: dict[str, tuple[Any, Callable[[Any], object], int]] = {
    "classifier": (SPEC.to_dict(), use_spec, 400),
    "detector": (arch.detector(arch.spec("mobilenet_v3_small")).to_dict(), use_spec, 200),
    "segmenter": (arch.segmenter(arch.spec("mobilenet_v2")).to_dict(), use_spec, 200),
    "space": (SPACE, use_space, 200),
    "preset": (PRESET.to_dict(), Preset.from_dict, 300),
    "policy": ({"rules": [{"pattern": "*.se", "arithmetic": "float"}]}, Policy.from_dict, 100),
    "detections": (
        {"nms": "file", "score_threshold": 0.1, "iou_threshold": 0.5, "max_detections": 9, "class_wise": False},
        lambda value: outputs_of(value, arch.detector(arch.spec("mobilenet_v2"))), 200,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUBJECTS)
def test_values_of_json(name: str) -> None:
    good, use, count = SUBJECTS[name]
    draw, seen = random.Random(name), Counter[str]()
    assert outcome(name, lambda: use(good)) == "taken"
    for _ in range(count * TIMES):
        value, done = changed(good, draw)
        seen[outcome((done, value), lambda value=value: use(value))] += 1  # type: ignore[misc]
    assert seen["refused"] > count * TIMES // 4, seen


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value!a:.20}")
def test_the_whole_is_something_else(value: Any) -> None:
    for _, use, _ in SUBJECTS.values():
        outcome(value, lambda use=use: use(value))  # type: ignore[misc]


# ---- .tflite


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A classifier's float32 and int8 files."""
    torch.manual_seed(0)
    blob = litert.compile(build(SPEC).eval(), (1, 3, 32, 32), metadata=SAID)
    return {"float32": packaged(blob), "int8": packaged(with_random_ranges(blob))}


def swap_operators(model: Any, draw: random.Random) -> None:
    ops = model.subgraphs[0].operators
    a, b = (draw.randrange(len(ops)) for _ in range(2))
    ops[a], ops[b] = ops[b], ops[a]


def double_an_operator(model: Any, draw: random.Random) -> None:
    ops = model.subgraphs[0].operators
    ops.insert(draw.randrange(len(ops)), draw.choice(ops))


def drop_an_operator(model: Any, draw: random.Random) -> None:
    ops = model.subgraphs[0].operators
    del ops[draw.randrange(len(ops))]


def another_operator(model: Any, draw: random.Random) -> None:
    draw.choice(model.subgraphs[0].operators).opcodeIndex = draw.randrange(len(model.operatorCodes))


def other_inputs(model: Any, draw: random.Random) -> None:
    op, count = draw.choice(model.subgraphs[0].operators), len(model.subgraphs[0].tensors)
    values = [int(i) for i in op.inputs]
    values[draw.randrange(len(values))] = draw.randrange(-1, count)
    op.inputs = draw.choice((values, values[:-1], [*values, values[0]], values[::-1]))


def other_outputs(model: Any, draw: random.Random) -> None:
    op = draw.choice(model.subgraphs[0].operators)
    op.outputs = draw.choice(([], [draw.randrange(len(model.subgraphs[0].tensors))], [*op.outputs, *op.outputs]))


def another_shape(model: Any, draw: random.Random) -> None:
    tensor = draw.choice(model.subgraphs[0].tensors)
    shape = [] if tensor.shape is None else [int(side) for side in tensor.shape]
    if shape and draw.random() < 0.7:
        shape[draw.randrange(len(shape))] = draw.choice((0, 1, 2, 30_000, 2**31 - 1))
    tensor.shape = draw.choice((shape, shape[::-1], shape[:-1], [1, *shape], []))


def another_type(model: Any, draw: random.Random) -> None:
    draw.choice(model.subgraphs[0].tensors).type = draw.randrange(18)


def other_ends(model: Any, draw: random.Random) -> None:
    sub = model.subgraphs[0]
    value = [draw.randrange(len(sub.tensors)) for _ in range(draw.randrange(3))]
    setattr(sub, draw.choice(("inputs", "outputs")), value)


def another_signature(model: Any, draw: random.Random) -> None:
    signature = model.signatureDefs[0]
    maps = getattr(signature, draw.choice(("inputs", "outputs")))
    how = draw.randrange(4)
    if how == 0:
        maps.clear()
    elif how == 1:
        maps.append(maps[0])
    elif how == 2:
        maps[0].tensorIndex = draw.randrange(len(model.subgraphs[0].tensors))
    else:
        maps[0].name = draw.choice((b"", b"\xff\xfe", b"other"))


def other_options(model: Any, draw: random.Random) -> None:
    op = draw.choice(model.subgraphs[0].operators)
    if op.builtinOptions is None or draw.random() < 0.2:
        op.builtinOptionsType, op.builtinOptions = 0, None
        return
    name, value = draw.choice([*vars(op.builtinOptions).items()])
    if isinstance(value, int):
        setattr(op.builtinOptions, name, not value if isinstance(value, bool) else draw.choice((0, 1, 2, 3, 7)))


def other_scales(model: Any, draw: random.Random) -> None:
    tensors = [t for t in model.subgraphs[0].tensors if t.quantization is not None and t.quantization.scale is not None]
    if tensors:
        q = draw.choice(tensors).quantization
        name, value = draw.choice((("scale", np.zeros(0, np.float32)), ("scale", np.full(3, 1e30, np.float32)),
                                   ("zeroPoint", np.array([10**12])), ("zeroPoint", None), ("scale", None)))  # fmt: skip
        setattr(q, name, value)


def other_names(model: Any, draw: random.Random) -> None:
    draw.choice(model.subgraphs[0].tensors).name = draw.choice((None, b"", b"\xff\xff", b"a\0b", b"x" * 70_000))


def another_buffer(model: Any, draw: random.Random) -> None:
    draw.choice(model.subgraphs[0].tensors).buffer = draw.randrange(len(model.buffers))


def other_metadata(model: Any, draw: random.Random) -> None:
    for entry in model.metadata:
        if entry.name == b"mobilefit":
            value, _ = changed(SAID, draw)
            text = draw.choice((json.dumps(value), json.dumps(value), "[" * 100_000, "\x00", '{"a"'))
            model.buffers[entry.buffer].data = np.frombuffer(text.encode(errors="replace"), np.uint8)


CHANGES = (
    swap_operators, double_an_operator, drop_an_operator, another_operator, other_inputs, other_outputs, another_shape,
    another_type, other_ends, another_signature, other_options, other_scales, other_names, another_buffer, other_metadata,
)  # fmt: skip


def mutated(blob: bytes, draw: random.Random) -> tuple[bytes, str]:
    model, done = unpack(blob), []
    for _ in range(draw.choice((1, 1, 2))):
        change = draw.choice(CHANGES)
        with contextlib.suppress(IndexError):  # another change left nothing to draw from
            change(model, draw)
            done.append(change.__name__)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output()), ", ".join(done)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_damaged_graphs(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    """What is taken when it is opened can be run, rewritten, quantized and told about."""
    path, draw, seen = tmp_path / "mutant.tflite", random.Random(kind), Counter[str]()
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)

    def use() -> None:
        blob = path.read_bytes()
        info = file_info(blob, path)
        network = opened(path)
        outputs = network.run(images)
        assert [values.shape for values in outputs] == info.ends.shapes
        assert len(parse(blob).ops)
        packaged(blob)
        if kind == "float32":
            assert file_info(packaged(quantize(blob, [images])), path) == info

    path.write_bytes(files[kind])
    assert outcome("the good one", use) == "taken"
    for _ in range(60 * TIMES):
        mutant, done = mutated(files[kind], draw)
        path.write_bytes(mutant)
        seen[outcome(done, use)] += 1
    assert seen["refused"] > 30 * TIMES and seen["crash"] < 3 * TIMES, seen


def test_every_change_alone_is_seen(files: dict[str, bytes], tmp_path: Path) -> None:
    """Operators swapped, doubled or dropped never go to the runtime."""
    path = tmp_path / "mutant.tflite"
    for change in (double_an_operator, drop_an_operator, other_outputs, other_ends):
        for seed in range(4):
            model = unpack(files["float32"])
            before = str([(op.inputs, op.outputs) for op in model.subgraphs[0].operators]), str(vars(model.subgraphs[0])["inputs"])
            change(model, random.Random(seed))
            after = str([(op.inputs, op.outputs) for op in model.subgraphs[0].operators]), str(vars(model.subgraphs[0])["inputs"])
            builder = flatbuffers.Builder(1 << 16)
            builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
            path.write_bytes(bytes(builder.Output()))
            if before != after:
                with pytest.raises(InputError):
                    file_info(path.read_bytes(), path)


# ---- weights


def test_headers_of_safetensors(tmp_path: Path) -> None:
    network, path, draw, seen = build(SPEC), tmp_path / "net.safetensors", random.Random(0), Counter[str]()
    metadata = {key: json.dumps(value) for key, value in SAID.items()}
    blob = safetensors.torch.save(network.state_dict(), metadata)
    size = struct.unpack("<Q", blob[:8])[0]
    header, data = json.loads(blob[8 : 8 + size]), blob[8 + size :]

    def use() -> None:
        read_weights(path)
        load_network(path)

    for number in range(60 * TIMES):
        bad, done = changed(header, draw)
        if number % 2:  # what it says of itself
            bad = copy.deepcopy(header)
            key = draw.choice(("spec", "preset", "classes"))
            value, done = changed({key: SAID[key]}, draw)
            bad["__metadata__"] = {**metadata, **{k: json.dumps(v) for k, v in value.items()}}
        text = json.dumps(bad).encode()
        path.write_bytes(struct.pack("<Q", draw.choice((len(text),) * 9 + (2**40,))) + text + data)
        seen[outcome(done, use)] += 1
    assert seen["refused"] > 20 * TIMES, seen


def test_tensors_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "recognised", lambda *given: None)  # a hint, which takes a second
    state, path, draw = build(SPEC).state_dict(), tmp_path / "net.pth", random.Random(0)
    odd: list[Callable[[torch.Tensor], Any]] = [
        lambda t: t.double(), lambda t: t.half(), lambda t: t.int(), lambda t: t.bool(), lambda t: t[None],
        lambda t: t.flatten()[:1], lambda t: t[:0] if t.ndim else t, lambda t: torch.zeros(()), lambda t: t.float() / 0,
        lambda t: torch.zeros(1).expand(10**12), lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: None,
        lambda t: t.cfloat(), lambda t: [t], lambda t: {"a": t}, lambda t: t.numpy(), lambda t: "x", lambda t: t.t() if t.ndim == 2 else t,
    ]  # fmt: skip
    network, seen = build(SPEC), Counter[str]()
    for _ in range(30 * TIMES):
        bad: dict[Any, Any] = dict(state)
        for key in draw.sample([*state], draw.choice((1, 1, 3))):
            bad[key] = draw.choice(odd)(state[key])
        if draw.random() < 0.2:
            bad[draw.choice((3, None, ("a", 1), "\ud800", ""))] = torch.ones(3)
        torch.save({"state_dict": bad}, path)
        seen[outcome([*bad][:3], lambda: load_weights(network, path))] += 1
    assert seen["refused"] > 10 * TIMES, seen
