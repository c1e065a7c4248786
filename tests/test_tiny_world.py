"""The embedded world: its language, its pictures, and reading both back."""

import itertools
import math
import random
from dataclasses import replace

import narratives
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miga_bench.backbones.tiny import drift, grammar, reader, world
from miga_bench.errors import UserError

scenes = st.builds(
    grammar.Scene,
    shape=st.sampled_from(grammar.SHAPES),
    color=st.sampled_from(grammar.COLORS),
    motion=st.sampled_from(grammar.MOTIONS),
    field=st.sampled_from(grammar.COLORS),
    size=st.sampled_from((None, *grammar.SIZES)),
    texture=st.sampled_from((None, *grammar.TEXTURES)),
    pattern=st.sampled_from((None, *grammar.PATTERNS)),
)


@given(scenes)
def test_a_caption_says_what_it_was_made_from(scene):
    assert grammar.parse_caption(scene.caption) == scene
    assert grammar.parse_caption("  " + scene.caption.upper()) == scene


@given(st.integers(0, 10_000), st.integers(0, grammar.MAX_EVENTS))
def test_a_narrative_says_what_it_was_made_from(seed, events):
    story = narratives.random_narrative(random.Random(seed), events, held_out=None)
    assert narratives.parse_narrative(story.text) == story
    captions = [scene.caption for scene in story.scenes]
    assert len(captions) == events + 1
    assert all(grammar.parse_caption(caption) for caption in captions)
    assert all(a != b for a, b in itertools.pairwise(captions))


def test_the_issues_sentences_are_understood():
    grammar.parse_caption("a red circle moves right on a blue field")
    scene = grammar.parse_caption(
        "a large striped red circle moves right on a blue checkered field"
    )
    assert (scene.size, scene.texture, scene.pattern) == ("large", "striped", "checkered")
    story = narratives.parse_narrative(
        "a red circle moves right on a blue field, then turns green, then moves up"
    )
    assert [event.factor for event in story.events] == ["target_attribute", "target_action"]
    assert narratives.schedule(story)[-1] == (2 / 3, "a green circle moves up on a blue field")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a red circle moves sideways on a blue field",
        "a pink circle moves right on a blue field",
        "a red circle moves right on a blue wavy field",
        "a striped large red circle moves right on a blue field",
    ],
)
def test_what_the_grammar_lacks_is_refused(text):
    with pytest.raises(UserError):
        grammar.parse_caption(text)


def test_held_out_prompts_are_never_trained_on():
    held_out = grammar.held_out_prompts(100)
    assert len(held_out) == 100
    assert held_out == grammar.held_out_prompts(100)
    assert all(grammar.parse_caption(text).held_out for text in held_out)
    rng = random.Random(0)
    assert not any(grammar.random_scene(rng).held_out for _ in range(2000))


def test_every_word_is_in_the_vocabulary():
    rng = random.Random(0)
    for _ in range(200):
        story = narratives.random_narrative(rng, 4)
        assert set(story.text.replace(",", " , ").split()) <= set(grammar.WORDS)


def test_a_long_video_can_be_rendered_in_pieces():
    look = world.draw_look(grammar.random_scene(random.Random(1)), random.Random(2))
    whole = world.render(look, 12, 500)
    assert whole.shape == (12, 3, 64, 64)
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() <= whole.max() <= 1
    torch.testing.assert_close(whole[5:9], world.render(look, 4, 505))


def test_the_reader_reads_clean_frames():
    rng = random.Random(7)
    wrong = dict.fromkeys(("shape", "color", "field", "size"), 0)
    total = 0
    for _ in range(150):
        scene = grammar.random_scene(rng, held_out=None)
        look = world.draw_look(scene, rng)
        reading = reader.read(world.render(look)[::20])
        total += len(reading.found)
        off = reader.torus(reading.place - torch.from_numpy(world.positions(look, 81)[::20]))
        assert off.norm(dim=1).max() < 1.5
        for name in wrong:
            wrong[name] += sum(value != getattr(scene, name) for value in getattr(reading, name))
        hues = [abs(reader.hue_difference(hue, look.hue)) for hue in reading.hue.tolist()]
        assert max(hues) < 3
    assert all(count <= 0.01 * total for count in wrong.values()), wrong


def test_the_reader_bears_blur_and_noise():
    rng = random.Random(8)
    torch.manual_seed(0)
    right = total = 0
    for _ in range(60):
        scene = grammar.random_scene(rng)
        frames = world.render(world.draw_look(scene, rng))[::20]
        frames = torch.nn.functional.avg_pool2d(frames, 3, 1, 1) + 0.03 * torch.randn(frames.shape)
        reading = reader.read(frames)
        total += len(frames)
        right += sum(a == scene.shape for a in reading.shape)
        assert reading.color == [scene.color] * len(frames)
    assert right >= 0.95 * total


def test_no_sprite_is_not_found():
    empty = torch.stack(
        [torch.zeros(3, 64, 64), torch.full((3, 64, 64), 0.3), torch.ones(3, 64, 64)]
    )
    reading = reader.read(empty)
    assert not reading.found.any()
    assert reading.shape == reading.color == reading.size == [None] * 3
    assert reading.place.isnan().all()
    assert reading.hue.isnan().all()
    assert len(reader.read(empty[0]).found) == 1


def _video(frames=243):
    scene = grammar.parse_caption("a large red circle moves right on a blue striped field")
    return scene, world.draw_look(scene, random.Random(3))


def test_a_true_video_hardly_drifts():
    scene, look = _video()
    truth = drift.measure(world.render(look, 243), scene)
    assert truth.found == truth.asked_color == truth.asked_shape == truth.asked_field == 1
    assert truth.asked_motion == 1
    assert truth.direction == "right"
    assert truth.path == pytest.approx(look.speed, abs=0.05)
    assert truth.hue_drift < 1
    assert truth.size_drift < 0.02
    assert max(truth.field_drift, truth.pattern_drift, truth.flicker) < 0.01


def test_every_drift_is_seen():
    scene, look = _video()
    first = world.render(look, 81)

    def then(**changes):
        later = world.render(replace(look, **changes), 162, 81)
        return drift.measure(torch.cat([first, later]), scene)

    assert then(hue=look.hue + 25).hue_drift == pytest.approx(25, abs=2)
    assert then(radius=look.radius * 0.7).size_drift == pytest.approx(0.36, abs=0.05)
    moved = replace(look.pattern, phase=(look.pattern.phase[0] + 2, 0.0))
    assert then(pattern=moved).pattern_drift > 0.03
    assert then(pattern=moved).field_drift < 0.02
    assert then(field_value=look.field_value / 2).field_drift > 0.03
    assert drift.measure(first[:1].expand(162, -1, -1, -1), scene).path < 0.01
    assert drift.measure(first[:1].expand(162, -1, -1, -1), scene).direction is None
    assert drift.measure(first.flip(0), scene).asked_motion == 0
    flickering = first + 0.1 * (torch.arange(81) % 2).view(-1, 1, 1, 1)
    assert drift.measure(flickering, scene).flicker == pytest.approx(0.1, abs=0.01)
    lost = drift.measure(torch.cat([first, torch.zeros_like(first)]), scene)
    assert lost.found == lost.asked_color == 0.5


def _at_once(frames, asked, opening):
    """The measures and curves of a video that is in memory as a whole, as they are defined."""
    seen, total, nan = reader.read(frames), len(frames), math.nan
    opening = opening if total > opening else max(1, total // 4)
    later = slice(opening, None) if total > opening else slice(None)
    first = torch.deg2rad(seen.hue[:opening])
    home = torch.rad2deg(torch.atan2(first.sin().nanmean(), first.cos().nanmean()))
    bare = (seen.mask < 0.02)[:, None].expand_as(frames)
    plate = torch.where(bare[:opening], frames[:opening], nan).nanmedian(0).values
    color = seen.field_color - seen.field_color[:opening].median(0).values
    curves = {
        "hue_drift": ((seen.hue - home + 180) % 360 - 180).abs(),
        "field_drift": color.square().mean(1).sqrt(),
    }
    pattern = torch.where(bare, (frames - plate).abs(), nan)
    both = torch.where(bare[1:] & bare[:-1], frames.diff(dim=0).abs(), nan)
    steps = reader.torus(seen.place[4:] - seen.place[:-4])
    measures = {name: curve[later].nanmean().item() for name, curve in curves.items()}
    measures |= {
        "frames": total,
        "found": seen.found.float().mean().item(),
        "size_drift": (seen.radius[later] / seen.radius[:opening].nanmedian())
        .log()
        .abs()
        .nanmean()
        .item(),
        "pattern_drift": pattern[later].nanmean().item(),
        "flicker": both.nanmean().item(),
        "path": steps.norm(dim=1).nanmean().item() / 4,
        "direction": drift.direction_of(steps),
    }
    for name in ("color", "shape", "field"):
        shown = getattr(seen, name)
        measures[f"asked_{name}"] = shown.count(getattr(asked, name)) / total
    heading = [drift.direction_of(step[None]) for step in steps]
    measures["asked_motion"] = heading.count(asked.motion) / len(heading) if heading else nan
    curves["pattern_drift"] = pattern.nanmean((1, 2, 3))
    edges = [round(i * total / min(24, total)) for i in range(min(24, total) + 1)]
    return measures, {
        name: [
            [a, b - 1, curve[a:b].nanmean().item()]
            for a, b in itertools.pairwise(edges)
            if not curve[a:b].isnan().all()
        ]
        for name, curve in curves.items()
    }


@pytest.mark.parametrize(
    ("total", "piece"), [(1, 1), (3, 2), (21, 7), (22, 7), (22, 1), (90, 7), (90, 32), (90, 90)]
)
def test_a_video_in_pieces_is_measured_as_a_whole_one(total, piece):
    """With noise, a change of color, and frames without a sprite; some without a field."""
    scene, look = _video()
    frames = world.render(look, total)
    frames[total // 2 :] = frames[total // 2 :].flip(1)
    frames[total * 2 // 3 : total * 3 // 4] = 0.1
    frames[total * 8 // 9 :] = 1.0
    noise = torch.Generator().manual_seed(0)
    frames = frames + 0.02 * torch.randn(frames.shape, generator=noise)
    meter = drift.DriftMeter(scene, 21)
    for part in frames.split(piece):
        meter.extend(part)
    found, curves = meter.end()
    measures, expected = _at_once(frames, scene, 21)
    assert found.direction == measures.pop("direction")
    for name, value in measures.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True), name
    assert curves.keys() == expected.keys()
    for name, bins in curves.items():
        torch.testing.assert_close(torch.tensor(bins), torch.tensor(expected[name]))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_a_story_is_rendered_as_told(seed):
    rng = random.Random(seed)
    story = narratives.random_narrative(rng, 3, held_out=None)
    frames, looks = narratives.render_narrative(story, rng, 120)
    assert len(frames) == 120
    assert len(looks) == 4
    for i, scene in enumerate(story.scenes):
        middle = reader.read(frames[30 * i + 12 : 30 * i + 28])
        assert set(middle.shape) == {scene.shape}
        assert set(middle.color) == {scene.color}
        assert set(middle.field) == {scene.field}
        assert set(middle.size) == {scene.size}
        steps = reader.steps_of(middle.place)
        assert all(world.heading(*step) == scene.motion for step in steps.tolist())
        assert drift.direction_of(steps) == scene.motion


@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 60), opening=st.integers(1, 40))
def test_the_bins_of_a_curve_cover_the_video_once(frames, opening):
    scene = grammar.parse_caption("a red circle moves right on a blue field")
    video = world.render(world.draw_look(scene, random.Random(frames)), frames)
    for bins in drift.over_time(video, opening).values():
        covered = [n for first, last, _ in bins for n in range(int(first), int(last) + 1)]
        assert covered == list(range(frames))
        assert len(bins) == min(24, frames)
