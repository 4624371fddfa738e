"""The form that a request wants its answer to have, under each of the names it goes by, as `structured_outputs`.

response_format, text.format    of OpenAI: json_schema, json_object, text
structured_outputs              of vLLM and ours
guided_json, guided_regex, …    of vLLM before that
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_OLD_NAMES = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
FORM_FIELDS = frozenset({"response_format", "structured_outputs", *_OLD_NAMES})


def take_form(body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The form, None where any text will do, and the request without it.

    Raises:
        ValueError: two fields ask for one, or one of them is not as its API has it.
    """
    rest = dict(body)
    asked = dict(_asked(rest))
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} ask for a form of the answer; keep one")
    return next(iter(asked.values()), None), rest


def _asked(rest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each form by the field that asks for it, which is taken out."""
    for name, own in _OLD_NAMES.items():
        if name in rest:
            yield name, {own: rest.pop(name)}
    if (form := rest.pop("structured_outputs", None)) is not None:
        yield "structured_outputs", _of_vllm(form)
    response_format = rest.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") in ("json_object", "json_schema"):
        del rest["response_format"]
        yield "response_format", _of_openai(response_format, "response_format", response_format.get("json_schema"))
    text: dict[str, Any] = rest["text"] if isinstance(rest.get("text"), dict) else {}
    written = text.get("format")
    if isinstance(written, dict) and written.get("type") in ("json_object", "json_schema"):
        rest["text"] = {**text, "format": {"type": "text"}}
        yield "text.format", _of_openai(written, "text.format", written)


def _of_openai(written: Mapping[str, Any], field: str, holder: Any) -> dict[str, Any]:
    if written["type"] == "json_object":
        return {"json": True}
    if not isinstance(holder, dict) or not isinstance(holder.get("schema"), dict):
        where = "json_schema.schema" if field == "response_format" else "schema"
        raise ValueError(f"{field} of type json_schema has no {where}, which is an object; add it")
    return {"json": holder["schema"]}


def _of_vllm(form: Any) -> Any:
    """As it is, but for what stands for any object there."""
    if not isinstance(form, dict) or form.get("json_object") is None:
        return form
    others = {key: value for key, value in form.items() if key != "json_object"}
    return {**others, "json": True} if form["json_object"] is True else others
