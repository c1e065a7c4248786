"""What is fetched of a Wan model on the Hub, when, and what is said where it cannot be had."""

import fnmatch
import json
import shutil

import pytest
import torch
from helpers import refusal
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from wan_fixtures import tiny_folder
from wan_original import original_folder

from miga_bench.backbones import hub_files, load_backbone, wan_checkpoint, wan_hub
from miga_bench.backbones.wan_checkpoint import (
    ORIGINAL_TEXT,
    ORIGINAL_TRANSFORMER,
    ORIGINAL_VAE,
    find_source,
)
from miga_bench.offline import OFFLINE

ORIGINAL = "Wan-AI/Wan2.1-T2V-1.3B"
COMMIT = "0123abcd" * 5


class Hub:
    """A repository that can be fetched from, file by file, into a snapshot."""

    def __init__(self, content, cache):
        self.content, self.snapshot = content, cache / COMMIT
        self.fetched, self.revisions, self.fault = [], [], None

    def __call__(self, repository, *, allow_patterns, revision=None, local_files_only=False):
        self.revisions.append(revision)
        if local_files_only and not self.snapshot.exists():
            raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
        if local_files_only:
            return str(self.snapshot)
        if self.fault:
            raise self.fault
        for path in sorted(p for p in self.content.rglob("*") if p.is_file()):
            name = path.relative_to(self.content).as_posix()
            here = self.snapshot / name
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and not here.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, here)
                self.fetched.append(name)
        return str(self.snapshot)


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that puts a folder's files on the Hub."""

    def put(content):
        stand_in = Hub(content, tmp_path / "snapshots")
        monkeypatch.setattr(hub_files, "snapshot_download", stand_in)
        return stand_in

    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path / "cache"))
    for switch in OFFLINE:
        monkeypatch.delenv(switch, raising=False)
    return put


def test_the_original_repository_is_fetched_and_its_encoder_when_needed(
    hub, folder, tmp_path, monkeypatch
):
    """Breaks if the authors' own repository ends in `transformer/config.json is missing`."""
    root, (transformer, _, _) = original_folder(tmp_path / "original", folder / "tokenizer")
    there = hub(root)
    backbone = load_backbone(ORIGINAL, height=32, width=48)
    assert {ORIGINAL_TRANSFORMER, ORIGINAL_VAE, "config.json"} <= set(there.fetched)
    assert ORIGINAL_TEXT not in there.fetched
    weights = backbone.denoiser.transformer.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in transformer.state_dict().items())
    monkeypatch.setattr(wan_checkpoint, "BIG_ENCODER", 1)  # bfloat16, as all on the Hub
    copy = load_backbone(root, height=32, width=48)
    assert torch.equal(backbone.encode(["a red circle"]), copy.encode(["a red circle"]))
    assert ORIGINAL_TEXT in there.fetched
    assert backbone.flow_shift == copy.flow_shift == 5.0
    assert backbone.source.text_identity == f"{ORIGINAL}@{COMMIT}"


@pytest.mark.parametrize(
    ("name", "shift"),
    [("wan2.1-1.3b", 5.0), ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 5.0), ("someone/distilled", 3.0)],
)
def test_the_authors_repositories_alone_have_the_releases_shift(hub, folder, name, shift):
    """Breaks if a distilled model's shift is replaced, or the authors' scheduler file (3.0) counts."""
    hub(folder)
    assert load_backbone(name, height=32, width=48).flow_shift == shift
    assert load_backbone(name, height=32, width=48, flow_shift=8.0).flow_shift == 8.0


@pytest.mark.parametrize(("told", "shift"), [(3.0, None), (8.0, 8.0)])
def test_a_repository_and_its_copy_are_sampled_alike(hub, folder, told, shift):
    """Breaks if the same files have one shift by their id and another as a folder."""
    for part, change in (
        ("transformer/config.json", {"text_dim": 4096}),
        ("scheduler/scheduler_config.json", {"flow_shift": told}),
    ):
        path = folder / part
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    hub(folder)
    assert wan_hub.HubSource("someone/tuned").flow_shift() == shift
    assert find_source(folder).flow_shift() == shift


def test_of_a_repository_in_both_layouts_one_is_fetched(hub, folder, tmp_path):
    """Breaks if gigabytes come twice."""
    root, _ = original_folder(tmp_path / "original", folder / "tokenizer")
    there = hub(shutil.copytree(root, folder, dirs_exist_ok=True))
    load_backbone("someone/both", height=32, width=48)
    assert not {ORIGINAL_TRANSFORMER, ORIGINAL_VAE, ORIGINAL_TEXT} & set(there.fetched)
    assert "transformer/diffusion_pytorch_model.safetensors" in there.fetched


def test_a_model_of_two_denoisers_is_refused_before_it_is_fetched(hub, folder):
    """Breaks if tens of gigabytes come first."""
    (folder / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.875}))
    there = hub(folder)
    assert "is of a Wan2.2 model" in refusal(
        lambda: load_backbone("Wan-AI/Wan2.2-T2V-A14B-Diffusers")
    )
    assert set(there.fetched) == {"model_index.json", "transformer/config.json"}


def test_all_files_are_of_one_commit(hub, folder):
    """Breaks if an encoder that was published later joins a denoiser loaded before."""
    there = hub(folder)
    load_backbone("someone/else", height=32, width=48).encode(["a red circle"])
    assert there.revisions == [None, COMMIT, COMMIT]


def test_a_repository_of_something_else(hub, tmp_path):
    """Breaks if a repository without a model ends in the path of a folder nobody knows."""
    for name in ("README.md", "config.json"):
        (tmp_path / "other").mkdir(exist_ok=True)
        hub(tmp_path / "other")
        message = refusal(lambda: load_backbone("someone/else"))
        assert "someone/else on the Hub holds none of the files" in message
        (tmp_path / "other" / name).write_text("{}")


# what the Hub's client lets through: HTTP errors that are no OSError, the transfer's own
FAULTS = [
    HfHubHTTPError.__mro__[1]("the proxy says no\nand more"),
    RuntimeError("the proxy says no"),
    OSError("the proxy says no"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_network_that_fails_in_any_way(hub, folder, fault):
    """Breaks if a proxy's error ends in a traceback, or stops a model that is all here."""
    there = hub(folder)
    there.fault = fault
    message = refusal(lambda: load_backbone("someone/else"))
    assert "(the proxy says no); where there is a network run `hf download someone/else" in message
    there.fault = None
    load_backbone("someone/else", height=32, width=48).encode(["a red circle"])
    there.fault = fault
    load_backbone("someone/else", height=32, width=48).encode(["a green square"])


@pytest.mark.parametrize("switch", OFFLINE)
def test_nothing_is_fetched_with_downloads_off(hub, folder, monkeypatch, switch):
    """Breaks if a switch that scores obey is not one for models."""
    there = hub(folder)
    monkeypatch.setenv(switch, "1")
    message = refusal(lambda: load_backbone("someone/else"))
    assert f"(downloads are off ({switch}))" in message
    assert there.fetched == []


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_an_encoder_that_is_not_here_says_what_to_fetch(hub, folder, monkeypatch, tmp_path, layout):
    """Breaks if a copy without its text encoder ends in the path of a file, and no command."""
    if layout == "original":
        folder = original_folder(tmp_path / "original", folder / "tokenizer")[0]
    hub(folder)
    backbone = load_backbone("someone/else", height=32, width=48)
    monkeypatch.setenv("MIGA_BENCH_OFFLINE", "1")
    for call in (backbone.encode, backbone.check_prompts):
        message = refusal(lambda call=call: call(["a red circle"]))
        assert "not on this machine); where there is a network run `hf download some" in message
