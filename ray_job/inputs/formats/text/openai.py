"""A request in the OpenAI batch form, as messages and our generation parameters.

A line is for chat completions or for responses, at any server's path: `/v1/chat/completions`, Azure's
`/chat/completions` and `/openai/deployments/…/chat/completions`, `/v1/responses`. Fields of the request body:

    taken            messages; of responses, instructions and input. max_tokens, max_completion_tokens and
                     max_output_tokens as max_new_tokens; temperature, top_p, seed, stop; of what other engines add:
                     top_k, repetition_penalty, stop_token_ids, max_new_tokens. The form of the answer, under each of
                     its names (`openai_forms.py`), as structured_outputs
    ignored          model, user, metadata, store, stream, service tiers and cache keys: they do not change an answer
    refused          everything else, unless its value changes nothing (n: 1, logprobs: false, penalties of 0, no tools,
                     modalities of text; of vLLM's: min_p: 0, ignore_eos: false, skip_special_tokens: true, …). Such
                     a row fails with PARAMS_INVALID rather than be answered in another way than asked. A field whose
                     value is null counts as not given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.inputs.formats.text.openai_forms import FORM_FIELDS, take_form
from ray_job.inputs.source import malformed
from ray_job.spec import LENGTH_NAMES, GenerationParams, with_one_length

_ENDPOINT = re.compile(r"(https?://[^/?]+)?(/[^?]*)?/(chat/completions|responses)/?(\?.*)?")
_OURS = frozenset(GenerationParams.model_fields)
_ASIDE = frozenset(
    {
        "messages",
        "input",
        "instructions",
        "model",
        "user",
        "metadata",
        "store",
        "stream",
        "stream_options",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "request_id",
        "priority",
        "cache_salt",
        "background",
    }
)
_OFF: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    # Of responses.
    "text": ({}, *({"format": {"type": "text"}, **rest} for rest in ({}, {"verbosity": "medium"}))),
    "reasoning": ({}, {"effort": "none"}),
    "include": ([],),
    "truncation": ("disabled",),
    # What servers of open models take beside OpenAI's own fields.
    "min_p": (0,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template_kwargs": ({}, {"enable_thinking": False}, {"thinking": False}),
    "mm_processor_kwargs": ({},),
    "bad_words": ([],),
    "echo": (False,),
    "min_new_tokens": (0,),
    "prompt_logprobs": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_hidden_states": (False,),
    "no_stop_trim": (False,),
    "separate_reasoning": (True, False),
    "include_reasoning": (True, False),
    "detokenize": (True,),
    "extra_body": ({},),
    "vllm_xargs": ({},),
    "documents": ([],),
    "allowed_token_ids": ([],),
}
_TAKEN = _OURS | _ASIDE | frozenset(LENGTH_NAMES)
ENVELOPE = frozenset({"method", "url", "body"})
# Fields of a flat line that belong to the request rather than to the user's data.
REQUEST_FIELDS = _TAKEN | FORM_FIELDS | frozenset(_OFF) | ENVELOPE

# In a line without an envelope these belong to the user, who may have columns of such names.
_NOT_IN_FLAT_LINES = frozenset({"input", "instructions", "text", "include", "documents", "priority", "request_id"})
_IN_FLAT_LINES = REQUEST_FIELDS - ENVELOPE - _NOT_IN_FLAT_LINES


def is_request(item: Mapping[str, Any]) -> bool:
    """Whether a line is in the batch form, or has its messages beside its other columns."""
    body = item.get("body", item)
    return isinstance(body, dict) and (isinstance(body.get("messages"), list) or (body is not item and "input" in body))


def parse_request(line: Mapping[str, Any]) -> tuple[str, str]:
    """The messages (JSON text) and our generation parameters (JSON object) of a batch line or a flat one.

    Raises:
        RowError: ROW_MALFORMED without messages, PARAMS_INVALID for a parameter that cannot be honoured.
    """
    if "body" not in line:
        messages = _list(line, "messages")
        return json.dumps(messages, ensure_ascii=False), _params(
            {key: line[key] for key in line if key in _IN_FLAT_LINES}
        )
    body = line["body"]
    if not isinstance(body, dict):
        raise malformed(f"body must be an object, got {type(body).__name__}")
    url = line.get("url")
    if url is not None and not (isinstance(url, str) and _ENDPOINT.fullmatch(url)):
        raise malformed(f"url must end in /chat/completions or /responses, got {str(url)[:100]!r}")
    messages = _of_responses(body) if body.get("messages") is None and "input" in body else _list(body, "messages")
    if isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise malformed("the last message is the assistant's, and a request ends with the user's; leave it out")
    return json.dumps(messages, ensure_ascii=False), _params(body)


def _list(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list) or not value:
        raise malformed(f"there is no list of {key} in it")
    return value


def _of_responses(body: Mapping[str, Any]) -> list[Any]:
    """The messages of a request for responses: its instructions, and its input's items."""
    instructions, given = body.get("instructions"), body["input"]
    if instructions is not None and not isinstance(instructions, str):
        raise malformed(f"instructions must be a text, got {type(instructions).__name__}")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _list(body, "input")
    for index, item in enumerate(items):
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in (None, "message"):
            raise malformed(f"input {index}: an item of type {kind!r} cannot be shown to this model; leave it out")
    return [*([{"role": "system", "content": instructions}] if instructions else []), *items]


def _params(body: Mapping[str, Any]) -> str:
    given = {key: value for key, value in body.items() if value is not None}
    try:
        form, given = take_form(given)
        params = {key: value for key, value in with_one_length(given).items() if key in _OURS}
    except ValueError as error:
        raise _refused(str(error)) from None
    if form is not None:
        params["structured_outputs"] = form
    if params.get("top_k") == -1:  # vLLM's way to say off
        params["top_k"] = 0
    refused = [
        f"{key}: {json.dumps(value)[:60]}"
        for key, value in sorted(given.items())
        if key not in _TAKEN and not _is_off(key, value)
    ]
    if refused:
        raise _refused(f"not supported and would change the answer: {', '.join(refused)}; leave it out")
    return json.dumps(params)


def _is_off(key: str, value: Any) -> bool:
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None}
    return any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in _OFF.get(key, ()))


def _refused(message: str) -> RowError:
    return RowError(ErrorCode.PARAMS_INVALID, message, Stage.READ)
