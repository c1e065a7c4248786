"""Where weights are found, that they are checked, and what is said when they cannot be had."""

import hashlib
import os
import re
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from formula import dino_shapes, state

from miga_bench.errors import UserError
from miga_bench.metrics.networks import original
from miga_bench.metrics.networks.amt import Amt
from miga_bench.metrics.networks.clip import B32_FILE
from miga_bench.metrics.networks.dino import DINO_FILE, Dino
from miga_bench.metrics.networks.judges import Musiq
from miga_bench.metrics.networks.raft import Raft
from miga_bench.metrics.networks.viclip import ViClip
from miga_bench.metrics.networks.weight_files import (
    WeightFile,
    check,
    locate,
    places,
    read_weights,
    with_version,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "vbench"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for switch in ("HF_HUB_OFFLINE", "MIGA_BENCH_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    return tmp_path


def served(tmp_path, tensors, **options):
    """A published file at a file: address."""
    source = tmp_path / "published.pth"
    torch.save(tensors, source)
    if "member" in options:
        archive = tmp_path / "published.zip"
        with zipfile.ZipFile(archive, "w") as stream:
            stream.write(source, options["member"])
        source = archive
    return WeightFile("Net", "net_model/net.pth", source.as_uri(), **options)


def test_vbench_and_torch_hub_and_clip_caches_are_looked_in(cache):
    assert places(DINO_FILE) == [
        cache / "vbench/dino_model/dino_vitbase16_pretrain.pth",
        cache / "torch/hub/checkpoints/dino_vitbase16_pretrain.pth",
    ]
    assert places(B32_FILE) == [
        cache / "vbench/clip_model/ViT-B-32.pt",
        cache / "home/.cache/clip/ViT-B-32.pt",
    ]
    there = places(DINO_FILE)[1]
    there.parent.mkdir(parents=True)
    there.write_bytes(b"")
    assert locate(DINO_FILE) == there


def test_vbench_cache_is_in_the_home_folder_by_default(cache, monkeypatch):
    monkeypatch.delenv("VBENCH_CACHE_DIR")
    assert places(DINO_FILE)[0].parent == cache / "home/.cache/vbench/dino_model"


@pytest.mark.parametrize("options", [{}, {"member": "models/net.pth"}])
def test_a_missing_file_is_downloaded_once_and_noted(cache, options):
    file = served(cache, {"a": torch.ones(3)}, **options)
    loaded = read_weights(None, file)
    assert torch.equal(loaded.content["a"], torch.ones(3))
    assert loaded.published
    target = cache / "vbench/net_model/net.pth"
    assert loaded.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert sorted(p.name for p in target.parent.iterdir()) == ["net.pth", "net.pth.sha256"]
    target.write_bytes(target.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"net\.pth\.sha256"):
        read_weights(None, file)


def test_a_downloaded_file_and_its_note_are_for_all_who_share_the_cache(cache):
    """Breaks if the file keeps what a temporary one has: nobody but the first user could read it."""
    before = os.umask(0o022)
    try:
        read_weights(None, served(cache, {"a": torch.ones(3)}))
    finally:
        os.umask(before)
    folder = cache / "vbench/net_model"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "left", [b"", b"\n", b"3f2a", b"\xff\xfe\x00", b"no hash at all", b"a" * 65, None]
)
def test_a_note_that_holds_no_hash_is_written_anew(cache, left):
    """Breaks if what a kill or a full disk left of a note ends every later run."""
    path, note = cache / "net.pth", cache / "net.pth.sha256"
    path.write_bytes(b"abc")
    file = WeightFile("Net", "net.pth", "url")
    if left is not None:
        note.write_bytes(left)
    digest = check(path, file)
    assert digest == hashlib.sha256(b"abc").hexdigest()
    assert note.read_text() == f"{digest}  net.pth\n"
    assert check(path, file) == digest
    path.write_bytes(b"abcd")
    with pytest.raises(UserError, match=r"not the one in net\.pth\.sha256"):
        check(path, file)


def test_a_note_that_cannot_be_read_or_written_stands_in_nobodys_way(cache):
    path = cache / "net.pth"
    path.write_bytes(b"abc")
    (cache / "net.pth.sha256").mkdir()
    assert check(path, WeightFile("Net", "net.pth", "url")) == hashlib.sha256(b"abc").hexdigest()
    assert sorted(p.name for p in cache.iterdir()) == ["net.pth", "net.pth.sha256"]


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(cache):
    file = served(cache, {"a": torch.ones(3)}, sha256="0" * 64)
    with pytest.raises(UserError, match="its publisher's") as refusal:
        read_weights(None, file)
    assert str(refusal.value).startswith(
        f"{places(file)[0]}: what {file.url} gives has the SHA-256"
    )
    assert ".part" not in str(refusal.value)
    assert list((cache / "vbench/net_model").iterdir()) == []


def test_the_beginning_of_a_hash_is_enough_to_check(cache):
    path = cache / "file"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert check(path, WeightFile("Net", "file", "url", sha256=digest[:8])) == digest
    with pytest.raises(UserError, match="SHA-256"):
        check(path, WeightFile("Net", "file", "url", sha256="0" * 8))


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "MIGA_BENCH_OFFLINE"])
def test_offline_says_what_where_and_from(cache, monkeypatch, switch):
    monkeypatch.setenv(switch, "1")
    with pytest.raises(UserError) as refusal:
        Dino()
    message = str(refusal.value)
    assert "\n" not in message
    for part in (switch, DINO_FILE.url, *map(str, places(DINO_FILE))):
        assert part in message


def test_a_failing_download_says_the_same(cache):
    file = WeightFile("Net", "net_model/net.pth", (cache / "nowhere").as_uri())
    with pytest.raises(UserError, match=r"could not be downloaded.*put the file there from file:"):
        locate(file)


def test_numbers_of_a_training_may_lie_beside_the_tensors_but_code_may_not(cache):
    file = served(cache, {"state_dict": {"a": torch.ones(3)}, "psnr": np.float64(36.5)})
    assert read_weights(None, file).content["psnr"] == 36.5
    (cache / "vbench").rename(cache / "old")
    with pytest.raises(
        UserError, match=r"no tensors of Net .*Unsupported global: .*\bprint\b"
    ) as told:
        read_weights(None, served(cache, {"a": print}))
    assert "Please" not in str(told.value)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_either_numpy_are_read(cache, core):
    written, path = cache / "written.pth", cache / "net.pth"
    torch.save({"a": torch.ones(3), "lr": np.float64(0.5)}, written)
    with zipfile.ZipFile(written) as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("/data.pkl"):
                content = re.sub(rb"numpy\._?core\.", f"numpy.{core}.".encode(), content)
                assert f"numpy.{core}.multiarray".encode() in content
            after.writestr(name, content)
    assert read_weights(path, WeightFile("Net", "net.pth", "url")).content["lr"] == 0.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archives_are_read(cache):
    path = cache / "ViT.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    content = read_weights(path, WeightFile("Net", "ViT.pt", "url")).content
    assert {key: tuple(t.shape) for key, t in content.items()} == {"weight": (3, 2), "bias": (3,)}


def test_own_weights_name_themselves(cache):
    weights = state("dino", dino_shapes())
    encoder = Dino(weights=weights)
    assert encoder.label == "dino:own"
    assert encoder.provenance.weights == "given"
    changed = weights | {"norm.bias": weights["norm.bias"] + 1}
    assert Dino(weights=changed).provenance.sha256 != encoder.provenance.sha256
    torch.save(weights, cache / "my.pth")
    mine = Dino(weights=cache / "my.pth")
    assert (mine.label, mine.provenance.weights) == ("dino:own", "my.pth")


def test_wrong_weights_are_one_line():
    weights = state("dino", dino_shapes())
    del weights["blocks.1.attn.proj.bias"]
    with pytest.raises(UserError, match="no weights of DINO ViT-B/16") as refusal:
        Dino(weights=weights)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="no weights of DINO ViT-B/16"):
        Dino(weights={"a": torch.ones(2)})
    with pytest.raises(UserError, match="there is no such file"):
        Dino(weights="nowhere.pth")


def test_networks_of_the_vbench_package_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(original.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps vbench==0\.1\.5"):
        Amt()


class Layer(torch.nn.Linear):
    """Stands for a network of another package."""

    def __init__(self, *args, **options):
        super().__init__(2, 2)


@pytest.mark.parametrize(
    ("network", "package"),
    [(Amt, "vbench"), (Raft, "vbench"), (ViClip, "vbench"), (Musiq, "pyiqa")],
)
def test_a_network_of_another_package_says_its_version(cache, monkeypatch, network, package):
    """Breaks if scores by one version of its code pass as those by another."""
    made = SimpleNamespace(
        Model=Layer, RAFT=Layer, ViCLIP=Layer, MUSIQ=Layer, SimpleTokenizer=lambda path: None
    )
    monkeypatch.setattr(original, "module", lambda *_: made)
    monkeypatch.setitem(sys.modules, "pyiqa", made)
    monkeypatch.setitem(sys.modules, "pyiqa.archs", made)
    monkeypatch.setitem(sys.modules, "pyiqa.archs.musiq_arch", made)
    monkeypatch.setattr("miga_bench.metrics.networks.viclip.locate", lambda file: cache)
    told = {"vbench": "0.1.5", "pyiqa": "0.1.14"}
    monkeypatch.setattr("miga_bench.metrics.networks.weight_files.version", told.__getitem__)
    weights = Layer().state_dict()
    assert network(weights=weights).provenance.weights == f"given; {package} {told[package]}"


def test_a_package_that_is_only_found_has_no_version():
    assert with_version("nobodys-package") == "nobodys-package of no version"
