"""Batch lines as people write them for all servers: what is asked, and what cannot be honoured is that row's error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_job.prompts.messages import Shown, read_turns
from ray_job.spec import GenerationParams, StructuredOutputs
from ray_job.stages.params import RowParams

from .conftest import opened, rows_of, write_lines

USER = {"role": "user", "content": "What?"}
MESSAGES = [USER]


def line(custom_id: str, url: Any = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    body = {"model": "m", **({} if "input" in body else {"messages": MESSAGES}), **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def rows(tmp_path: Path, *items: dict[str, Any]) -> list[dict[str, Any]]:
    return rows_of(opened(write_lines(tmp_path / "a.jsonl", list(items)), template=None), 100)


def error_of(row: dict[str, Any]) -> str | None:
    error = row["_rj_read_error"]
    return None if error is None else f"{error['code']}: {error['message']}"


@pytest.mark.parametrize(
    "url",
    [
        "/v1/chat/completions",
        "/chat/completions",
        "/openai/deployments/gpt-4o/chat/completions",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "https://name.openai.azure.com/openai/v1/chat/completions",
        "/v1/chat/completions/",
        "/v4/chat/completions",
        None,
    ],
)
def test_every_servers_path_of_chat_completions(tmp_path: Path, url: str | None) -> None:
    (row,) = rows(tmp_path, line("a", url))
    assert (row["row_id"], json.loads(row["messages"]), error_of(row)) == ("a", MESSAGES, None)


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/completions", "/chat/completions/x", "chat", 5])
def test_another_path_is_the_rows_error(tmp_path: Path, url: Any) -> None:
    bad, good = rows(tmp_path, line("a", url), line("b"))
    assert "url must end in /chat/completions or /responses, got" in str(error_of(bad))
    assert error_of(good) is None


def test_requests_for_responses(tmp_path: Path) -> None:
    content = [
        {"type": "input_text", "text": "What?"},
        {"type": "input_image", "image_url": "data:image/png;base64,QQ", "detail": "low"},
    ]
    given = [{"type": "message", "role": "user", "content": content}]
    neutral = {"text": {"format": {"type": "text"}}, "reasoning": {}, "include": [], "truncation": "disabled"}
    found = rows(
        tmp_path,
        line("list", "/v1/responses", input=given, instructions="Be terse.", max_output_tokens=7, **neutral),
        line("text", "/openai/v1/responses", input="What?", previous_response_id=None, store=False),
    )
    assert [error_of(row) for row in found] == [None, None]
    system, user = read_turns(found[0]["messages"])
    assert (system.role, system.pieces) == ("system", ("Be terse.",))
    assert user.pieces == ("What?", Shown("data:image/png;base64,QQ"))
    assert read_turns(found[1]["messages"])[0].pieces == ("What?",)
    assert [json.loads(row["params"]) for row in found] == [{"max_new_tokens": 7}, {}]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"input": [{"type": "function_call", "name": "f"}]}, "input 0: an item of type 'function_call'"),
        ({"input": []}, "there is no list of input in it"),
        ({"input": 5}, "there is no list of input in it"),
        ({"input": "x", "instructions": ["y"]}, "instructions must be a text, got list"),
        ({"input": "x", "text": {"format": {"type": "grammar"}}}, 'text: {"format": {"type": "grammar"}}'),
        ({"input": "x", "reasoning": {"effort": "high"}}, 'reasoning: {"effort": "high"}'),
        ({"input": "x", "previous_response_id": "r"}, 'previous_response_id: "r"'),
        ({"input": "x", "truncation": "auto"}, 'truncation: "auto"'),
        ({"input": "x", "max_output_tokens": 5, "max_tokens": 6}, "max_output_tokens differ (6 and 5)"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "It"}]}, "the last message is the assistant's"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, body: dict[str, Any], named: str) -> None:
    bad, good = rows(tmp_path, line("a", **body), line("b"))
    assert named in str(error_of(bad))
    assert (bad["row_id"], error_of(good)) == ("a", None)


NEUTRAL: list[dict[str, Any]] = [
    {"n": 1, "top_p": 1, "temperature": 0, "seed": 0, "logit_bias": None, "stop": None, "stream": False},
    {"logit_bias": {}, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "user": "u"},
    {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "top_logprobs": None, "metadata": {"a": "b"}},
    {"ignore_eos": False, "chat_template_kwargs": {}, "mm_processor_kwargs": {}, "skip_special_tokens": True},
    {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "min_tokens": 0, "bad_words": [], "add_generation_prompt": True},
    {"top_k": 0, "echo": False, "priority": 3, "request_id": "r", "return_token_ids": False, "documents": []},
    {"extra_body": {}, "vllm_xargs": {}, "detokenize": True, "include_reasoning": False, "verbosity": "medium"},
    {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "none", "reasoning": {"effort": None}},
    {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "reasoning": {"effort": None, "summary": None}},
    {"guided_json": None, "audio": None, "modalities": ["text"], "service_tier": "auto", "parallel_tool_calls": True},
]


@pytest.mark.parametrize("body", NEUTRAL)
def test_fields_at_their_neutral_values_ask_for_nothing(tmp_path: Path, body: dict[str, Any]) -> None:
    (row,) = rows(tmp_path, line("a", **body))
    assert error_of(row) is None
    defaults = GenerationParams()
    assert defaults.overridden(json.loads(row["params"])) == defaults


def test_columns_of_a_flat_line_are_the_users(tmp_path: Path) -> None:
    """Names that mean something in a request for responses mean nothing beside a line's own messages."""
    item = {"custom_id": "a", "messages": [*MESSAGES, {"role": "assistant", "content": "It"}], "text": "t", "input": 3}
    (row,) = rows(tmp_path, item)
    assert error_of(row) is None
    assert [turn.role for turn in read_turns(row["messages"])] == ["user"], "a recorded answer is not shown"


SCHEMA = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}, "required": ["n"]}
FORMS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, {"json": True}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}},
        {"json": SCHEMA},
    ),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
    ({"structured_outputs": {"json_object": True, "regex": None}}, {"json": True}),
    ({"guided_json": SCHEMA}, {"json": SCHEMA}),
    ({"guided_json": json.dumps(SCHEMA)}, {"json": SCHEMA}),
    ({"guided_regex": "[ab]"}, {"regex": "[ab]"}),
    ({"guided_choice": ["a"]}, {"choice": ["a"]}),
    ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
    ({"input": "?", "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}}, {"json": SCHEMA}),
]


@pytest.mark.parametrize(("body", "form"), FORMS)
def test_a_request_asks_for_the_form_of_its_answer(
    tmp_path: Path, body: dict[str, Any], form: dict[str, Any] | None
) -> None:
    (row,) = rows(tmp_path, line("a", **body))
    assert error_of(row) is None
    found = RowParams(GenerationParams(), "params").of(row).structured_outputs
    assert found == (None if form is None else StructuredOutputs.model_validate(form))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex and response_format ask"),
        ({"response_format": {"type": "json_schema"}}, "no json_schema.schema, which is an object; add it"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "no json_schema.schema"),
        ({"response_format": {"type": "structural_tag"}}, 'response_format: {"type": "structural_tag"}'),
        ({"input": "?", "text": {"format": {"type": "json_schema", "name": "s"}}}, "text.format of type json_schema"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ],
)
def test_a_form_that_is_not_as_its_api_has_it_is_refused(tmp_path: Path, body: dict[str, Any], named: str) -> None:
    (row,) = rows(tmp_path, line("a", **body))
    assert str(error_of(row)).startswith("params_invalid: ")
    assert named in str(error_of(row))
