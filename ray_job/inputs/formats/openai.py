"""A request in the OpenAI batch form, as messages and our generation parameters.

Fields of the request body:

    taken            max_tokens and max_completion_tokens as max_new_tokens; temperature, top_p, seed, stop; of what
                     other engines add: top_k, repetition_penalty, stop_token_ids, max_new_tokens
    ignored          model, user, metadata, store, stream, service tiers and cache keys: they do not change an answer
    refused          everything else, unless its value changes nothing (n: 1, logprobs: false, penalties of 0, no tools,
                     response_format text; of vLLM's: min_p: 0, ignore_eos: false, skip_special_tokens: true, …). Such
                     a row fails with PARAMS_INVALID rather than be answered in another way than asked. A field whose
                     value is null counts as not given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.inputs.source import malformed
from ray_job.spec import LENGTH_NAMES, GenerationParams, with_one_length

_ENDPOINTS = ("/v1/chat/completions", "/chat/completions")  # the latter in Azure's batch files
_OURS = frozenset(GenerationParams.model_fields)
_ASIDE = frozenset(
    {
        "messages",
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
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "bad_words": ([],),
}
_TAKEN = _OURS | _ASIDE | frozenset(LENGTH_NAMES)
ENVELOPE = frozenset({"method", "url", "body"})
# Fields of a flat line that belong to the request rather than to the user's data.
REQUEST_FIELDS = _TAKEN | frozenset(_OFF) | ENVELOPE

_IN_FLAT_LINES = REQUEST_FIELDS - ENVELOPE


def parse_request(line: Mapping[str, Any]) -> tuple[str, str]:
    """The messages (JSON text) and our generation parameters (JSON object) of a batch line or a flat one.

    Raises:
        RowError: ROW_MALFORMED without messages, PARAMS_INVALID for a parameter that cannot be honoured.
    """
    if "body" not in line:
        return _messages(line), _params({key: line[key] for key in line if key in _IN_FLAT_LINES})
    body = line["body"]
    if not isinstance(body, dict):
        raise malformed(f"body must be an object, got {type(body).__name__}")
    url = line.get("url")
    if url is not None and url not in _ENDPOINTS:
        raise malformed(f"url must be {_ENDPOINTS[0]}, got {str(url)[:100]!r}")
    return _messages(body), _params(body)


def _messages(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise malformed("there is no list of messages in it")
    return json.dumps(messages, ensure_ascii=False)


def _params(body: Mapping[str, Any]) -> str:
    given = {key: value for key, value in body.items() if value is not None}
    try:
        params = {key: value for key, value in with_one_length(given).items() if key in _OURS}
    except ValueError as error:
        raise _refused(str(error)) from None
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
    return any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in _OFF.get(key, ()))


def _refused(message: str) -> RowError:
    return RowError(ErrorCode.PARAMS_INVALID, message, Stage.READ)
