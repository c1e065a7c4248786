"""VBench's own functions on clips and weights by formula; run as a script it writes golden numbers.

Needs vbench 0.1.5 and what it imports (``make test-vbench`` makes such an environment), and DINO's
own code: from torch.hub, or from the folder that ``MIGA_BENCH_DINO_REPO`` names.

    .venv-vbench/bin/python tests/metrics/vbench_original.py
"""

import importlib.metadata
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from urllib.error import URLError

import av
import numpy as np
import torch
from formula import AMT_CLIPS, CLIPS, Blur, clip, fill
from torch import nn

from miga_bench.metrics.networks.original import import_torchvision

GOLDEN = Path(__file__).parent / "golden" / "vbench.json"
WIDTH, LAYERS = 128, 2


# before vbench and before torchmetrics, which imports torchvision if it is there
_LIBRARY = import_torchvision()


def write_lossless(path, frames, fps):
    """Write frames as an mp4 file that every reader decodes to the very same pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0"})
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt = "rgb24"
        for frame in frames.permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        container.mux(stream.encode())
    return str(path)


class NoDinoError(RuntimeError):
    """DINO's own code is not at hand."""


def dino(width=WIDTH, layers=LAYERS):
    """DINO's own vision transformer."""
    repository = os.environ.get("MIGA_BENCH_DINO_REPO")
    where = (
        (repository, "dino_vits16") if repository else ("facebookresearch/dino:main", "dino_vits16")
    )
    source = "local" if repository else "github"
    try:
        made = type(torch.hub.load(*where, source=source, pretrained=False, trust_repo=True))
    except (URLError, OSError) as error:
        raise NoDinoError(
            f"DINO's code cannot be fetched ({error}): let MIGA_BENCH_DINO_REPO name a clone of "
            "facebookresearch/dino"
        ) from error
    norm = partial(nn.LayerNorm, eps=1e-6)
    model = made(
        patch_size=16,
        embed_dim=width,
        depth=layers,
        num_heads=width // 64,
        qkv_bias=True,
        norm_layer=norm,
    )
    return fill(model, "dino")


def openai_clip(name="clip", patch=32, width=WIDTH, layers=LAYERS, embed=64):
    """OpenAI's own CLIP with a text tower as small as may be."""
    from clip.model import CLIP

    return fill(CLIP(embed, 224, layers, width, patch, 8, 100, 64, 1, 1), name)


def aesthetic_head(embed=64):
    return fill(nn.Linear(embed, 1), "aesthetic")


def amt_checkpoint(folder):
    """The path of an AMT-S checkpoint with weights by formula."""
    from vbench.third_party.amt.utils.build_utils import build_from_cfg

    model = fill(build_from_cfg({"name": "networks.AMT-S.Model", "params": {}}), "amt")
    path = Path(folder) / "amt-s.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def smoothness(paths, checkpoint, model=None):
    """VBench's motion smoothness; with another network in AMT's place if one is given."""
    import vbench
    from vbench.motion_smoothness import MotionSmoothness, motion_smoothness

    config = Path(vbench.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml"
    motion = MotionSmoothness(str(config), str(checkpoint), torch.device("cpu"))
    motion.model = model or motion.model
    return motion_smoothness(motion, paths)


def raft_checkpoint(folder):
    """The path of a RAFT checkpoint with weights by formula."""
    from easydict import EasyDict
    from vbench.third_party.RAFT.core.raft import RAFT

    options = EasyDict(small=False, mixed_precision=False, alternate_corr=False)
    model = fill(RAFT(options), "raft")
    path = Path(folder) / "raft-things.pth"
    torch.save({f"module.{key}": tensor for key, tensor in model.state_dict().items()}, path)
    return path


def motion_of(path, checkpoint):
    """VBench's dynamic degree of one file, and its motion of every pair of frames."""
    from easydict import EasyDict
    from vbench.dynamic_degree import DynamicDegree

    options = EasyDict(
        model=str(checkpoint), small=False, mixed_precision=False, alternate_corr=False
    )
    dynamic = DynamicDegree(options, "cpu")
    motions, get_score = [], dynamic.get_score

    def noted(*arguments):
        motions.append(get_score(*arguments))
        return motions[-1]

    dynamic.get_score = noted
    return dynamic.infer(path), motions


def per_video(result):
    """What a function of VBench returns, as numbers: the whole, then every video's."""
    whole, videos = result
    return {"all": float(whole), "videos": [float(v["video_results"]) for v in videos]}


def scores(folder):
    """All scores of all clips by VBench's own functions."""
    from vbench.aesthetic_quality import laion_aesthetic
    from vbench.background_consistency import background_consistency
    from vbench.subject_consistency import subject_consistency
    from vbench.temporal_flickering import get_frames, temporal_flickering
    from vbench.utils import load_video

    made = {name: (clip(name, *size[:3]), size[3]) for name, size in (CLIPS | AMT_CLIPS).items()}
    paths = {n: write_lossless(Path(folder) / f"{n}.mp4", *video) for n, video in made.items()}
    for name, (frames, _) in made.items():
        if not torch.equal(load_video(paths[name]), frames.float()):
            raise RuntimeError(f"decord does not read {name} as it was written")
        seen = torch.from_numpy(np.stack(get_frames(paths[name]))[..., ::-1].copy())
        if not torch.equal(seen.permute(0, 3, 1, 2), frames):
            raise RuntimeError(f"OpenCV does not read {name} as it was written")
    small = [paths[name] for name in CLIPS]
    tower = openai_clip()
    checkpoint = amt_checkpoint(folder)
    return {
        "temporal_flickering": per_video(temporal_flickering(small)),
        "subject_consistency": per_video(subject_consistency(dino(), small, "cpu", False)),
        "background_consistency": per_video(
            background_consistency(tower, None, small, "cpu", False)
        ),
        "aesthetic_quality": per_video(
            laion_aesthetic(aesthetic_head(), openai_clip("aesthetic", 14), small, "cpu")
        ),
        "motion_smoothness": per_video(smoothness(small, checkpoint, Blur())),
        "motion_smoothness_amt": per_video(
            smoothness([paths[name] for name in AMT_CLIPS], checkpoint)
        ),
        "made with": {
            "vbench": importlib.metadata.version("vbench"),
            "openai-clip": importlib.metadata.version("openai-clip"),
            "torch": torch.__version__,
            "torchvision": importlib.metadata.version("torchvision"),
            "device": "cpu, float32",
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        golden = scores(folder)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n")
    print(json.dumps(golden, indent=2))
