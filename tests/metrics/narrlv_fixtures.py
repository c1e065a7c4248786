"""Shared by the tests of NarrLV: suites of ours, synthetic answers, and a tiny random Qwen2.5-VL."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import miga_bench
from miga_bench.metrics.narrlv.suite import Story, Suite, load_suite

PROMPTS = Path(miga_bench.__file__).parent / "prompts"
TINY, NATURAL = PROMPTS / "tiny", PROMPTS / "natural"
_SUITE = load_suite(NATURAL / "natural_target_action_tna_2.json")
FEW = Suite(_SUITE.items[:1], (), _SUITE.digest, _SUITE.source)  # one story

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")
# ChatML with the pictures where the message has them, as Qwen2.5-VL's own template does it.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Without torchvision there is no video processor; a server that is sent images needs none.
PROCESSOR = """\
from transformers import Qwen2_5_VLProcessor


class ImagesProcessor(Qwen2_5_VLProcessor):
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)
"""


def synthetic_answers(item: Story, seed: int) -> tuple[dict[str, list[list[str]]], float]:
    """Answers to an item, some unreadable, and a quality; also what the golden numbers are made of."""
    rng = random.Random(f"{seed}/{item.key}")
    leaning = rng.choice([0.15, 0.5, 0.85, 0.97])
    yes, no = ["Yes.", "yes", "Yes, it does."], ["No.", "no, it does not", "Not sure"]

    def vote() -> str:
        if rng.random() < leaning:
            return rng.choice(yes)
        return rng.choice(no + ["Perhaps."] * (rng.random() < 0.2))

    answers = {
        category: [
            ["Yes." if rng.random() < leaning else "No."] + [vote() for _ in range(4)]
            for _ in questions
        ]
        for category, questions in item.questions.items()
    }
    return answers, rng.uniform(1, 5)


def tiny_qwen(folder: Path) -> Path:
    """Write a random Qwen2.5-VL of 0.1 million weights that spells in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|im_end|>", "<|endoftext|>")],
    )
    tokenizer.chat_template = TEMPLATE
    end, start, done, vision, vision_end, image, video = tokenizer.convert_tokens_to_ids(SPECIAL)
    del start
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "eos_token_id": done,
        "bos_token_id": end,
        "pad_token_id": end,
        "max_position_embeddings": 8192,
    }
    sight = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text,
            vision_config=sight,
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=vision,
            vision_end_token_id=vision_end,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():  # far enough from zero that answers depend on frames
            weight += 0.3 * torch.randn_like(weight)
    model.generation_config.update(do_sample=True, eos_token_id=done, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 56 * 56,
        "max_pixels": 16384 * 28 * 28,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    name = "ImagesProcessor"
    processor = {
        "processor_class": name,
        "auto_map": {"AutoProcessor": f"processing_images.{name}"},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "processing_images.py").write_text(PROCESSOR)
    return folder
