"""Questions that are answered in JSON: the question, the schema of its answers, and the answer a scene has.

Answers are compact, with keys in the schema's order: what a grammar of the schema without white space allows.
"""

from __future__ import annotations

import json
from typing import Any

from ray_job.demo.pictures import COLOURS, MAX_TEXT, SHAPES, TEXT_COLOURS, Scene


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an object with all these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SHAPES_QUESTION = "Describe the shapes as JSON."
SHAPES_SCHEMA = _object(
    colour={"type": "string", "enum": list(COLOURS)},
    shape={"type": "string", "enum": list(SHAPES)},
    count={"type": "integer", "minimum": 1, "maximum": 4},
)
TEXT_QUESTION = "Describe the text as JSON."
TEXT_SCHEMA = _object(
    text={"type": "string", "pattern": f"^[0-9]{{2,{MAX_TEXT}}}$"},
    colour={"type": "string", "enum": list(TEXT_COLOURS)},
)
SCHEMAS = {SHAPES_QUESTION: SHAPES_SCHEMA, TEXT_QUESTION: TEXT_SCHEMA}


def json_question(scene: Scene) -> tuple[str, str] | None:
    """The question and the answer for print, or for shapes that are all of one kind and one colour; else None."""
    colours, names = {item.colour for item in scene.items}, {item.name for item in scene.items}
    if scene.layout == "text":
        return TEXT_QUESTION, _compact({"text": scene.text, "colour": scene.items[0].colour})
    if scene.layout == "shapes" and len(colours) == len(names) == 1:
        content = {"colour": colours.pop(), "shape": names.pop(), "count": len(scene.items)}
        return SHAPES_QUESTION, _compact(content)
    return None


def is_same_json(answer: str, truth: str) -> bool:
    """Whether an answer is JSON and says the same; spaces and the order of keys do not matter."""
    try:
        return _sorted(json.loads(answer)) == _sorted(json.loads(truth))
    except ValueError:
        return False


def _sorted(content: Any) -> str:
    """Text, for in Python 1 equals true."""
    return json.dumps(content, sort_keys=True)


def _compact(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))
