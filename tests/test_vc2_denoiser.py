"""VideoCrafter2's denoiser against its own code's numbers and diffusers' forward; cut, attention."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from diffusers import UNet3DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from vc2_fixtures import CHANNELS, TEXT_WIDTH, tiny_unet
from vc2_original import original_unet

from miga_bench.backbones import fused_attention
from miga_bench.backbones.vc2_denoiser import (
    VideoCrafterDenoiser,
    VideoCrafterUNet,
    _add,
    _attend_over_time,
    _Call,
)
from miga_bench.sampling.attention import full_attention, local_attention

GOLDEN = Path(__file__).parent / "golden" / "vc2_denoiser.npz"
BATCH, FRAMES, SIZE = 2, 5, 4


def wave(*factors, offset=0.0):
    """Return the sine of a weighted sum of indices; factors are (weight, count)."""
    grids = np.meshgrid(*(np.arange(count) for _, count in factors), indexing="ij")
    total = sum(weight * grid for (weight, _), grid in zip(factors, grids, strict=True))
    return torch.from_numpy(np.sin(total + offset)).float()


def golden_network():
    with torch.device("meta"):
        network = VideoCrafterUNet(
            block_out_channels=(32, 64, 128, 128), attention_head_dim=8, cross_attention_dim=16
        )
    shapes = network.state_dict()
    original = original_unet({key: torch.tensor(n) for n, key in enumerate(shapes)})
    ours = list(shapes)
    state = {}
    for k, key in enumerate(sorted(original)):
        name = ours[int(original[key])]
        shape = shapes[name].shape
        value = np.sin(12.9898 * (k + 1) + 78.233 * (np.arange(shape.numel()) + 1.0)) * 43758.5453
        unit = 2 * (value - np.floor(value)) - 1
        if len(shape) >= 2:
            weight = 1.5 * unit / np.sqrt(shape.numel() / shape[0])
        else:
            weight = 0.1 * unit + key.endswith("weight")
        state[name] = torch.from_numpy(weight).float().reshape(shape)
    network.load_state_dict(state, assign=True)
    return network.eval()


def test_the_original_codes_numbers():
    """Breaks if any layer, name or embedding differs from VideoCrafter2's own network."""
    network, golden = golden_network(), np.load(GOLDEN)
    latents = wave((0.9, 4), (0.5, 7), (1.1, 16), (0.7, 16))[None]
    text = wave((0.3, 5), (0.8, 16))[None]
    cases = {
        "y_per_frame": torch.from_numpy(golden["t"]).float()[None],
        "y_t500": torch.full((1,), 500.0),
    }
    with torch.no_grad():
        for name, timesteps in cases.items():
            actual = network(latents, timesteps, text, 8.0)[0]
            torch.testing.assert_close(actual, torch.from_numpy(golden[name]), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def denoiser():
    return VideoCrafterDenoiser(tiny_unet(norm_num_groups=8)).requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(BATCH, CHANNELS, FRAMES, SIZE, SIZE, generator=generator)
    timesteps = 1000 * torch.rand(BATCH, FRAMES, generator=generator)
    return latents, timesteps, torch.randn(BATCH, 7, TEXT_WIDTH, generator=generator)


@pytest.fixture(scope="module")
def plain(denoiser, inputs):
    return denoiser(*inputs)


def test_equals_diffusers_forward_when_frames_share_a_level(inputs):
    """Breaks if a layer is walked differently from diffusers; its forward knows no frame rate."""
    network = tiny_unet(block_out_channels=(32, 32, 32), temporal_heads=2).double()
    torch.nn.init.zeros_(network.fps_embedding.linear_2.weight)
    torch.nn.init.zeros_(network.fps_embedding.linear_2.bias)
    latents, timesteps, text = (part.double() for part in inputs)
    with torch.no_grad():
        expected = UNet3DConditionModel.forward(network, latents, timesteps[:, 0], text).sample
        actual = network(latents, timesteps[:, 0], text, 8.0)
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


def test_one_level_for_all_equals_the_same_level_for_each(denoiser, inputs):
    """Breaks if levels given per clip and per frame are embedded differently."""
    latents, timesteps, text = inputs
    shared = denoiser(latents, timesteps[:, 0], text)
    assert torch.equal(denoiser(latents, timesteps[:, :1].expand(-1, FRAMES), text), shared)


def test_every_frame_feels_its_own_level(denoiser, inputs, plain):
    """Breaks if levels are ignored, or reach other frames first."""
    latents, timesteps, text = inputs
    other = timesteps.clone()
    other[:, 1] += 300
    change = (denoiser(latents, other, text) - plain).abs().amax((0, 1, 3, 4))
    assert change.argmax() == 1
    assert (change > 0).all()


def test_rows_of_a_batch_are_alone(denoiser, inputs, plain):
    """Breaks if clips of one call reach each other, in attention, norms or embeddings."""
    alone = denoiser(*(part[1:] for part in inputs))
    torch.testing.assert_close(alone, plain[1:], rtol=1e-5, atol=1e-5)


def test_text_is_projected_once_for_all_frames(denoiser, inputs, plain):
    """Breaks if frames have keys and values of their own again, or read another row's text."""
    rows = []
    to_k = denoiser.network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    hook = to_k.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    latents, timesteps, text = inputs
    changed = torch.stack([text[0], text[1] + 1])
    out = denoiser(latents, timesteps, changed)
    hook.remove()
    assert rows == [BATCH]
    torch.testing.assert_close(out[0], plain[0], rtol=1e-5, atol=1e-5)
    assert (out[1] - plain[1]).abs().amax((0, 2, 3)).min() > 1e-4, "every frame reads the text"


def test_the_frame_rate_is_felt_and_may_differ_by_row(denoiser, inputs, plain):
    """Breaks if the rate is ignored, or one number and one per row are not the same."""
    faster = VideoCrafterDenoiser(denoiser.network, 24.0)(*inputs)
    assert (faster - plain).abs().max() > 1e-4
    rates = torch.tensor([8.0, 24.0])
    both = denoiser.network(*inputs, rates)
    torch.testing.assert_close(both[0], plain[0])
    torch.testing.assert_close(both[1], faster[1])


def over_frames(query, key, value, site):
    """Return the plain attention over frames."""
    out = nnf.scaled_dot_product_attention(
        *(part.permute(0, 2, 3, 1, 4) for part in (query, key, value))
    )
    return out.permute(0, 3, 1, 2, 4)


class Operators(TorchDispatchMode):
    """Notes the name of every operator."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_projection_over_frames_is_one_matrix_product(denoiser):
    """Breaks if every place of a frame has a product of its own, 2,560 tiny ones in a window's row."""
    hidden, operators = torch.randn(BATCH * FRAMES, 32, SIZE, SIZE), Operators()
    call = _Call(FRAMES, 0, SIZE, torch.zeros(BATCH, FRAMES), None)
    with torch.no_grad(), operators:
        made = _attend_over_time(denoiser.network.transformer_in, hidden, call)
    assert "bmm" not in operators.names
    assert "addmm" in operators.names
    assert made.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adding_clips_to_images_is_exact(dtype):
    """Breaks if the sum without a copy of the update is another, or no image is in one piece."""
    hidden = torch.randn(BATCH * FRAMES, 3, 4, 6).to(dtype)
    update = torch.randn(BATCH, 24, 3, FRAMES).to(dtype).permute(0, 3, 2, 1)
    update = update.unflatten(3, (4, 6))
    made = _add(hidden, update)
    assert torch.equal(made, hidden + update.flatten(0, 1))
    assert made.is_contiguous()


def no_attention(query, key, value, site):
    return torch.zeros_like(value)


def test_attention_can_be_taken_over(denoiser, inputs, plain):
    """Breaks if a site is left out or misdescribed, or queries, keys and values are mixed up."""
    sites, calls = [], []

    def noted(query, key, value, site):
        sites.append(site)
        calls.append(query.shape)
        assert torch.equal(site.timesteps, inputs[1])
        assert not site.joint
        return over_frames(query, key, value, site)

    with denoiser.attending(noted):
        torch.testing.assert_close(denoiser(*inputs), plain, rtol=1e-5, atol=1e-5)
    # Two attentions each: first one, 1 down, 1 middle, 2 up; the second level has none but the middle's.
    assert [(site.height, site.width, site.scale) for site in sites] == (
        [(SIZE, SIZE, 1)] * 4 + [(SIZE // 2, SIZE // 2, 2)] * 2 + [(SIZE, SIZE, 1)] * 4
    )
    assert calls[0] == (BATCH, FRAMES, SIZE * SIZE, 8, 8)
    assert calls[2] == (BATCH, FRAMES, SIZE * SIZE, 4, 8)


def test_attention_is_given_back(denoiser, inputs, plain):
    """Breaks if a method's attention outlives it, after an error too, or reaches other denoisers."""
    other = VideoCrafterDenoiser(denoiser.network)
    modules = {name: id(module) for name, module in denoiser.named_modules()}
    with denoiser.attending(no_attention):
        assert torch.equal(other(*inputs), plain)
        changed = denoiser(*inputs)
        with denoiser.attending(over_frames):
            pass
        assert torch.equal(denoiser(*inputs), changed)
    assert torch.equal(denoiser(*inputs), plain)
    with pytest.raises(ZeroDivisionError), denoiser.attending(no_attention):
        _ = 1 / 0
    assert not torch.equal(changed, plain)
    assert torch.equal(denoiser(*inputs), plain)
    assert {name: id(module) for name, module in denoiser.named_modules()} == modules


@pytest.mark.parametrize("cut", [0, FRAMES])
def test_no_cut_is_the_released_network(denoiser, inputs, plain, cut):
    """Breaks if a cut with nothing before or behind it changes anything."""
    assert torch.equal(denoiser(*inputs, cut=cut), plain)


def test_a_cut_keeps_clips_apart_but_for_attention(denoiser, inputs):
    """Breaks if a convolution or a norm over time reaches across the cut."""
    latents, timesteps, text = inputs
    other = latents.clone()
    other[:, :, :2] += 1
    with denoiser.attending(no_attention):
        before = denoiser(latents, timesteps, text, cut=2)
        after = denoiser(other, timesteps, text, cut=2)
        assert torch.equal(before[:, :, 2:], after[:, :, 2:])
        assert not torch.equal(before[:, :, :2], after[:, :, :2])
        alone = denoiser(latents[:, :, 2:], timesteps[:, 2:], text)
        torch.testing.assert_close(before[:, :, 2:], alone, rtol=1e-5, atol=1e-5)
        whole = denoiser(latents, timesteps, text)
        assert not torch.allclose(whole[:, :, 2:], alone, rtol=1e-3, atol=1e-3)


def test_across_a_cut_frames_attend(denoiser, inputs, plain):
    """Breaks if guidance frames before the cut are not seen at all, or the cut is ignored."""
    latents, timesteps, text = inputs
    other = latents.clone()
    other[:, :, :2] += 1
    cut = denoiser(latents, timesteps, text, cut=2)
    assert (denoiser(other, timesteps, text, cut=2) - cut)[:, :, 2:].abs().max() > 1e-4
    assert (cut - plain).abs().max() > 1e-4


@pytest.mark.parametrize("cut", [-1, FRAMES + 1])
def test_cuts_outside_the_window_are_refused(denoiser, inputs, cut):
    """Breaks if a negative cut counts from the end."""
    with pytest.raises(ValueError, match=f"cut is {cut}"):
        denoiser(*inputs, cut=cut)


def test_bfloat16_keeps_levels_apart_and_the_latents_type(inputs):
    """Breaks if the result is not the latents' type, or timesteps are rounded to bfloat16."""
    network = tiny_unet().bfloat16()
    network.time_embedding.float()
    network.fps_embedding.float()
    denoiser = VideoCrafterDenoiser(network)
    latents, timesteps, text = inputs
    with torch.no_grad():
        near, far = (
            denoiser(latents, torch.full_like(timesteps, t), text) for t in (999.0, 1000.0)
        )
    assert near.dtype == torch.float32
    assert not torch.equal(near, far)


def test_trains_under_autocast(inputs):
    """Breaks if types do not meet in mixed precision, or a weight gets no gradient."""
    network = tiny_unet().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(*inputs, torch.tensor([8.0, 4.0]))
    assert out.dtype == torch.float32
    out.square().mean().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.slow  # the export to ONNX, which is tested, stands on the same
def test_exports_for_any_batch_and_length(denoiser, inputs):
    """Breaks on Python in mid graph, or on a batch or length fixed at tracing."""
    batch, frames = torch.export.Dim("b", min=1, max=64), torch.export.Dim("f", min=2, max=64)
    shapes = {
        "latents": {0: batch, 2: frames},
        "timesteps": {0: batch, 1: frames},
        "text": {0: batch},
        "fps": {0: batch},
    }
    rates = torch.tensor([8.0, 4.0])
    program = torch.export.export(denoiser.network, (*inputs, rates), dynamic_shapes=shapes)
    longer = [torch.cat([part, part[:1]]) for part in (*inputs, rates)]
    longer[0] = torch.cat([longer[0], longer[0][:, :, :2]], 2)
    longer[1] = torch.cat([longer[1], longer[1][:, :2]], 1)
    torch.testing.assert_close(
        program.module()(*longer), denoiser.network(*longer), rtol=1e-5, atol=1e-5
    )
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("repeat_interleave" in name for name in operators)


def test_a_saved_network_comes_back(tmp_path):
    """Breaks if the heads of the first temporal transformer are not part of the configuration."""
    network = tiny_unet(temporal_heads=3)
    network.save_pretrained(tmp_path)
    again = VideoCrafterUNet.from_pretrained(tmp_path)
    assert again.config.temporal_heads == again.transformer_in.num_attention_heads == 3
    assert again.state_dict().keys() == network.state_dict().keys()


@pytest.mark.slow
def test_the_full_size_network_runs():
    """Breaks if 1.4B parameters do not build in their own 2.7 GiB, or their widths do not meet."""
    with torch.device("meta"):
        network = VideoCrafterUNet()
    network = torch.nn.Module.to(network, torch.bfloat16).to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                scale = (weight[0].numel()) ** -0.5
                weight.uniform_(-scale, scale, generator=generator)
            else:
                weight.fill_(0.5)
        for part in (network.time_embedding, network.fps_embedding):
            part.float()
        latents = torch.randn(1, 4, 4, 8, 16, generator=generator)
        timesteps = torch.tensor([[10.0, 300.0, 600.0, 999.0]])
        text = torch.randn(1, 77, 1024, generator=generator)
        out = VideoCrafterDenoiser(network)(latents, timesteps, text)
    assert out.shape == latents.shape
    assert torch.isfinite(out).all()


def test_more_places_than_a_kernel_takes_go_in_several_calls(denoiser, inputs, plain, monkeypatch):
    """Breaks if a large frame or batch asks a GPU's attention for more sequences than it can launch."""
    asked = []
    attend = fused_attention.nnf.scaled_dot_product_attention

    def watched(query, *others, **named):
        asked.append(len(query))
        return attend(query, *others, **named)

    monkeypatch.setattr(fused_attention, "MOST_SEQUENCES", 7)
    monkeypatch.setattr(fused_attention.nnf, "scaled_dot_product_attention", watched)
    q, k, v = (torch.randn(2, 5, 9, 2, 4) for _ in range(3))  # 18 sequences of 5 frames
    for attention in (full_attention, partial(local_attention, reach=1)):
        asked.clear()
        made = attention(q, k, v, joint=False)
        assert max(asked) == 7
        monkeypatch.setattr(fused_attention, "MOST_SEQUENCES", 65_535)
        assert torch.equal(made, attention(q, k, v, joint=False))
        monkeypatch.setattr(fused_attention, "MOST_SEQUENCES", 7)
    torch.testing.assert_close(denoiser(*inputs), plain, rtol=1e-5, atol=1e-5)
