"""Profiles: how users write them, which one a call runs on, and what lies outside. No TensorRT, 1 s."""

import pytest
from tensorrt_fixtures import port, vc2_ports, wan_ports

from miga_bench.errors import UserError
from miga_bench.export.sidecar import Port
from miga_bench.export.tensorrt.profiles import (
    EXAMPLE,
    Profile,
    choose,
    fingerprint,
    free_sizes,
    rows_of_calls,
    with_rows,
)

BATCHED = ["latents", "timesteps", "text"]


def shapes(batch, frames):
    return {
        "latents": (batch, 4, frames, 8, 8),
        "timesteps": (batch, frames),
        "text": (batch, 7, 16),
        "cos": (1, 16 * frames, 1, 12),
        "sin": (1, 16 * frames, 1, 12),
    }


def profile(text):
    return Profile.parse(text, wan_ports())


def test_free_sizes_are_the_sidecars():
    assert free_sizes(wan_ports()) == {"batch": (1, 2, 4), "frames": (2, 5, 8)}
    assert free_sizes({"x": Port("float32", [1, 2], [1, 2], [1, 2], [1, 2])}) == {}


def test_all_inputs_follow_from_the_named_sizes():
    inputs = profile("batch=2:2:8,frames=21").inputs
    assert inputs["latents"] == ((2, 4, 21, 8, 8), (2, 4, 21, 8, 8), (8, 4, 21, 8, 8))
    assert inputs["cos"] == ((1, 336, 1, 12),) * 3  # tables go with the frames, not the batch
    assert profile("batch=3").inputs["timesteps"] == ((3, 2), (3, 5), (3, 8))


def test_the_example_takes_what_calls_and_the_comparison_have():
    """Breaks if whoever copies it gets an engine that is never compared, or that takes no single row."""
    for rows, frames in (
        (1, 2),
        (1, 21),
        (2, 21),
        (8, 21),
    ):  # few frames are what a long window is compared at
        assert rows_of_calls([profile(EXAMPLE)], shapes(rows, frames), BATCHED) == [rows]


def test_a_profile_survives_its_record():
    there = profile("batch=2:2:8")
    assert Profile.from_plain(there.plain()) == there
    assert fingerprint([there]) == fingerprint([Profile.from_plain(there.plain())])
    assert fingerprint([there]) != fingerprint([profile("batch=2:2:7")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch", "'batch' is neither NAME=SIZE nor NAME=LEAST:USUAL:LARGEST"),
        ("batch=2:3", "write it like batch=1:4:8,frames=2:21:21"),
        ("height=8", "no free size 'height': it has batch, frames"),
        ("batch=4:2:8", "1 <= least <= usual <= largest, it has 4:2:8"),
        ("batch=0", "1 <= least <= usual <= largest, it has 0:0:0"),
        ("batch=1,batch=2", "gives batch twice"),
    ],
)
def test_a_wrong_profile_is_one_line(text, words):
    with pytest.raises(UserError, match="--profile") as error:
        profile(text)
    assert words in str(error.value)


def test_fixed_sizes_say_so():
    with pytest.raises(UserError, match="all its sizes are fixed"):
        Profile.parse("batch=2", {"latents": port(2, 4, 5, 8, 8)})


def test_the_closest_profile_is_chosen():
    profiles = [profile("batch=1:2:8"), profile("batch=2,frames=5"), profile("batch=1:1:4")]
    assert choose(profiles, shapes(2, 5)) == 1  # tuned for it
    assert choose(profiles, shapes(2, 6)) == 2  # the narrower of two
    assert choose(profiles, shapes(8, 5)) == 0
    assert choose(profiles, shapes(9, 5)) is None
    assert choose(profiles, {**shapes(2, 5), "text": (2, 8, 16)}) is None
    assert choose(profiles, {**shapes(2, 5), "text": (2, 7)}) is None


def test_both_halves_of_guidance_go_through_one_call_where_they_fit():
    assert rows_of_calls([profile("batch=1:2:8")], shapes(8, 5), BATCHED) == [8]
    assert rows_of_calls([profile("batch=1:2:4")], shapes(8, 5), BATCHED) == [4, 4]
    assert rows_of_calls([profile("batch=1:2:4")], shapes(9, 5), BATCHED) == [3, 3, 3]
    assert rows_of_calls([profile("batch=1:2:4")], shapes(5, 5), BATCHED) == [3, 2]
    # only sizes that a profile takes: 7 rows cannot be done in twos and a one
    assert rows_of_calls([profile("batch=2")], shapes(6, 5), BATCHED) == [2, 2, 2]
    assert rows_of_calls([profile("batch=2"), profile("batch=1")], shapes(7, 5), BATCHED) == (
        [2, 2, 2, 1]
    )


def test_rows_leave_tables_alone():
    assert with_rows(shapes(8, 5), BATCHED, 2) == shapes(2, 5)


def test_outside_is_one_line_with_both_sizes():
    with pytest.raises(UserError) as error:
        rows_of_calls([profile("frames=5:5:8"), profile("frames=2")], shapes(2, 9), BATCHED)
    line = str(error.value)
    assert "latents is 2x4x9x8x8" in line
    assert "takes 1x4x5x8x8 to 4x4x8x8x8, or 1x4x2x8x8 to 4x4x2x8x8" in line
    assert "--profile" in line


def test_a_batch_below_the_profile_cannot_be_split_into_it():
    with pytest.raises(UserError, match=r"latents is 1x4x5x8x8: .* takes 2x4x2x8x8 to"):
        rows_of_calls([profile("batch=2:2:4")], shapes(1, 5), BATCHED)


def test_shapes_that_only_different_profiles_take():
    profiles = [Profile.of(vc2_ports()), Profile.of(vc2_ports())]
    profiles[0].inputs["text"] = ((1, 3, 16),) * 3
    profiles[1].inputs["latents"] = ((1, 4, 9, 8, 8),) * 3
    given = {"latents": (1, 4, 5, 8, 8), "text": (1, 7, 16)}
    with pytest.raises(UserError, match=r"no single profile .* latents 1x4x5x8x8, text 1x7x16"):
        rows_of_calls(profiles, given, ["latents", "text"])
