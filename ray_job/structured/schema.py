"""What a JSON Schema may say where answers are held to it: each problem with its place in the schema.

Knows which keywords can be guaranteed while an answer is generated. Whatever else a schema holds is a problem rather
than left out of account, so that no answer is valid here and invalid elsewhere; annotations may stand anywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

_GUARANTEED = (
    *("type", "const", "enum", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions"),
    *("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
_ANNOTATIONS = (
    *("$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "example", "examples"),
    *("deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator", "externalDocs"),
)
_REFUSED = {
    "not": "say what is allowed instead",
    "if": "list the cases in anyOf",
    "then": "list the cases in anyOf",
    "else": "list the cases in anyOf",
    "uniqueItems": "name the values in an object of booleans, or leave it out",
    "contains": "put the item into prefixItems, or leave it out",
    "propertyNames": "use patternProperties with additionalProperties: false",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "dependentRequired": "list the cases in anyOf",
    "dependentSchemas": "list the cases in anyOf",
    "dependencies": "list the cases in anyOf",
    "nullable": "write type: [..., 'null'] instead",
    "x-guidance": "how answers are written is not the schema's; leave it out",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_OF_EACH = ("properties", "patternProperties", "$defs", "definitions")  # names with a schema each
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def schema_problems(schema: Any) -> list[str]:
    """What is wrong with a schema, all of it: `at /properties/a: …`. Of one that is not too deep for recursion."""
    found = [f"{at(place)}: {text}" for place, part in subschemas(schema) for text in _part_problems(part, schema)]
    if not found and isinstance(schema, Mapping):
        found += _endless(schema)
    return found


def at(place: str) -> str:
    """How a message names a place."""
    return f"at {place}" if place else "at its top"


def subschemas(schema: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The schema and all schemas in it, each with its JSON Pointer; what contains stands before what is in it."""
    yield place, schema
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        here = f"{place}/{_escaped(key)}"
        if key in _OF_EACH and isinstance(value, Mapping):
            for name, each in value.items():
                yield from subschemas(each, f"{here}/{_escaped(name)}")
        elif (key in _IN_LISTS or key == "items") and isinstance(value, list):
            for index, each in enumerate(value):
                yield from subschemas(each, f"{here}/{index}")
        elif key in ("items", "additionalProperties", "additionalItems"):
            yield from subschemas(value, here)


def optional_parts(schema: Schema) -> Iterator[Schema]:
    """Schemas of what a value may hold and need not: items, cases, and properties that are not required."""
    for _, part in subschemas(schema):
        if not isinstance(part, Mapping):
            continue
        named = part.get("properties", {})
        parts = [named[name] for name in named if name not in part.get("required", [])]
        parts += [each for key in ("anyOf", "oneOf", "prefixItems") for each in part.get(key, [])]
        parts += part.get("patternProperties", {}).values()
        items = part.get("items", True)
        parts += [*(items if isinstance(items, list) else [items]), part.get("additionalProperties", True)]
        yield from (each for each in parts if isinstance(each, Mapping))


def _escaped(name: object) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _part_problems(part: Any, root: Any) -> Iterator[str]:
    if isinstance(part, bool):
        return
    if not isinstance(part, Mapping):
        yield f"a schema is an object, true or false, and this is {part!r:.60}"
        return
    for key in part:
        yield from _keyword_problem(key, part[key])
    for key in _OF_EACH:
        if not isinstance(part.get(key, {}), Mapping):
            yield f"{key} must be an object with a schema for each name"
    for key in (*_IN_LISTS, "enum", "required"):
        if not isinstance(part.get(key, []), list):
            yield f"{key} must be a list"
    yield from _type_problems(part.get("type", []))
    if "format" in part and part["format"] not in FORMATS:
        yield f"format {part['format']!r} is not known; known: {', '.join(FORMATS)}. Use pattern, or leave it out"
    if "$ref" in part:
        yield from _reference_problem(part["$ref"], root)
    num_required = len(part["required"]) if isinstance(part.get("required"), list) else 0
    least = part.get("minProperties", 0)
    if isinstance(least, int) and least > max(1, num_required):
        yield "minProperties above 1 cannot be guaranteed, as names might repeat; list the names in required"


def _keyword_problem(key: str, value: Any) -> Iterator[str]:
    if key in _GUARANTEED or key in _ANNOTATIONS or (key == "nullable" and value is False):
        return
    if key in _REFUSED:
        yield f"{key} cannot be guaranteed; {_REFUSED[key]}"
    elif not key.startswith("x-"):
        near = difflib.get_close_matches(key, (*_GUARANTEED, *_ANNOTATIONS), n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "leave it out, or begin its name with x-"
        yield f"{key!r} is no keyword that is known here; {hint}"


def _type_problems(given: Any) -> Iterator[str]:
    for name in given if isinstance(given, list) else [given]:
        if name not in _TYPES:
            yield f"type {name!r:.60} does not exist; allowed: {', '.join(_TYPES)}"


def _reference_problem(reference: Any, root: Any) -> Iterator[str]:
    if not isinstance(reference, str) or not reference.startswith("#"):
        yield f"$ref {reference!r:.200} leads out of the schema, and nothing is fetched; copy what it names into $defs"
    elif (reference == "#" or reference.startswith("#/")) and target(reference, root) is None:
        yield f"$ref {reference!r:.200} leads nowhere"


def target(reference: str, root: Any) -> Any:
    """What `#/a/b` names in the schema; None where there is nothing, or it is named by an anchor."""
    found = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found if reference.startswith("#") else None


def _endless(root: Schema) -> list[str]:
    """Schemas whose every value holds another of the same, without end: found as what no finite value is known for."""
    parts = {id(part): (place, part) for place, part in subschemas(root) if isinstance(part, Mapping)}
    finite: set[int] = set()
    while True:
        more = {key for key, (_, part) in parts.items() if key not in finite and _is_finite(part, root, finite)}
        if not more:
            break
        finite |= more
    if id(root) in finite:
        return []
    # Whatever the answer must hold is endless as well: the innermost is the one that refers to itself.
    place, _ = max((entry for key, entry in parts.items() if key not in finite), key=lambda entry: entry[0].count("/"))
    return [f"{at(place)}: it must hold itself, so that no answer ever ends; make it optional, or allow null"]


def _is_finite(part: Schema, root: Schema, finite: set[int]) -> bool:
    """Whether a value is known that conforms, as far as references and nesting go."""

    def holds(each: Any) -> bool:
        return isinstance(each, bool) or id(each) in finite

    if "const" in part or "enum" in part:
        return True
    reference = part.get("$ref")
    if reference is not None and (named := target(reference, root)) is not None and not holds(named):
        return False
    if not all(map(holds, part.get("allOf", []))):
        return False
    if any(not any(map(holds, part[key])) for key in ("anyOf", "oneOf") if part.get(key)):
        return False
    types = part.get("type", _TYPES)
    types = types if isinstance(types, list | tuple) else [types]
    if any(name not in ("object", "array") for name in types):
        return True
    return ("object" in types and _has_object(part, holds)) or ("array" in types and _has_array(part, holds))


def _has_object(part: Schema, holds: Any) -> bool:
    properties = part.get("properties", {})
    return all(holds(properties.get(name, True)) for name in part.get("required", []))


def _has_array(part: Schema, holds: Any) -> bool:
    items = part.get("items", True)
    first = part.get("prefixItems", items if isinstance(items, list) else [])
    least = part.get("minItems", 0)
    if not all(map(holds, first[:least])):
        return False
    return least <= len(first) or isinstance(items, list) or holds(items)
