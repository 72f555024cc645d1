from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilefit.data.shard_names import expand_braces, is_shards, list_shards
from mobilefit.errors import InputError

from .shard_server import serve

PATTERNS = ["a.tar", "a-{0..3}.tar", "a-{008..011}.tar", "{train,val}-{0..1}.tar", "{3..1}", "a{b}c",
            "x{train-{0..2},val-{0..0}}.tar", "{a,{b,c}}{,d}", "s3://b/{00..15}/{x,y}.tar"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_braces_are_expanded_as_by_webdatasets_own_expander(pattern: str) -> None:
    other = pytest.importorskip("braceexpand")
    assert expand_braces(pattern) == list(other.braceexpand(pattern))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("a-{0..3.tar", "not closed in 'a-"), ("{0..99999999}.tar", "over 1,000,000"),
     ("{000..999}{000..999}{0,1}.tar", "over 1,000,000")],
)  # fmt: skip
def test_bad_braces_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand_braces(pattern)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def parts(source: object, root: Path) -> dict[str, list[str]]:
    found = list_shards(str(source)).parts
    base = f"{root.resolve()}/"
    return {part: [path.removeprefix(base) for path in paths] for part, paths in found.items()}


@pytest.mark.parametrize("second", ["val", "valid", "validation", "test"])
def test_a_second_folder_is_the_test_set(tmp_path: Path, second: str) -> None:
    touch(tmp_path, "train/1.tar", "train/0.tar", "train/.hidden.tar", f"{second}/0.tar", "a.txt")
    found = parts(tmp_path, tmp_path)
    assert found == {"train": ["train/0.tar", "train/1.tar"], "test": [f"{second}/0.tar"]}


def test_a_validation_folder_beside_test_is_held_out(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.tar", "val/0.tar", "test/0.tar")
    found = parts(tmp_path, tmp_path)
    assert found == {"train": ["train/0.tar"], "val": ["val/0.tar"], "test": ["test/0.tar"]}


def test_shards_directly_in_the_folder_are_for_training(tmp_path: Path) -> None:
    assert parts(touch(tmp_path, "b.tar", "a.tar"), tmp_path) == {"train": ["a.tar", "b.tar"]}


def test_the_shards_own_names_say_their_part(tmp_path: Path) -> None:
    touch(tmp_path, "in1k-train-00.tar", "in1k-train-01.tar", "in1k-validation-00.tar")
    found = {"train": ["in1k-train-00.tar", "in1k-train-01.tar"], "test": ["in1k-validation-00.tar"]}
    assert parts(tmp_path, tmp_path) == found
    pattern = f"{tmp_path}/in1k-{{train-{{00..01}},validation-00}}.tar"
    assert parts(pattern, tmp_path) == found


def test_one_name_without_a_part_among_others_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train-0.tar", "more-0.tar")
    with pytest.raises(InputError, match=r"train-0\.tar says which part .*more-0\.tar does not"):
        list_shards(str(tmp_path))


def test_a_pattern_of_an_address_tells_name_parts_and_where_classes_may_be() -> None:
    found = list_shards("s3://bucket/in1k/{train,val}/in1k-{0..1}.tar?sign=x")
    base = "s3://bucket/in1k"
    assert found.name == "in1k" and found.parts == {
        "train": [f"{base}/train/in1k-{n}.tar?sign=x" for n in range(2)],
        "test": [f"{base}/val/in1k-{n}.tar?sign=x" for n in range(2)],
    }
    assert found.beside == (f"{base}/train/classes.txt", f"{base}/classes.txt")
    assert list_shards("http://host/imagenet-train-{0000..0146}.tar").name == "imagenet-train"


def test_a_manifest_names_parts_and_classes_relative_to_itself(tmp_path: Path) -> None:
    content = {"train": ["a/{0..1}.tar", "http://host/2.tar"], "val": "/abs/3.tar", "classes": ["x", "y"]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    expected = {"train": ["a/0.tar", "a/1.tar", "http://host/2.tar"], "test": ["/abs/3.tar"]}
    assert parts(tmp_path / "set.json", tmp_path) == expected
    assert list_shards(str(tmp_path / "set.json")).class_names() == ("x", "y")


def test_a_remote_manifest_is_read_and_has_remote_shards(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "set.json").write_text('{"train": ["{0..1}.tar", "/top.tar"]}')
    (tmp_path / "sub" / "classes.txt").write_text("cat\ndog\n")
    with serve(tmp_path) as server:
        found = list_shards(f"{server.url}/sub/set.json?key=1")
        names = ["sub/0.tar", "sub/1.tar", "top.tar"]
        assert found.parts == {"train": [f"{server.url}/{name}" for name in names]}
        assert found.name == "set" and found.class_names() == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "is no manifest"), ("{", "not valid JSON"), ('{"val": ["a.tar"]}', "no shards to train"),
     ('{"trian": ["a.tar"]}', "'trian'; did you mean 'train'"), ('{"train": [1]}', "no list of texts"),
     ('{"train": ["a.tar", "a.tar"]}', r"a\.tar is named twice"),
     ('{"train": ["a.tar"], "val": ["a.tar"]}', r"a\.tar is named twice"),
     ('{"train": ["a.tar"], "val": ["b.tar"], "valid": []}', "more than one of val, valid"),
     ('{"train": ["a.tar"], "classes": "x"}', '"classes" is no list')],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(InputError, match=message):
        list_shards(str(tmp_path / "set.json"))


def test_a_part_without_shards_and_two_validation_folders_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.tar", "val/notes.txt")
    with pytest.raises(InputError, match=r"val holds no shard \(\*\.tar\)"):
        list_shards(str(tmp_path))
    touch(tmp_path, "val/0.tar", "valid/0.tar")
    with pytest.raises(InputError, match="more than one of val, valid, validation"):
        list_shards(str(tmp_path))


def test_an_address_that_is_no_shard_is_refused() -> None:
    with pytest.raises(InputError, match=r"'http://host/images/' names no shard: .*\{0000\.\.0146\}"):
        list_shards("http://host/images/")


def test_class_names_lie_beside_the_shards_or_above(tmp_path: Path) -> None:
    touch(tmp_path, "train/0.tar")
    assert list_shards(str(tmp_path)).class_names() is None
    (tmp_path / "classes.txt").write_text("cat \nbig dog\n\n")
    assert list_shards(str(tmp_path)).class_names() == ("cat", "big dog")
    assert list_shards(f"{tmp_path}/{{train,val}}/0.tar").class_names() == ("cat", "big dog")
    (tmp_path / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(InputError, match="class name 'cat' comes twice"):
        list_shards(str(tmp_path)).class_names()
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        list_shards(str(tmp_path)).class_names()


def test_what_names_shards_and_what_does_not(tmp_path: Path) -> None:
    assert is_shards("http://host/x-{0..1}.tar") and is_shards("a/{0..1}.tar") and is_shards("m.json")
    assert is_shards(str(touch(tmp_path / "direct", "0.tar")))
    assert is_shards(str(touch(tmp_path / "parts", "train/0.tar")))
    assert not is_shards(str(touch(tmp_path / "classes", "cat/0.jpg", "backup.tar")))
    assert not is_shards(str(touch(tmp_path / "both", "train/cat/0.jpg", "train/backup.tar")))
    assert not is_shards("fashion-mnist") and not is_shards(str(tmp_path / "absent"))
