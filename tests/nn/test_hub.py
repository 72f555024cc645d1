"""Models and weights of torchvision and timm: which they are, and every way in which a hub can fail."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision

from mobilefit.arch import spec
from mobilefit.data.fashion_mnist import cache_folder
from mobilefit.errors import InputError
from mobilefit.nn import hub
from mobilefit.nn.hub import PUBLISHED, Model, constants, model, published
from mobilefit.nn.network import Network
from mobilefit.nn.weights import mismatches, read_weights, recognised, trained

LARGE, SMALL = spec("mobilenet_v3_large"), spec("mobilenet_v3_small")
NAMES = [(of, name) for of in PUBLISHED for name in PUBLISHED[of]]


# ---- which model is which network


@pytest.mark.parametrize(("of", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_published_network_has_our_table(of: hub.Hub, name: str) -> None:
    found = model(f"{of}:{name}")
    assert found is not None and (found.url or found.repository)
    with torch.device("meta"):
        peer = found.build()
        network = Network(PUBLISHED[of][name].classes(found.classes))
        state = trained(network, peer.state_dict()).state
    # a 1x1 convolution as the last hidden layer is a linear one here
    assert not mismatches(network.state_dict(), state)
    assert constants(peer) == (
        "same" if name.startswith("tf_") else "torch",
        1e-3 if "mobilenet_v3" in name or name.startswith("tf_") else 1e-5,
    )


@pytest.mark.parametrize(
    ("of", "made", "name"),
    [
        ("torchvision", spec("mobilenet_v2"), "mobilenet_v2"),
        ("torchvision", LARGE.resolution(96).classes(3), "mobilenet_v3_large"),
        ("torchvision", SMALL.width(0.75), "mobilenet_v3_small"),
        ("torchvision", spec("mnasnet_b1").width(0.6), "mnasnet0_75"),
        ("timm", LARGE, "tf_mobilenetv3_large_100.in1k"),
        ("timm", LARGE.width(0.75), "tf_mobilenetv3_large_075.in1k"),
        ("timm", LARGE.width(0.8), "tf_mobilenetv3_large_100.in1k"),
        ("timm", LARGE.width(0.35), "tf_mobilenetv3_large_075.in1k"),
        ("timm", SMALL.width(0.5), "mobilenetv3_small_050.lamb_in1k"),
        ("timm", spec("mobilenet_v3_small_minimalistic"), "tf_mobilenetv3_small_minimal_100.in1k"),
        ("timm", spec("mobilenet_v1"), "mobilenetv1_100.ra4_e3600_r224_in1k"),
        ("timm", spec("mnasnet_a1").padded("torch"), "semnasnet_100.rmsp_in1k"),
        ("timm", spec("efficientnet_lite0"), "tf_efficientnet_lite0.in1k"),
        ("timm", spec("efficientnet_lite3"), "tf_efficientnet_lite3.in1k"),
        ("timm", spec("lcnet").width(0.75), "lcnet_075.ra2_in1k"),
        ("timm", spec("mobilenetv4_conv_small"), "mobilenetv4_conv_small.e2400_r224_in1k"),
        ("timm", spec("mobilenetv4_conv_small").width(0.5), "mobilenetv4_conv_small_050.e3000_r224_in1k"),
        ("timm", spec("mobilenetv4_conv_medium"), "mobilenetv4_conv_medium.e500_r256_in1k"),
        ("timm", LARGE.width(1.25), "tf_mobilenetv3_large_100.in1k"),  # refused later, as too narrow
    ],
)
def test_a_hubs_name_alone_is_its_narrowest_weights_that_are_wide_enough(
    of: hub.Hub, made: object, name: str
) -> None:
    assert published(of, made) == name  # type: ignore[arg-type]
    found = model(of, made)  # type: ignore[arg-type]
    assert found is not None and found.architecture == name.partition(".")[0]


def test_a_network_that_a_hub_does_not_have() -> None:
    with pytest.raises(InputError) as caught:
        published("torchvision", spec("mnasnet_a1"))
    assert str(caught.value) == (
        "torchvision has no weights for the rows of 'mnasnet_a1'; there is timm:semnasnet_100.rmsp_in1k"
    )
    with pytest.raises(InputError, match="train from scratch, or give a file"):
        published("timm", spec("mobilenet_v3_edgetpu"))


def test_other_activations_are_other_rows() -> None:
    with pytest.raises(InputError, match="no weights for the rows"):
        published("timm", LARGE.activations({"hard_swish": "relu"}))


@pytest.mark.parametrize(
    ("name", "made"),
    [("mobilenetv3_large_100", LARGE), ("mobilenetv2_050", spec("mobilenet_v2").width(0.5)),
     ("mobilenetv1_100", spec("mobilenet_v1")), ("tf_mobilenetv3_small_075", SMALL.width(0.75)),
     ("lcnet_035", spec("lcnet").width(0.35)), ("lcnet_100", spec("lcnet")),
     ("mobilenetv4_conv_small_035", spec("mobilenetv4_conv_small").width(0.35)),
     ("mobilenetv4_conv_medium", spec("mobilenetv4_conv_medium"))],
)  # fmt: skip
def test_weights_are_recognised_by_their_tensors(name: str, made: object) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=7).state_dict()
    found = recognised(state, name)
    assert found is not None and found.name == made.name  # type: ignore[attr-defined]
    assert found.head.num_classes == 7


def test_weights_of_no_network_of_the_family_are_not_recognised() -> None:
    with torch.device("meta"):
        assert recognised(timm.create_model("resnet18").state_dict(), "x") is None
        assert recognised(timm.create_model("efficientnet_b0").state_dict(), "x") is None


# ---- names


def test_preprocessing_comes_with_the_name() -> None:
    half, imagenet = ((0.5,) * 3, (0.5,) * 3), hub.IMAGENET
    for source, expected in {
        "torchvision:mobilenet_v2": imagenet,
        "torchvision:mobilenet_v3_small": imagenet,
        "timm:tf_mobilenetv3_large_100": half,
        "timm:mobilenetv3_large_100.ra_in1k": imagenet,
        "timm:mobilenetv1_100": half,
        "timm:mobilenetv3_large_100.miil_in21k": ((0.0,) * 3, (1.0,) * 3),
        "timm:mobilenetv4_conv_small_050": half,
        "timm:mobilenetv4_conv_medium": imagenet,
    }.items():
        found = model(source)
        assert found is not None and (found.mean, found.std) == expected, source


def test_a_model_says_which_size_it_was_made_for() -> None:
    sides = {"timm:test_vit": 160, "torchvision:vit_b_16": 224, "timm:resnet18": 224,
             "torchvision:inception_v3": 299}  # fmt: skip
    for source, side in sides.items():
        found = model(source)
        assert found is not None and found.side == side, source


def test_torchvisions_weights_by_their_own_name() -> None:
    first = model("torchvision:MobileNet_V2_Weights.IMAGENET1K_V1")
    best = model("torchvision:mobilenet_v2")
    assert first is not None and first.url is not None and first.url.endswith("mobilenet_v2-b0353104.pth")
    assert best is not None and best.name == "MobileNet_V2_Weights.IMAGENET1K_V2"
    assert first.architecture == best.architecture == "mobilenet_v2"


def test_a_path_is_no_model() -> None:
    for source in ("net.pth", "timm.pth", "./timm", "runs/timm:x/model.safetensors", "C:\\timm"):
        assert model(source, SMALL) is None


def test_a_file_of_the_users_own() -> None:
    found = model("timm:resnet18=runs/a=b.pth")
    assert found is not None and found.file == Path("runs/a=b.pth") == found.fetch()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("timm:mobilenetv3_large_10", "unknown timm model 'mobilenetv3_large_10'; did you mean 'mobilenetv3_large_100'?"),
        ("timm:mobilenetv3_large_100.ra", "timm has no weights 'ra' of mobilenetv3_large_100; there are "),
        ("torchvision:mobilenet_v3_lrge", "did you mean 'mobilenet_v3_large'?"),
        ("torchvision:MobileNet_V2_Weights.IMAGENET1K_V3", "did you mean 'MobileNet_V2_Weights.IMAGENET1K_V2'?"),
        ("timm", "'timm' names no model; write timm:NAME"),
        ("torchvision:", "'torchvision:' names no model; write torchvision:NAME"),
    ],
)  # fmt: skip
def test_a_name_that_is_none(source: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        model(source)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_without_weights_wants_a_file() -> None:
    found = model("timm:mobilenetv3_large_075")
    assert found is not None
    with pytest.raises(InputError, match=r"timm has no weights of mobilenetv3_large_075; give a file"):
        found.fetch()


# ---- hubs on this machine

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server that answers GET and HEAD in this way; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextlib.contextmanager
def silence() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


def sending(content: bytes, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    return answer


def failing(status: int) -> Answer:
    return lambda request: request.send_error(status)


class Place:
    """One of the two hubs, with a place in a temporary folder for its cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = monkeypatch, folder

    def content(self) -> tuple[bytes, dict[str, torch.Tensor]]:
        raise NotImplementedError

    def at(self, address: str) -> Model:
        raise NotImplementedError

    def answer(self, content: bytes) -> Answer:
        raise NotImplementedError


class Torchvision(Place):
    """mobilenet_v3_small's address is patched; the file's name tells its checksum."""

    weights = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    name = "mobilenet_v3_small-{}.pth"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        super().__init__(monkeypatch, folder)
        monkeypatch.setenv("TORCH_HOME", str(folder))
        self.cache = folder / "hub" / "checkpoints"
        self.good, self.state = self.content()
        self.file = self.name.format(hashlib.sha256(self.good).hexdigest()[:8])
        self.told = self.file

    def content(self) -> tuple[bytes, dict[str, torch.Tensor]]:
        state = torchvision.models.mobilenet_v3_small().state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue(), state

    def at(self, address: str) -> Model:
        self.patch.setattr(self.weights.value, "url", f"{address}/models/{self.file}")
        found = model("torchvision", SMALL)
        assert found is not None
        return found

    def answer(self, content: bytes) -> Answer:
        return sending(content)

    def hint(self, address: str) -> str:
        return ("put the file there, or give its path: "
                "torchvision:MobileNet_V3_Small_Weights.IMAGENET1K_V1=FILE")  # fmt: skip


class Timm(Place):
    """huggingface_hub's address is patched; it says the content's checksum as the ETag."""

    repository = "timm/tf_mobilenetv3_small_100.in1k"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        super().__init__(monkeypatch, folder)
        self.cache = folder / "cache"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.cache))
        self.good, self.state = self.content()
        self.told = f"model.safetensors of {self.repository}"

    def content(self) -> tuple[bytes, dict[str, torch.Tensor]]:
        state = timm.create_model("tf_mobilenetv3_small_100").state_dict()
        return safetensors.torch.save(state, {"format": "pt"}), state

    def at(self, address: str) -> Model:
        known = huggingface_hub.constants
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        self.patch.setattr(known, "ENDPOINT", address)
        self.patch.setattr(known, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        found = model("timm", SMALL)
        assert found is not None
        return found

    def answer(self, content: bytes) -> Answer:
        digest = hashlib.sha256(self.good).hexdigest()
        return sending(content, X_Repo_Commit="a" * 40, ETag=f'"{digest}"')

    def hint(self, address: str) -> str:
        return (f"fetch {address}/{self.repository}/resolve/main/model.safetensors on a machine that can, "
                "and give its path: timm:tf_mobilenetv3_small_100.in1k=FILE")  # fmt: skip


@pytest.fixture(params=[Torchvision, Timm], ids=["torchvision", "timm"])
def place(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Torchvision | Timm:
    made: Torchvision | Timm = request.param(monkeypatch, tmp_path)
    return made


def refusal(found: Model) -> str:
    with pytest.raises(InputError) as caught:
        found.fetch()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_downloaded_once(place: Torchvision | Timm, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(place.answer(place.good)) as address:
        path = place.at(address).fetch()
        said = capsys.readouterr()
        assert said.out == ""  # results go there; torch.hub's own loader prints
        assert said.err == f"downloading {place.told} from {address.removeprefix('http://')}\n"
    state = read_weights(path).state
    assert all(torch.equal(state[key], value) for key, value in place.state.items())
    assert place.cache in path.parents
    with nobody() as address:
        assert place.at(address).fetch() == path
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing(place: Torchvision | Timm, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(place.answer(place.good)) as address:
        place.at(address).fetch(quiet=True)
    said = capsys.readouterr()
    assert said.out == said.err == ""


@pytest.mark.parametrize(
    ("server", "why"),
    [(silence, "it does not answer"), (nobody, "Connection refused"),
     (lambda: serving(failing(404)), "HTTP 404"), (lambda: serving(failing(503)), "HTTP 503")],
    ids=["silent", "refused", "404", "503"],
)  # fmt: skip
def test_a_hub_that_does_not_give_the_file(
    server: Callable[[], contextlib.AbstractContextManager[str]], why: str, place: Torchvision | Timm
) -> None:
    place.patch.setattr(hub, "TIMEOUT_S", 0.5)
    started = time.monotonic()
    with server() as address:
        said = refusal(place.at(address))
    assert time.monotonic() - started < 15
    host = address.removeprefix("http://")
    assert said == (
        f"cannot download {place.told} from {host} into {place.cache} ({why}); {place.hint(address)}"
    )
    assert not [path for path in place.cache.rglob("*") if path.is_file()]


def test_a_host_that_nobody_knows() -> None:
    found = Model(hub="torchvision", name="n", architecture="a", mean=(0, 0, 0), std=(1, 1, 1), side=None,
                  classes=2, url="http://nowhere.invalid/a-0123abcd.pth")  # fmt: skip
    assert "a-0123abcd.pth from nowhere.invalid into " in (said := refusal(found))
    assert "urlopen" not in said and "Errno" not in said


def test_a_download_with_another_checksum(place: Torchvision | Timm) -> None:
    other = bytes(reversed(place.good))
    with serving(place.answer(other)) as address:
        said = refusal(place.at(address))
    if isinstance(place, Torchvision):
        assert "(what came has another checksum); put the file there" in said
        assert not list(place.cache.iterdir())
    else:  # the hub's client has put it into its cache
        assert "is damaged: its SHA-256 is not the hub's; delete it to download it anew" in said


def test_a_cached_file_that_is_damaged(place: Torchvision | Timm) -> None:
    with serving(place.answer(place.good)) as address:
        path = place.at(address).fetch().resolve()
    path.write_bytes(place.good[:-1] + b"x")
    with nobody() as address:
        said = refusal(place.at(address))
    assert said == f"{path} is damaged: its SHA-256 is not the hub's; delete it to download it anew"


def test_a_cache_that_cannot_be_written(place: Torchvision | Timm) -> None:
    place.cache.parent.mkdir(parents=True, exist_ok=True)
    place.cache.write_text("a file in the folder's place")
    with serving(place.answer(place.good)) as address:
        said = refusal(place.at(address))
    assert f"into {place.cache} (" in said and "give its path" in said


def test_a_full_disk(place: Torchvision | Timm, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.hub, "download_url_to_file", full)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with serving(place.answer(place.good)) as address:
        assert "(No space left on device)" in refusal(place.at(address))


def test_a_hub_that_stops_in_the_middle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Torchvision(monkeypatch, tmp_path)
    stop = threading.Event()

    def half(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(place.good)))
        request.end_headers()
        request.wfile.write(place.good[: len(place.good) // 2])
        request.wfile.flush()
        stop.wait(60)

    monkeypatch.setattr(hub, "TIMEOUT_S", 0.5)
    with serving(half) as address:
        said = refusal(place.at(address))
        stop.set()
    assert "(it does not answer)" in said and not list(place.cache.iterdir())


def test_the_sockets_patience_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Torchvision(monkeypatch, tmp_path)
    before = socket.getdefaulttimeout()
    with nobody() as address:
        refusal(place.at(address))
    assert socket.getdefaulttimeout() == before


# ---- models with their weights


def test_a_model_with_the_hubs_weights(place: Torchvision | Timm) -> None:
    with serving(place.answer(place.good)) as address:
        made = place.at(address).trained(quiet=True)
    assert not made.training
    assert all(torch.equal(made.state_dict()[key], value) for key, value in place.state.items())


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "torchvision:mobilenet_v3_small",
                                  "torchvision:squeezenet1_1"])  # fmt: skip
def test_a_users_file_tells_its_number_of_classes(name: str, tmp_path: Path) -> None:
    peer = model(name)
    assert peer is not None
    torch.save({"state_dict": peer.build(4).state_dict()}, tmp_path / "own.pth")
    found = model(f"{name}={tmp_path / 'own.pth'}")
    assert found is not None
    made, side = found.trained(), found.side
    with torch.no_grad():
        assert made(torch.zeros(1, 3, side, side)).shape == (1, 4)
    first = next(iter(made.state_dict()))
    assert torch.equal(made.state_dict()[first], read_weights(tmp_path / "own.pth").state[first])


def test_a_users_file_of_another_model_names_tensors(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "own.pth")
    found = model(f"timm:test_vit={tmp_path / 'own.pth'}")
    assert found is not None
    with pytest.raises(InputError) as caught:
        found.trained()
    said = str(caught.value)
    assert f"{tmp_path / 'own.pth'} fits another model than timm:test_vit." in said
    assert "cls_token is missing, the network's is 1x1x64" in said and "\n" not in said


def test_building_leaves_the_callers_random_state_alone() -> None:
    found = model("timm:test_resnet")
    assert found is not None
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found.build()
    assert torch.equal(torch.rand(1), expected)


def test_without_a_home_no_folder_of_that_name_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry in /etc/passwd, as in containers."""

    def no_entry(_: int) -> None:
        raise KeyError("no entry")

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    for name in ("HOME", "TORCH_HOME", "XDG_CACHE_HOME", "MOBILEFIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.chdir(tmp_path)
    peer: Any = SimpleNamespace(title="timm:any")
    with pytest.raises(InputError, match=r"no home folder .*TORCH_HOME"):
        hub._from_address(peer, "http://127.0.0.1:1/any.pth", True)
    with pytest.raises(InputError, match=r"no home folder .*HF_HOME"):
        hub._from_hugging_face(peer, "timm/any", True)
    assert list(tmp_path.iterdir()) == [] and str(cache_folder()).startswith(os.devnull)
