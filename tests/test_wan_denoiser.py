"""The per-frame forward equals diffusers' own wherever diffusers has one."""

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel
from wan_fixtures import CHANNELS, TEXT_WIDTH, tiny_transformer

from miga_bench.backbones.wan_checkpoint import make_transformer
from miga_bench.backbones.wan_denoiser import Rotary, WanDenoiser
from miga_bench.sampling.attention import full_attention

BATCH, FRAMES, HEIGHT, WIDTH = 2, 5, 4, 6
TOKENS = HEIGHT // 2 * WIDTH // 2


@pytest.fixture(scope="module")
def denoiser():
    return WanDenoiser(tiny_transformer()).requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(BATCH, CHANNELS, FRAMES, HEIGHT, WIDTH, generator=generator)
    timesteps = 1000 * torch.rand(BATCH, FRAMES, generator=generator)
    return latents, timesteps, torch.randn(BATCH, 7, TEXT_WIDTH, generator=generator)


def test_equals_the_stock_forward_when_frames_share_a_level(denoiser, inputs):
    """Breaks if any part of the network is walked differently from diffusers."""
    latents, timesteps, text = inputs
    expected = denoiser.transformer(latents, timesteps[:, 0], text).sample
    actual = denoiser(latents, timesteps[:, :1].expand(-1, FRAMES), text)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_equals_the_stock_per_token_form_at_mixed_levels(denoiser, inputs):
    """Breaks if a frame's modulation reaches another frame's tokens."""
    latents, timesteps, text = inputs
    expected = denoiser.transformer(latents, timesteps.repeat_interleave(TOKENS, 1), text).sample
    torch.testing.assert_close(denoiser(latents, timesteps, text), expected, rtol=1e-5, atol=1e-5)


def test_every_frame_feels_its_own_level_and_its_neighbors(denoiser, inputs):
    """Breaks if levels are ignored, or frames no longer attend to each other."""
    latents, timesteps, text = inputs
    other = timesteps.clone()
    other[:, 1] += 100
    change = (denoiser(latents, other, text) - denoiser(latents, timesteps, text)).abs()
    per_frame = change.amax((0, 1, 3, 4))
    assert per_frame.argmax() == 1
    assert (per_frame > 1e-6).all()


@pytest.mark.parametrize("cross_attn_norm", [True, False])
def test_without_the_optional_norm_too(inputs, cross_attn_norm):
    """Breaks if norm2, which is an identity without cross_attn_norm, is not walked as it stands."""
    denoiser = WanDenoiser(tiny_transformer(cross_attn_norm=cross_attn_norm))
    latents, timesteps, text = inputs
    with torch.no_grad():
        expected = denoiser.transformer(latents, timesteps[:, 0], text).sample
        actual = denoiser(latents, timesteps[:, :1].expand(-1, FRAMES), text)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_rotary_tables_are_diffusers_tables():
    """Breaks if the axes' shares of a head or the frequencies differ from Wan's."""
    transformer = tiny_transformer(attention_head_dim=128, num_attention_heads=1)
    latents = torch.zeros(1, CHANNELS, 21, 8, 10)
    expected_cos, expected_sin = transformer.rope(latents)
    cos, sin = Rotary(128, 2, 2)(latents)
    assert torch.equal(cos, expected_cos[..., 0::2])
    assert torch.equal(sin, expected_sin[..., 1::2])


def test_rotary_tables_are_built_once_per_shape_and_usable_for_training():
    """Breaks if tables are rebuilt on each call, or made under inference mode stay poisoned."""
    rotary, latents = Rotary(16, 2, 2), torch.zeros(1, CHANNELS, 3, 4, 4)
    with torch.inference_mode():
        first = rotary(latents)
    assert all(a is b for a, b in zip(first, rotary(latents), strict=True))
    assert not first[0].is_inference()
    assert rotary(latents[:, :, :2])[0].shape[1] == 2 * 4
    for frames in range(1, 40):
        rotary(torch.zeros(1, CHANNELS, frames, 4, 4))
    assert len(rotary._tables) <= 16


@pytest.fixture(scope="module")
def half():
    stock = tiny_transformer()
    place = torch.device("cpu")
    return make_transformer(stock.config, stock.state_dict(), "it", torch.bfloat16, place)


@pytest.fixture(scope="module")
def stock_answer(half, inputs):
    """What diffusers' own forward makes of it, whose head is in bfloat16, too."""
    latents, timesteps, text = inputs
    plain = copy.deepcopy(half)
    plain.proj_out.bfloat16()
    with torch.no_grad():
        return plain(
            latents.bfloat16(), timesteps.repeat_interleave(TOKENS, 1), text.bfloat16()
        ).sample.float()


def test_bfloat16_keeps_what_diffusers_keeps_in_float32(half):
    """Breaks if time embedding, modulation or norms are rounded, or all of it stays float32."""
    kept = {key for key, weight in half.named_parameters() if weight.dtype == torch.float32}
    assert {"scale_shift_table", "blocks.1.scale_shift_table", "blocks.0.norm2.weight"} <= kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    rest = [key for key, _ in half.named_parameters() if key not in kept]
    assert "blocks.0.attn1.to_q.weight" in rest
    assert all(half.get_parameter(key).dtype == torch.bfloat16 for key in rest)
    assert all(
        any(
            part in (*WanTransformer3DModel._keep_in_fp32_modules, "proj_out")
            for part in key.split(".")
        )
        for key in kept
    )


def test_bfloat16_follows_the_stock_forward(half, inputs, stock_answer):
    """Breaks if what must be float32 is computed in bfloat16, or the result is not float32."""
    latents, timesteps, text = inputs
    with torch.no_grad():
        actual = WanDenoiser(half)(latents, timesteps, text)
    assert actual.dtype == torch.float32
    # The order of rounding differs, so a few units of bfloat16 (2 ** -8) may.
    error = (actual - stock_answer).norm() / stock_answer.norm()
    assert error < 0.01


def test_bfloat16_is_nearer_to_float32_than_the_stock_forward(half, denoiser, inputs, stock_answer):
    """Breaks if the sum of all layers is rounded after each, which guidance then magnifies."""
    latents, timesteps, text = inputs
    with torch.no_grad():
        exact = denoiser(latents, timesteps, text)
        ours = WanDenoiser(half)(latents, timesteps, text)
    assert (ours - exact).norm() < 0.75 * (stock_answer - exact).norm()


def test_close_timesteps_stay_apart_in_bfloat16(half, inputs):
    """Breaks if timesteps are rounded to bfloat16, which takes 999 and 1000 for one."""
    denoiser, (latents, timesteps, text) = WanDenoiser(half), inputs
    with torch.no_grad():
        outputs = [denoiser(latents, torch.full_like(timesteps, t), text) for t in (999.0, 1000.0)]
    assert not torch.equal(*outputs)


@pytest.mark.slow  # the export to ONNX, which is tested, stands on the same
def test_exports_without_graph_breaks_for_any_batch_and_length(denoiser, inputs):
    """Breaks on data-dependent control flow, or a batch or length fixed at tracing."""
    latents, timesteps, text = inputs
    batch, frames = torch.export.Dim("b", min=1, max=64), torch.export.Dim("f", min=2, max=64)
    program = torch.export.export(
        denoiser.network,
        (latents, timesteps, text, *denoiser.rotary(latents)),
        dynamic_shapes=(
            {0: batch, 2: frames},
            {0: batch, 1: frames},
            {0: batch},
            {1: torch.export.Dim.AUTO},
            {1: torch.export.Dim.AUTO},
        ),
    )
    bigger = torch.cat([latents, latents[:1]]), torch.cat([timesteps, timesteps[:1]])
    bigger = torch.cat([bigger[0], bigger[0][:, :, :2]], 2), torch.cat([bigger[1]] * 2, 1)[:, :7]
    more_text = torch.cat([text, text[:1]])
    actual = program.module()(*bigger, more_text, *denoiser.rotary(bigger[0]))
    torch.testing.assert_close(actual, denoiser(*bigger, more_text), rtol=1e-5, atol=1e-5)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("scatter" in name or "index_put" in name for name in operators)


def test_compiles_whole(denoiser, inputs):
    """Breaks if the forward needs Python in the middle of the graph."""
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), denoiser(*inputs), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight(inputs):
    """Breaks if training through the denoiser leaves a part of the network out."""
    denoiser = WanDenoiser(tiny_transformer())
    denoiser(*inputs).square().mean().backward()
    assert all(weight.grad is not None for weight in denoiser.parameters())


def test_refuses_image_to_video_transformers():
    """Breaks if a transformer with an image branch, which this forward skips, is accepted."""
    with pytest.raises(ValueError, match="text-to-video"):
        WanDenoiser(tiny_transformer(image_dim=8, added_kv_proj_dim=32))


class Watching:
    """Full attention that remembers what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, query, key, value, site):
        self.calls.append((query, key, value, site))
        return full_attention(query, key, value, site.joint)


def test_an_attention_of_ones_own_stands_in_for_self_attention(denoiser, inputs):
    """Breaks if what it is given is not the frames' tokens, or a block or the text's is missed."""
    latents, timesteps, text = inputs
    expected, watching = denoiser(*inputs), Watching()
    network = denoiser.network
    with denoiser.attending(watching):
        assert torch.equal(denoiser(*inputs), expected)
    assert denoiser.network is network
    assert len(watching.calls) == len(denoiser.transformer.blocks)
    for query, key, value, site in watching.calls:
        assert query.shape == key.shape == value.shape == (BATCH, FRAMES, TOKENS, 2, 16)
        assert (site.height, site.width, site.joint, site.scale) == (2, 3, True, 2)
        assert torch.equal(site.timesteps, timesteps)
    # the first block's values come before any attention: each frame's are of that frame alone
    other = latents.clone()
    other[:, :, 3] += 1
    with denoiser.attending(watching):
        denoiser(other, timesteps, text)
    first, moved = watching.calls[0][2], watching.calls[len(watching.calls) // 2][2]
    assert [not torch.equal(first[:, f], moved[:, f]) for f in range(FRAMES)] == [
        f == 3 for f in range(FRAMES)
    ]


def test_queries_and_keys_come_rotated(denoiser, inputs, monkeypatch):
    """Breaks if an attention over chosen frames would not know how far apart they are."""
    watching = Watching()
    with denoiser.attending(watching):
        denoiser(*inputs)
        twice = denoiser.rotary._build(torch.arange(FRAMES) * 2, *inputs[0].shape[3:])
        monkeypatch.setattr(denoiser, "rotary", lambda latents: twice)
        denoiser(*inputs)
    (query, _, value, _), (turned, _, same, _) = (
        watching.calls[0],
        watching.calls[len(watching.calls) // 2],
    )
    assert torch.equal(value, same)
    assert torch.equal(query[:, 0], turned[:, 0])
    assert not torch.equal(query[:, 1], turned[:, 1])


def test_the_denoiser_is_left_as_it_was(denoiser, inputs):
    """Breaks if an attention stays behind, after an error too, or an inner one ends the outer."""
    expected, outer = denoiser(*inputs), Watching()
    with denoiser.attending(outer):
        with denoiser.attending(Watching()):
            denoiser(*inputs)
        assert not outer.calls
        denoiser(*inputs)
        assert outer.calls
    with pytest.raises(ZeroDivisionError), denoiser.attending(lambda *_: 1 / 0):
        denoiser(*inputs)
    seen = len(outer.calls)
    assert torch.equal(denoiser(*inputs), expected)
    assert len(outer.calls) == seen
    other = WanDenoiser(tiny_transformer())
    with denoiser.attending(outer):
        other(*inputs)
    assert len(outer.calls) == seen
