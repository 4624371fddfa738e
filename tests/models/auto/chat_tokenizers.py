"""Small tokenizers and chat templates of the kinds that published vision-language models come with.

A byte-level tokenizer as Qwen, Llama 3 and SmolVLM have it; two with byte fallback as sentencepiece models become in
tokenizer.json: Llama 2's, which puts a space before every text, and Gemma's, which does not. Each has a few merges, so
that a text cut at the wrong place gets other ids.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 256, 257, 258
VOCAB = 384
_UNK = "<unk>"
_MERGES = ["th", "the", "in", "ing", "an", "and", "re", "er", "ur", "ic", "\n\n"]


def tokenizer(kind: str, specials: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, `<pad>`, `<s>`, `</s>`, some merges, and the special tokens.

    Args:
        kind: `bytes`, `llama` or `gemma`.
        specials: added after the others.
        named: special tokens that the library's processors ask for by name, such as `image_token`.
    """
    made = _byte_level() if kind == "bytes" else _byte_fallback(starts_with_space=kind == "llama")
    names = dict.fromkeys([PAD, BOS, EOS, *specials])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if kind != "bytes":
        made.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        extra_special_tokens=dict(named) or None,
    )


def _byte_level() -> Tokenizer:
    shown = {" ": "Ġ", "\n": "Ċ"}
    merges = ["".join(shown.get(char, char) for char in merge) for merge in [*_MERGES, " t", " the"]]
    vocab = _vocab(sorted(pre_tokenizers.ByteLevel.alphabet()), merges)
    made = Tokenizer(models.BPE(vocab=vocab, merges=_pairs(merges, vocab)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _byte_fallback(starts_with_space: bool) -> Tokenizer:
    letters = ["▁", "\n", *string.ascii_letters]
    merges = [*_MERGES, "\n\n\n", "\n\n\n\n", "▁t", "▁the"]  # Gemma 3 in vLLM looks for runs of line breaks
    vocab = _vocab([f"<0x{byte:02X}>" for byte in range(256)], [_UNK, *letters, *merges])
    made = Tokenizer(
        models.BPE(vocab=vocab, merges=_pairs(merges, vocab), unk_token=_UNK, byte_fallback=True, fuse_unk=True)
    )
    space = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if starts_with_space else space
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*joined, decoders.Strip(" ", 1, 0)] if starts_with_space else joined)
    return made


def _vocab(base: Sequence[str], others: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate([*base, PAD, BOS, EOS, *others])}


def _pairs(merges: Sequence[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The two known pieces that each merge joins, the longest first one counting."""
    pairs = []
    for merge in merges:
        cuts = [(merge[:cut], merge[cut:]) for cut in range(len(merge) - 1, 0, -1)]
        pairs.append(next(pair for pair in cuts if pair[0] in vocab and pair[1] in vocab))
    return pairs


def chatml(image: str) -> str:
    """Qwen's and InternVL's: a system prompt of its own unless there is one."""
    return (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
        + image
        + "{% elif 'text' "
        "in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def pictures_first(image: str) -> str:
    """LLaVA's: no tokens of its own, and of each message the pictures before the texts."""
    return (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}"
        "{% endif %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}" + image + "\n{% endfor %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


def turns(image: str) -> str:
    """Gemma's: starts with bos, folds the system prompt into the first turn, trims texts, insists on turns in turn."""
    return (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% if messages[0]['content'] is string %}"
        "{% set prefix = messages[0]['content'] + '\n\n' %}{% else %}"
        "{% set prefix = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}{% set turns = messages[1:] %}"
        "{% else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}{% for message in turns %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}{% if message['content'] is string %}"
        "{{ message['content'] | trim }}{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
        "{{ '" + image + "' }}{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
        "{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<start_of_turn>model\n' }}{% endif %}"
    )


def instructions(image: str) -> str:
    """Mistral's: bos, instructions in brackets, a system prompt in brackets of its own, other roles refused."""
    return (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
        "{% for block in message['content'] %}{% if block['type'] == 'text' %}{{ block['text'] }}"
        "{% elif block['type'] in ['image', 'image_url'] %}" + image + "{% else %}"
        "{{ raise_exception('Only text and image blocks are supported in message content!') }}{% endif %}{% endfor %}"
        "[/INST]{% elif message['role'] == 'system' %}[SYSTEM_PROMPT]{{ message['content'][0]['text'] }}"
        "[/SYSTEM_PROMPT]{% elif message['role'] == 'assistant' %}{{ message['content'][0]['text'] }}{{ eos_token }}"
        "{% else %}"
        "{{ raise_exception('Only user, system and assistant roles are supported!') }}{% endif %}{% endfor %}"
    )


def utterances(image: str) -> str:
    """SmolVLM's and Idefics3's: no space before a picture, a token where an utterance ends."""
    return (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '" + image + "' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )


def roles(image: str) -> str:
    """GLM's: two tokens first, then a token for each role."""
    return (
        "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for item in message['content'] %}{% if item['type'] == 'image' %}"
        + image
        + "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
