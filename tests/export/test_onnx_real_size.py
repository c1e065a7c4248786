"""Wan2.1-1.3B's denoiser in its real size with random weights: more than one protobuf file holds.

Minutes, 9 GB of disk and 14 GB of memory: pytest -m slow -s tests/export/test_onnx_real_size.py
"""

import json
import time

import onnx
import pytest
import torch
from onnx_fixtures import export
from wan_fixtures import tiny_text_encoder, tiny_tokenizer, tiny_vae

from miga_bench.export.facts import ExportFacts
from miga_bench.export.onnx_denoiser import OnnxDenoiser
from miga_bench.export.session import Session
from miga_bench.export.sidecar import Sidecar
from miga_bench.harness.bench.real_size import wan_transformer

STATISTICS = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}


def random_model(root):
    """Write a folder with the real denoiser's configuration, random weights, and small other parts."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        transformer = wan_transformer()
    finally:
        torch.set_default_dtype(torch.float32)
    transformer.half().save_pretrained(root / "transformer")
    tiny_vae(z_dim=16, **STATISTICS).save_pretrained(root / "vae")
    tiny_text_encoder(d_model=4096, num_layers=1).save_pretrained(root / "text_encoder")
    tiny_tokenizer().save_pretrained(root / "tokenizer")
    (root / "backbone.json").write_text(json.dumps({"height": 64, "width": 64, "flow_shift": 5.0}))
    return root


@pytest.mark.slow
def test_weights_beyond_a_protobuf_files_limit_lie_beside_the_graph(tmp_path):
    root = random_model(tmp_path / "model")
    began = time.perf_counter()
    export(root, tmp_path / "out", precision="fp16", frames=3, parts=("denoiser",))
    seconds = time.perf_counter() - began
    sidecar = Sidecar.read(tmp_path / "out", "denoiser")
    sidecar.check()
    (data,) = sidecar.external_data
    size = (tmp_path / "out" / data).stat().st_size
    parity = [entry["relative"] for entry in sidecar.parity]
    print(
        f"\n{size / 1e9:.2f} GB beside a graph of {sidecar.path.stat().st_size / 1e6:.1f} MB, exported in"
    )
    print(f"{seconds:.0f} s, {sum(sidecar.operators.values())} nodes, parity {parity}")
    assert size > 2**31
    assert max(parity) <= 5e-3
    onnx.checker.check_model(str(sidecar.path))
    facts = ExportFacts.read(tmp_path / "out")
    denoiser = OnnxDenoiser(Session(sidecar, check=False), facts)
    out = denoiser(torch.randn(1, 16, 2, 8, 8), torch.full((1, 2), 500.0), torch.randn(1, 12, 4096))
    assert out.isfinite().all()
