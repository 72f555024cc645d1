"""Files that would run code if they were trusted: none is, whatever format it comes in and wherever it is opened.

Every trap leaves a file behind when it is sprung. Those of a .pt2 are first shown to work on torch's own reader, so
that a trap that has become blunt is noticed.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs.small import SPEC, Refused, World, run
from PIL import EpsImagePlugin, Image

from mobilefit.data import Preset
from mobilefit.data.decode import BadImageError, decode, peak_of_16_bits
from mobilefit.data.masks import decode_mask
from mobilefit.errors import InputError
from mobilefit.formats import executorch, onnx, torch_export
from mobilefit.jobs.ends import Served
from mobilefit.nn import build
from mobilefit.nn.weights import read_weights

Members = dict[str, bytes]


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def pickled(path: Path) -> bytes:
    return pickle.dumps(Trap(path), protocol=2)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


# ---- torch.export programs


@pytest.fixture(scope="module")
def program() -> Members:
    """The members of a good .pt2 by their names without the folder around them."""
    torch.manual_seed(0)
    said = {
        "spec": SPEC.to_dict(), "classes": ["blue", "green", "red"],
        "preset": {"resolution": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 1.0},
    }  # fmt: skip
    blob = torch_export.export(Served(build(SPEC)), (1, 3, 32, 32), metadata=said)
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(members: Members) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def edited(members: Members, name: str, change: Callable[[Any], None]) -> Members:
    content = json.loads(members[name])
    change(content)
    return {**members, name: json.dumps(content).encode()}


TABLE, CONSTANTS, MODEL = (
    "data/weights/model_weights_config.json", "data/constants/model_constants_config.json", "models/model.json"
)  # fmt: skip


def in_sample_inputs(members: Members, flag: Path) -> Members:
    return {**members, "data/sample_inputs/model.pt": saved(((Trap(flag),), {}))}


def in_a_weight(members: Members, flag: Path) -> Members:
    def change(table: Any) -> None:
        next(iter(table["config"].values()))["use_pickle"] = True

    path = next(iter(json.loads(members[TABLE])["config"].values()))["path_name"]
    return {**edited(members, TABLE, change), f"data/weights/{path}": saved(Trap(flag))}


def constant(name: str, data: Callable[[Path], bytes]) -> Callable[[Members, Path], Members]:
    def made(members: Members, flag: Path) -> Members:
        entry = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        table = edited(members, CONSTANTS, lambda table: table["config"].update(c=entry))
        return {**table, f"data/constants/{name}": data(flag)}

    return made


def in_old_weights(members: Members, flag: Path) -> Members:
    return {**members, "data/weights/model.pt": saved({"a": Trap(flag)})}


def in_old_constants(members: Members, flag: Path) -> Members:
    return {**members, "data/constants/model.pt": saved({"a": Trap(flag)})}


def in_the_guards(members: Members, flag: Path) -> Members:
    code = f"L['x'].size()[0] >= 0 and open({str(flag)!r}, 'w')"
    return edited(members, MODEL, lambda program: program.update(guards_code=[code]))


def in_a_shape(members: Members, flag: Path) -> Members:
    code = json.dumps(f"__import__('os').mkdir({str(flag)!r})")
    text, changes = re.subn(r'(?<="expr_str": )"Symbol[^"]*"', lambda _: code, members[MODEL].decode())
    assert changes
    return {**members, MODEL: text.encode()}


def in_an_operator(members: Members, flag: Path) -> Members:
    """The first node calls a function of Python's, which torch finds by its name."""

    def change(program: Any) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.os.mkdir"
        node["inputs"] = [{"name": "path", "arg": {"as_string": str(flag)}, "kind": 1}]

    return edited(members, MODEL, change)


TRAPS: dict[str, Callable[[Members, Path], Members]] = {
    "sample inputs": in_sample_inputs,
    "a weight": in_a_weight,
    "a tensor constant": constant("tensor_0", lambda flag: saved(Trap(flag))),
    "an opaque constant": constant("opaque_obj_0", pickled),
    "old weights": in_old_weights,
    "old constants": in_old_constants,
    "guards": in_the_guards,
    "a shape": in_a_shape,
    "an operator": in_an_operator,
}
SEEN_TO_WORK = ("sample inputs", "a weight", "an opaque constant", "guards", "a shape")
every_trap = pytest.mark.parametrize("where", TRAPS)


@pytest.mark.parametrize("where", SEEN_TO_WORK)
def test_the_trap_is_sharp(where: str, program: Members, tmp_path: Path) -> None:
    flag = tmp_path / "sprung"
    try:
        module = torch.export.load(io.BytesIO(packed(TRAPS[where](program, flag)))).module()
        module(torch.zeros(1, 3, 32, 32))
    except Exception as error:
        print(error)
    assert flag.exists()


@every_trap
@pytest.mark.parametrize("suffix", ["pt2", "pth", "pt"])
def test_a_program_runs_nothing_where_weights_are_read(
    where: str, suffix: str, program: Members, tmp_path: Path
) -> None:
    flag, path = tmp_path / "sprung", tmp_path / f"evil.{suffix}"
    path.write_bytes(packed(TRAPS[where](program, flag)))
    try:
        assert read_weights(path).spec == SPEC
    except InputError as error:
        assert str(path) in error.message
    assert not flag.exists()


@every_trap
def test_a_program_from_outside_is_not_run(where: str, program: Members, tmp_path: Path) -> None:
    flag = tmp_path / "sprung"
    with pytest.raises(InputError, match=r"torch\.export\.load"):
        torch_export.run_all(packed(TRAPS[where](program, flag)), np.zeros((1, 3, 32, 32), np.float32))
    assert not flag.exists()


@pytest.mark.parametrize("option", ["--teacher", "--weights"])
@pytest.mark.parametrize("where", ["sample inputs", "a weight", "an opaque constant"])
def test_a_program_on_the_command_line(
    option: str, where: str, program: Members, world: World, tmp_path: Path
) -> None:
    flag, path = tmp_path / "sprung", tmp_path / "evil.pt2"
    path.write_bytes(packed(TRAPS[where](program, flag)))
    code = run("train", world.images, "--model", world.spec, "--resolution", 32, option, path, "--steps", 1,
               "--batch-size", 8, "--out", tmp_path / "run", "--quiet")  # fmt: skip
    assert code == (2 if where == "a weight" else 0)  # what was not read does no harm
    assert not flag.exists()


def too_long(table: Any) -> None:
    next(iter(table["config"].values()))["tensor_meta"]["sizes"][0]["as_int"] = 2**31 - 1


def repeated(table: Any) -> None:
    meta = next(iter(table["config"].values()))["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 2**30}] * 2, [{"as_int": 0}] * 2


def elsewhere(table: Any) -> None:
    next(iter(table["config"].values()))["path_name"] = "../../archive_format"


def mistyped(table: Any) -> None:
    next(iter(table["config"].values()))["tensor_meta"]["sizes"] = "many"


@pytest.mark.parametrize("change", [too_long, repeated, elsewhere, mistyped], ids=lambda change: change.__name__)
def test_a_programs_table_that_is_not_right(
    change: Callable[[Any], None], program: Members, tmp_path: Path
) -> None:
    path = tmp_path / "bad.pt2"
    path.write_bytes(packed(edited(program, TABLE, change)))
    with pytest.raises(InputError, match=r"not a torch\.export program, or damaged"):
        read_weights(path)


def test_a_programs_bomb_is_not_unpacked(program: Members, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"archive/{TABLE}", bytes(2**24))
    with pytest.raises(InputError, match="is compressed"):
        read_weights(path)


# ---- what torch.save writes


def script(flag: Path) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


CHECKPOINTS: dict[str, Callable[[Path], bytes]] = {
    "the whole file": lambda flag: saved(Trap(flag)),
    "beside the weights": lambda flag: saved({"model": build(SPEC).state_dict(), "args": Trap(flag)}),
    "among the weights": lambda flag: saved({"a": torch.zeros(2), "b": Trap(flag)}),
    "a plain pickle": pickled,
    "the old format": lambda flag: _old({"state_dict": Trap(flag)}),
    "a script": script,
}


def _old(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("where", CHECKPOINTS)
@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "bin", "safetensors", "pt2"])
def test_a_checkpoint_runs_nothing(where: str, suffix: str, tmp_path: Path) -> None:
    flag, path = tmp_path / "sprung", tmp_path / f"evil.{suffix}"
    path.write_bytes(CHECKPOINTS[where](flag))
    try:
        assert all(isinstance(value, torch.Tensor) for value in read_weights(path).state.values())
    except InputError as error:
        assert str(path) in error.message
    assert not flag.exists()


@pytest.mark.parametrize("where", ["the whole file", "a plain pickle", "the old format"])
def test_code_in_a_checkpoint_is_told_as_that(where: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(CHECKPOINTS[where](tmp_path / "sprung"))
    with pytest.raises(InputError, match="it holds Python objects, not tensors alone"):
        read_weights(path)


def test_arrays_of_objects_are_not_loaded(tmp_path: Path) -> None:
    """numpy's files: statistics of a search, decoded data sets, the index of shards."""
    flag, path = tmp_path / "sprung", tmp_path / "evil.npy"
    np.save(path, np.array([Trap(flag)], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(path)
    assert not flag.exists()


# ---- pictures


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 40 36
%%EndComments
(sprung) (w) file closefile
showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["red.jpg", "red.png", "red.eps"])
def test_a_picture_that_is_a_program_is_given_to_nobody(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPS: Pillow has Ghostscript run it, if there is one; this one says when it is called."""
    flag, ghost = tmp_path / "sprung", tmp_path / "bin" / "gs"
    ghost.parent.mkdir()
    ghost.write_text(f"#!/bin/sh\necho called >> {flag}\n")
    ghost.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghost.parent}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / name).write_bytes(EPS)
    for read in (lambda: decode(EPS), lambda: decode_mask(EPS), lambda: Preset(resolution=8).apply(tmp_path / name)):
        with pytest.raises((BadImageError, InputError)):
            read()
    assert peak_of_16_bits(str(tmp_path / name)) is None
    assert not flag.exists()
    with contextlib.suppress(OSError):
        Image.open(tmp_path / name).load()
    assert flag.exists()  # the trap is sharp


# ---- other programs


@pytest.mark.parametrize("verb", ["predict", "evaluate", "quantize", "bench", "export"])
@pytest.mark.parametrize("where", ["a plain pickle", "the whole file", "a script"])
def test_a_pickle_in_the_place_of_a_model(
    verb: str, where: str, world: World, tmp_path: Path, refused: Refused
) -> None:
    flag = tmp_path / "sprung"
    path = tmp_path / ("evil.pth" if verb == "export" else "evil.tflite")
    path.write_bytes(CHECKPOINTS[where](flag))
    words = {
        "predict": (path, world.images / "red" / "000.png"), "evaluate": (world.images, path),
        "quantize": (path, world.images, "--out", tmp_path / "q"), "bench": (path,),
        "export": (path, world.images, "--out", tmp_path / "e"),
    }[verb]  # fmt: skip
    assert str(path) in refused(verb, *words)
    assert not flag.exists()


@pytest.mark.parametrize("kind", ["onnx", "executorch"])
def test_programs_of_other_runtimes_are_not_pickles(kind: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "executorch": "executorch"}[kind])
    flag, module = tmp_path / "sprung", {"onnx": onnx, "executorch": executorch}[kind]
    with pytest.raises(InputError):
        module.run_all(pickled(flag), np.zeros((1, 3, 32, 32), np.float32))
    assert not flag.exists()
