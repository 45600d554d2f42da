"""Captions as token ids: a word is a token."""

from __future__ import annotations

from typing import Any, Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD: Final = 0
END: Final = 1

SMALL_T5: Final[dict[str, Any]] = {
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 32,
    "dropout_rate": 0.0,
    "pad_token_id": PAD,
    "eos_token_id": END,
}
"""Settings of a T5 encoder of 2 layers; without dropout, as its captions are few and short."""


def word_tokenizer(vocabulary: list[str], longest: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; like T5's, it ends each text with ``</s>`` and pads with 0.

    longest: text that it takes, in tokens.
    """
    special = ["<pad>", "</s>", "<unk>"]
    table = {word: index for index, word in enumerate(special + vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", table["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=longest,
        padding_side="right",
    )


def padded_ids(tokenizer: PreTrainedTokenizerFast, captions: list[str], length: int) -> list[list[int]]:
    """Token ids of ``captions``, each padded with 0 to ``length``."""
    ids: list[list[int]] = tokenizer(captions, padding="max_length", max_length=length)["input_ids"]
    return ids
