"""Prompts become what WanPipeline makes of them, once."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from vc2_fixtures import tiny_text_encoder as tiny_clip
from wan_fixtures import LENGTH, TEXT_WIDTH, tiny_folder, tiny_text_encoder, tiny_tokenizer

from miga_bench.backbones import load_backbone
from miga_bench.backbones.embedding_cache import EmbeddingCache
from miga_bench.backbones.loaded import text_side
from miga_bench.backbones.prompt_text import clean_prompt
from miga_bench.backbones.residence import Residence
from miga_bench.backbones.vc2_text import VideoCrafterText
from miga_bench.backbones.wan_text import NEGATIVE_PROMPT, TEXT_LENGTH, WanText
from miga_bench.errors import Notice, UserError
from miga_bench.offline import cache_folder

PROMPTS = ["a red circle moves right", "", "a &amp;amp;\n  green   SQUARE", "a dog"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("text") / "model") / "tokenizer"


class Loads:
    """Loads the tiny encoder and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return tiny_text_encoder()


def make_text(tokenizer, load=None, identity="model A", **options):
    return WanText(tokenizer, load or Loads(), torch.float32, lambda: identity, **options)


def test_embeddings_are_those_of_the_pipeline(tokenizer):
    """Breaks if cleaning, tokens, mask, zeroing or padding differ from diffusers' WanPipeline."""
    pipeline = WanPipeline(tiny_tokenizer(), tiny_text_encoder(), None, None)
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(
            PROMPTS, do_classifier_free_guidance=False, max_sequence_length=LENGTH
        )
    actual = make_text(tokenizer).encode(PROMPTS)
    assert actual.shape == (len(PROMPTS), LENGTH, TEXT_WIDTH)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_rows_past_the_prompt_are_exactly_zero(tokenizer):
    """Breaks if padding tokens are embedded: the denoiser attends to these rows, unmasked."""
    embedding = make_text(tokenizer).encode(["a red circle"])[0]
    real = 4  # three words and the end mark
    assert (embedding[:real].abs().sum(1) > 0).all()
    assert (embedding[real:] == 0).all()


def test_a_prompt_does_not_depend_on_its_neighbors(tokenizer):
    """Breaks if prompts are padded to the longest of a batch before they are encoded."""
    text = make_text(tokenizer)
    assert torch.equal(text.encode(PROMPTS)[0], text.encode(PROMPTS[:1])[0])


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\t cat\n", "a cat"),
        ("&amp;amp;lt;b", "<b"),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
        ("", ""),
    ],
)
def test_cleaning(raw, clean):
    """Breaks if white space, entities or broken encodings reach the tokenizer."""
    assert clean_prompt(raw) == clean


def test_length_is_the_tokenizers_when_it_is_sane(tokenizer):
    """Breaks if a tokenizer without a limit (10 ** 30) makes the text endless, or tiny ones 512."""
    text = make_text(tokenizer)
    assert text.length == LENGTH
    other = tiny_tokenizer()
    other.model_max_length = 10**30
    folder = tokenizer.parent / "unlimited"
    other.save_pretrained(folder)
    assert make_text(folder).length == TEXT_LENGTH == 512


def test_too_long_a_prompt_says_how_long(tokenizer):
    """Breaks if the end of a prompt is cut off silently."""
    text = make_text(tokenizer)
    assert text.encode(["a " * (LENGTH - 1)]).shape[1] == LENGTH
    with pytest.raises(UserError, match=f"{LENGTH + 1} tokens .* {LENGTH}"):
        text.encode(["a " * LENGTH])


def test_too_long_a_prompt_is_told_once(tokenizer):
    """Breaks if transformers warns of what is refused in a moment."""
    heard = []

    class Ear(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    ear, logger = Ear(), logging.getLogger("transformers")
    logger.addHandler(ear)
    text = make_text(tokenizer)
    text.tokenizer.model_max_length = LENGTH
    try:
        with pytest.raises(UserError, match="shorten"):
            text.encode(["a " * 3 * LENGTH])
    finally:
        logger.removeHandler(ear)
    assert heard == []


@pytest.mark.parametrize("words", [0, 1, 2, LENGTH - 2, LENGTH - 1, LENGTH, 3 * LENGTH])
def test_the_beginning_is_as_many_words_as_the_model_reads(tokenizer, words):
    """Breaks if a prompt that fits is touched, or a word more or less is told of one that does not."""
    text = make_text(tokenizer)
    prompt = "a  " * words
    fits = LENGTH - 1
    beginning = text.beginning(prompt)
    assert beginning == (prompt if words <= fits else " ".join("a" * fits))
    assert text.encode([beginning]).shape[1] == LENGTH
    text.length = 1
    if words:
        with pytest.raises(UserError, match="shorten"):
            text.beginning(prompt)


def test_the_beginning_of_a_text_without_spaces_is_its_first_letters(tokenizer, monkeypatch):
    """Breaks if a long Chinese prompt stops a run that was told to cut."""
    text = make_text(tokenizer)
    monkeypatch.setattr(text, "spell", lambda prompt: [*map(ord, prompt), 1])  # a token a letter
    prompt = "\u4e00\u53ea\u732b" * LENGTH
    assert text.beginning(prompt) == prompt[: LENGTH - 1]
    assert text.beginning(f"{prompt} {prompt}") == prompt[: LENGTH - 1]
    assert text.beginning(f"\u732b {prompt}") == "\u732b"


def test_a_known_prompt_needs_no_encoder(tokenizer, tmp_path):
    """Breaks if the 5.7B encoder is loaded for a prompt that is on disk."""
    load, cache = Loads(), EmbeddingCache(tmp_path)
    first = make_text(tokenizer, load, cache=cache).encode(PROMPTS)
    assert load.count == 1
    again = make_text(tokenizer, load, cache=cache)
    assert torch.equal(again.encode(PROMPTS[::-1]).flip(0), first)
    assert load.count == 1
    assert not again.loaded


def test_the_cache_tells_models_and_prompts_apart(tokenizer, tmp_path):
    """Breaks if another model, or other words, get the embedding of the first."""
    load, cache = Loads(), EmbeddingCache(tmp_path)
    make_text(tokenizer, load, cache=cache).encode(["a red circle"])
    make_text(tokenizer, load, identity="model B", cache=cache).encode(["a red circle"])
    make_text(tokenizer, load, cache=cache).encode(["a red square"])
    make_text(tokenizer, load, cache=cache).encode(["a  red circle"])  # the same when cleaned
    assert load.count == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_cache_files_are_made_again(tokenizer, tmp_path):
    """Breaks if a half-written or foreign file in the cache stops a run."""
    load, cache = Loads(), EmbeddingCache(tmp_path)
    expected = make_text(tokenizer, load, cache=cache).encode(["a red circle"])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(make_text(tokenizer, load, cache=cache).encode(["a red circle"]), expected)
    save_file({"something": torch.zeros(1)}, file)
    assert torch.equal(make_text(tokenizer, load, cache=cache).encode(["a red circle"]), expected)
    assert load.count == 3
    assert [f.suffix for f in tmp_path.iterdir()] == [".safetensors"]


def test_an_unusable_cache_folder_is_no_error(tokenizer, tmp_path):
    """Breaks if a full or read-only home folder stops a run."""
    (tmp_path / "file").write_text("")
    text = make_text(tokenizer, cache=EmbeddingCache(tmp_path / "file" / "folder"))
    with pytest.warns(Notice, match="cannot be written .*: the text encoder runs again"):
        assert text.encode(["a red circle"]).shape == (1, LENGTH, TEXT_WIDTH)


@pytest.mark.parametrize("keep", [True, False])
def test_the_encoder_stays_only_if_told_to(tokenizer, keep):
    """Breaks if a big encoder holds memory while the denoiser works, or a small one is reloaded."""
    load = Loads()
    text = make_text(tokenizer, load, keep=keep)
    text.encode(PROMPTS)
    assert text.loaded == keep
    text.encode(PROMPTS)
    assert load.count == (1 if keep else 2)
    text.unload()
    assert not text.loaded


def test_the_encoder_leaves_after_an_error_too(tokenizer, monkeypatch):
    """Breaks if gigabytes stay in memory behind a prompt that could not be read."""
    text = make_text(tokenizer, Loads(), keep=False)
    monkeypatch.setattr(text, "_rows", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        text.encode(PROMPTS)
    assert not text.loaded


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    """Breaks if MIGA_BENCH_CACHE is ignored."""
    monkeypatch.setenv("MIGA_BENCH_CACHE", str(tmp_path))
    assert cache_folder("text") == tmp_path / "text"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("~/mine", ""):  # as a shell leaves it in quotes, and the default
        monkeypatch.setenv("MIGA_BENCH_CACHE", value)
        assert cache_folder("text") == tmp_path / (value[2:] or ".cache/miga-bench") / "text"


def test_a_user_without_a_home_is_told_of_the_cache(monkeypatch):
    """As in a container that runs under a number that nobody has."""

    def nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("MIGA_BENCH_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UserError, match="set MIGA_BENCH_CACHE to a folder of yours"):
        cache_folder("text")


def test_missing_tokenizers_are_named(tokenizer, tmp_path):
    """Breaks if a missing or empty tokenizer folder ends in a traceback, or in a download."""
    with pytest.raises(UserError, match="nowhere is missing"):
        make_text(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer"):
        make_text(tmp_path)


def test_the_negative_prompt_is_the_released_one():
    """Breaks if a character of the authors' default is lost; compared by its length and ends."""
    assert len(NEGATIVE_PROMPT) == 137
    assert NEGATIVE_PROMPT.startswith("\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c")
    assert NEGATIVE_PROMPT.endswith("\u5012\u7740\u8d70")


def test_prompts_encoded_ahead_load_the_encoder_once(tokenizer, tmp_path):
    """Breaks if a run over many prompts loads 5.7B parameters for each of them."""
    load, cache = Loads(), EmbeddingCache(tmp_path)
    text = make_text(tokenizer, load, cache=cache, keep=False)
    text.encode_ahead([*PROMPTS, *PROMPTS])
    assert (load.count, text.loaded) == (1, False)
    for prompt in PROMPTS:
        text.encode([prompt])
    text.encode_ahead(PROMPTS)
    assert load.count == 1
    # nothing is gained where there is no cache
    make_text(tokenizer, load, keep=False).encode_ahead(PROMPTS)
    assert load.count == 1


def released_tokenizer(folder, marks=True):
    """Write a tokenizer as UMT5's is published, of a class that transformers builds anew."""
    names = ["<pad>", "</s>", "<s>", "<unk>", "\u2581a", "\u2581cat", "\u2581"]
    plain = Tokenizer(models.Unigram([(n, -float(i)) for i, n in enumerate(names)], unk_id=3))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    if marks:
        plain.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    plain.add_special_tokens(names[:4])
    plain.enable_truncation(2)
    folder.mkdir()
    plain.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "pad_token": "<pad>"}))
    return folder


@pytest.mark.parametrize("marks", [True, False])
def test_the_released_file_spells(tmp_path, marks):
    """Breaks if transformers' own copy of a tokenizer spells, or a file's missing end mark stays so."""
    text = make_text(released_tokenizer(tmp_path / "tokenizer", marks))
    assert text.tokenizer("a \u4e2d").input_ids == [4, 6, 2, 1], (
        "the copy has another unknown token"
    )
    assert text.spell("a cat \u4e2d") == [4, 5, 6, 3, 1]
    assert text.spell("") == [1]
    assert text.unknown == 3
    assert text.unknown_words(["a cat, \u4e2d"]) == ["\u4e2d"]
    alone = text.with_marks()  # as an export writes it, for readers that add nothing
    assert alone.encode("a cat \u4e2d").ids == [4, 5, 6, 3, 1]
    assert alone.encode("").ids == [1]


@pytest.mark.parametrize("name", ["tiny-wan", "tiny-videocrafter2"])
def test_the_embedded_models_are_spelled_as_ever(name):
    """Breaks if the embeddings of the embedded models change."""
    text = load_backbone(name, device="cpu").text
    for prompt in (*PROMPTS, "A red circle, moves; up! </s> on \u4e2d"):
        assert text.spell(prompt) == text.tokenizer(prompt).input_ids
    assert text.unknown == text.tokenizer.unk_token_id


def test_clips_marks_are_where_they_were(tmp_path):
    """Breaks if a text for VideoCrafter2 begins without its mark, or its end mark counts as unknown."""
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {"a": 0, "a</w>": 1, "b</w>": 2} | {m: i for i, m in enumerate(marks, 3)}
    plain = Tokenizer(
        models.BPE(vocabulary, [], unk_token=marks[1], end_of_word_suffix="</w>"),
    )
    plain.add_special_tokens(marks)
    plain.save(str(tmp_path / "tokenizer.json"))
    told = {"tokenizer_class": "CLIPTokenizer", "bos_token": marks[0], "eos_token": marks[1]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**told, "unk_token": marks[1]}))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    text = VideoCrafterText(tmp_path, Loads(), torch.float32, lambda: "it")
    assert text.spell("") == [3, 4]
    assert text.spell("a") == [3, 1, 4]
    assert text.unknown is None


def no_memory(*arguments, **named):
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize("encoder", [tiny_text_encoder, tiny_clip])
def test_an_encoder_that_does_not_fit_runs_on_the_cpu(tokenizer, encoder, monkeypatch):
    """Breaks if a GPU that holds the denoiser but not the encoder cannot make a video."""
    source = SimpleNamespace(tokenizer=tokenizer, text_identity="it")
    kind = WanText if encoder is tiny_text_encoder else VideoCrafterText
    asked = []

    def load(dtype, device):
        asked.append(device.type)
        return no_memory() if device.type == "meta" else encoder()

    def text_on(device):
        place = Residence(torch.device(device), offload=False)
        return text_side(kind, source, place, load, torch.float32, cached=False)

    expected = text_on("cpu").encode(PROMPTS[:1])
    crowded = text_on("meta")
    with pytest.warns(Notice, match="it runs on the CPU") as said:
        assert torch.equal(crowded.encode(PROMPTS[:1]), expected)
    crowded.unload()
    assert torch.equal(crowded.encode(PROMPTS[:1]), expected)
    assert (asked, len(said)) == (["cpu", "meta", "cpu", "cpu"], 1)
    # memory for the weights, and none for the work
    full = text_on("cpu")
    full.encode(PROMPTS[:1])
    rows, tries = full._rows, []
    monkeypatch.setattr(
        full, "_rows", lambda *a: rows(*a) if tries else tries.append(1) or no_memory()
    )
    there = SimpleNamespace(parameters=lambda: iter([torch.zeros(1, device="meta")]))
    there.to = lambda device: setattr(full, "_rows", lambda _, tokens: rows(encoder(), tokens))
    full._encoder = there
    with pytest.warns(Notice, match="it runs on the CPU"):
        assert torch.equal(full.encode(PROMPTS[:1]), expected)


def test_an_encoder_may_be_told_to_stay(tokenizer, tmp_path):
    """Breaks if a server cannot keep a large encoder that every new prompt would load again."""
    load = Loads()
    text = make_text(tokenizer, load, cache=EmbeddingCache(tmp_path), keep=False)
    text.keep = True
    for prompt in PROMPTS:
        text.encode([prompt])
    assert (load.count, text.loaded) == (1, True)


def test_embeddings_not_used_for_longest_make_room(tmp_path):
    """Breaks if a server's disk fills with prompts, or if one in use goes."""
    row = torch.zeros(2, 4)
    cache = EmbeddingCache(tmp_path)
    paths = [cache.path("model", [number], 8, row.dtype) for number in range(4)]
    for number, path in enumerate(paths[:3]):
        cache.save(path, row)
        os.utime(path, (number, number))
    assert cache.load(paths[0]) is not None  # used just now
    size = paths[0].stat().st_size
    EmbeddingCache(tmp_path, most=2 * size + 1).save(paths[3], row)
    assert [path.exists() for path in paths] == [True, False, False, True]
    EmbeddingCache(tmp_path, most=1).save(paths[1], row)
    assert [path.exists() for path in paths] == [False, True, False, False]


def test_embeddings_that_cannot_go_end_no_video(tmp_path, monkeypatch):
    """Breaks if another user's files in a shared cache end a run that wants room."""

    def refused(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    cache, row = EmbeddingCache(tmp_path, most=1), torch.zeros(2, 4)
    paths = [cache.path("model", [number], 8, row.dtype) for number in range(2)]
    cache.save(paths[0], row)
    monkeypatch.setattr(Path, "unlink", refused)
    cache.save(paths[1], row)
    assert all(path.exists() for path in paths)
