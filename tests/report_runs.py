"""Runs written by hand, with numbers that a test knows: what ``miga-bench report`` reads."""

import hashlib
import json
import math

import torch
import yaml

from miga_bench.harness.seals import sealed
from miga_bench.media import VideoWriter

SCORER = "suite-0123456789abcdef.json"
PROVENANCE = {
    "started": "2026-01-02T03:04:05+00:00",
    "git": {"commit": "c0ffee", "changed": False},
    "versions": {"python": "3.11.9", "torch": "2.9.0"},
    "hardware": {"device": "cpu", "cpu": "a CPU", "cores": 2},
}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def video(path, frames, size=32, rate=8, shade=0.5):
    """Write a square that moves over a field; small, and an mp4 like any other."""
    with VideoWriter(path, rate) as writer:
        for number in range(frames):
            frame = torch.full((3, size, size), shade)
            at = 2 + number % (size - 12)
            frame[:, 10:18, at : at + 8] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
            writer.push(frame[None])


class RunFolder:
    """Writes a run below a root.

    Args:
        root: The folder above all runs.
        name: The run's.
        arms: By name: method and settings.
        prompts: By id, the text.
        seeds: Of every prompt.
        about: Title, question and so on.
        backbone: The model's name.
    """

    def __init__(
        self, root, name, arms, prompts, seeds=(0,), about=None, backbone="tiny-wan", preset=None
    ):
        self.root, self.name = root, name
        self.arms, self.prompts, self.seeds = arms, prompts, seeds
        self.about, self.backbone, self.preset = about or {}, backbone, preset
        self.videos = {}

    def item(
        self,
        arm,
        prompt,
        seed=0,
        scores=None,
        reasons=None,
        series=None,
        frames=24,
        passes=(),
        nfe=100,
        skipped=None,
        seconds=None,
        error=None,
    ):
        """Write one item; items share their pictures, which no number depends on."""
        folder = self.root / "items" / f"{self.name}-{arm}-{prompt}-{seed}"
        (folder / "scores").mkdir(parents=True)
        if error is None:
            shade = 0.25 + 0.5 * (list(self.arms).index(arm) + 1) / (len(self.arms) + 1)
            source = self.videos.setdefault((arm, frames), folder / "video.mp4")
            if not source.exists():
                video(source, frames, shade=shade)
            else:
                (folder / "video.mp4").write_bytes(source.read_bytes())
        lines = "".join(json.dumps(one) + "\n" for one in passes)
        (folder / "passes.jsonl").write_text(lines)
        seconds = seconds or {"growth": 1.0, "stage1": 3.0, "decode": 2.0}
        names = [n for n in ("video.mp4", "passes.jsonl") if (folder / n).exists()]
        manifest = {
            "format": 1,
            "status": "failed" if error else "done",
            "error": error,
            "frames": 0 if error else frames,
            "frame_rate": 8.0,
            "cost": {
                "nfe": nfe,
                "nfe_latents": nfe * 16,
                "windows": 50,
                **({} if skipped is None else {"skipped": skipped}),
                "flops": (nfe - (skipped or 0)) * 2.5e9,
                "passes": {"stage1": len(passes)},
                "reflection": {"triggers": 0, "accepted": 0, "search_windows": 10},
            },
            "timings": {
                "started": "x",
                "hardware": {},
                "processes": 1,
                "seconds": seconds,
                "total_seconds": sum(seconds.values()),
                "peak_memory_mib": {"process": 500.0},
            },
            "files": {
                n: {"bytes": (folder / n).stat().st_size, "sha256": sha256(folder / n)}
                for n in names
            },
        }
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
        document = {
            "video": sha256(folder / "video.mp4") if error is None else None,
            "scores": scores or {},
            "reasons": reasons or {},
            "series": series or {},
        }
        (folder / "scores" / SCORER).write_text(json.dumps(sealed(document)))

    def close(self):
        """Write ``run.yaml`` over all items, made or not; return the run's folder."""
        items = {
            f"{arm}/{prompt}-{seed}": f"{self.name}-{arm}-{prompt}-{seed}"
            for arm in self.arms
            for prompt in self.prompts
            for seed in self.seeds
        }
        first = next(iter(self.arms.values()))
        model = {"backbone": self.backbone, "weights_hash": "ab" * 32, "precision": "32-true"}
        model |= {"height": 32, "width": 32, "lossless": False, **first}
        told = {"backbone": self.backbone, "method": first["method"], "arms": self.arms}
        document = {
            "format": 1,
            "name": self.name,
            "made_of": {
                "model": model,
                "arms": self.arms,
                "prompts": {
                    name: {"prompt": text, "then": {}, "frames": 24, "seeds": list(self.seeds)}
                    for name, text in self.prompts.items()
                },
            },
            "items": items,
            "scorers": {SCORER: {"class_path": "SuiteScores"}},
            "configuration": {
                "model": told | {"preset": self.preset},
                "run": {"name": self.name, "about": self.about},
            },
            "provenance": PROVENANCE,
        }
        folder = self.root / self.name
        folder.mkdir(parents=True)
        (folder / "run.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        return folder


def reflective_passes(count=40, drop=7):
    """Passes whose similarity drops now and then; every second search is adopted."""
    out = []
    for number in range(count):
        triggered = number > 8 and number % drop == 0
        out.append(
            {
                "stage": "stage1",
                "index": number,
                "levels": [1, 20],
                "windows": number,
                "finished": number,
                "similarity": None
                if number < 8
                else 0.95 + 0.02 * math.sin(number / 3) - 0.05 * triggered,
                "triggered": triggered,
                "accepted": triggered and number % 2 == 0,
                "search_windows": 0,
            }
        )
    return out
