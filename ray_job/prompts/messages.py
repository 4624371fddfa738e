"""Chat messages as people have them, read into turns: texts, and places where a picture is shown.

{role, content}   of OpenAI, TRL and Hugging Face; content is a text or a list of parts
{from, value}     of LLaVA and ShareGPT; `<image>` in a value shows a picture

A conversation is asked up to its last user turn. What a data set has after it is the answer that is to be generated,
and is not shown. A part without a picture of its own, and an image tag, take the next of the row's pictures; a part
with an `index` takes that one, counted from 0. Pictures beside a message's content (`images`, as Ollama has them) stand
where its tags are, else in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

from ray_job.errors import ErrorCode, RowError
from ray_job.prompts.json_text import parse_json
from ray_job.prompts.parts import Role

IMAGE_TAG = "<image>"  # of LLaVA's conversations
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_PICTURES = ("image_url", "image", "input_image")
_FILES = ("file", "input_file")
DOCUMENT = "document"  # the key of a picture's value that is a whole document, whatever its number of pages
_PICTURE_KEYS = ("image_url", "image", "url", "path", "base64", "source")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


@dataclass(frozen=True)
class Shown:
    """A place where a picture is shown."""

    picture: Any = None  # as a row holds one; None: one of the row's pictures
    has_own_line: bool = True
    index: int | None = None  # of the row's pictures, from 0; None: the next


Piece: TypeAlias = str | Shown


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: Role
    pieces: tuple[Piece, ...]


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages of one of the known forms."""
    return isinstance(value, list) and bool(value) and all(isinstance(e, dict) and _form(e) for e in value)


def read_turns(value: Any, image_tag: str | None = None, num_pictures: int = 0) -> list[Turn]:
    """The turns up to the user's last.

    Args:
        value: a list of messages, or its JSON text; or its fields as a struct of lists, as `datasets` had it.
        image_tag: what shows a picture in texts that are not the assistant's; "" for nothing. By default `<image>` in
            messages of the form {from, value}; in others only if they show nothing else and it stands there as often
            as the row has pictures.
        num_pictures: of the row, beside those that messages hold.

    Raises:
        RowError: ROW_MALFORMED, with the number of the message, from 0.
    """
    value = _listed(_parsed(value))
    if not isinstance(value, list) or not value:
        kind = "an empty one" if value == [] else type(value).__name__
        _refuse(f"messages must be a list with at least one message, got {kind}")
    turns = [_turn(index, item, image_tag) for index, item in enumerate(value)]
    if image_tag is None and num_pictures and not _places(turns):
        tagged = [_turn(index, item, IMAGE_TAG) for index, item in enumerate(value)]
        turns = tagged if len(_places(tagged)) == num_pictures else turns
    last = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        _refuse("no user message, so there is nothing to answer")
    return turns[: last + 1]


def shown_pictures(turns: Sequence[Turn], others: Sequence[Any]) -> list[Any]:
    """The pictures that turns show, in order; where they show none, the row's `others`.

    Raises:
        RowError: PROMPT_TAGS, the turns leave open which pictures they show, and the row has more or fewer.
    """
    places = _places(turns)
    open_places = [place for place in places if place.picture is None]
    if not open_places and all(picture is None for picture in others):
        others = ()  # a text without pictures, among rows that have some
    if not places:
        return list(others)
    chosen = {place.index for place in open_places if place.index is not None}
    if beyond := sorted(chosen - set(range(len(others)))):
        text = f"the messages show picture {beyond[0]}, counted from 0, and the row has {len(others)}"
        raise RowError(ErrorCode.PROMPT_TAGS, text)
    num_next = sum(place.index is None for place in open_places)
    if num_next != len(others) - len(chosen):
        raise RowError(
            ErrorCode.PROMPT_TAGS,
            f"the messages show {num_next} pictures without saying which, and the row has {len(others) - len(chosen)} "
            "for them; show each once, or choose columns with input.image_columns",
        )
    rest = iter([picture for index, picture in enumerate(others) if index not in chosen])
    return [_shown_at(place, others, rest) for place in places]


def _places(turns: Sequence[Turn]) -> list[Shown]:
    return [piece for turn in turns for piece in turn.pieces if isinstance(piece, Shown)]


def _shown_at(place: Shown, others: Sequence[Any], rest: Iterator[Any]) -> Any:
    if place.picture is not None:
        return place.picture
    return next(rest) if place.index is None else others[place.index]


def _form(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of a message's speaker and of what is said."""
    forms = (("role", "content"), ("from", "value"))
    return next((form for form in forms if item.get(form[0]) is not None), None)


def _turn(index: int, item: Any, image_tag: str | None) -> Turn:
    form = _form(item) if isinstance(item, dict) else None
    name = item[form[0]] if form else item
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if form is None or role is None:
        _refuse(f"message {index}: role must be one of {', '.join(_ROLES)}, got {name!r}")
    said = next((key for key in (form[1], "content", "value") if item.get(key) is not None), form[1])
    tag = image_tag if image_tag is not None else IMAGE_TAG if "from" in form or said == "value" else ""
    content = _content(index, item, item.get(said), role)
    pieces: list[Piece] = []
    for piece in [content] if isinstance(content, str) else _pieces(index, content):
        pieces += _split(piece, tag) if isinstance(piece, str) and role != "assistant" else [piece]
    return Turn(role, tuple(_with_own_pictures(index, item, pieces)))


def _with_own_pictures(index: int, item: Mapping[str, Any], pieces: list[Piece]) -> list[Piece]:
    """The pieces, and the pictures that the message has beside its content, where its tags are or else in front."""
    media = next((key for key in _OTHER_MEDIA if item.get(key)), None)
    if media is not None:
        _refuse(f"message {index}: {media} cannot be shown to this model; leave such turns out")
    given: Any = next((item[key] for key in ("images", "image") if item.get(key)), [])
    own = [_picture(each) for each in (given if isinstance(given, list) else [given]) if each is not None]
    if not own:
        return pieces
    places = [place for place, piece in enumerate(pieces) if isinstance(piece, Shown) and piece.picture is None]
    if not places:
        return [*map(Shown, own), *pieces]
    if len(places) != len(own):
        _refuse(f"message {index}: it has {len(own)} pictures of its own, and shows {len(places)}; show each once")
    for place, picture in zip(places, own, strict=True):
        pieces[place] = replace(pieces[place], picture=picture, index=None)  # type: ignore[type-var]
    return pieces


def _content(index: int, item: Mapping[str, Any], content: Any, role: Role) -> str | list[Any]:
    """What is said; of an assistant that refused, its refusal, and of one that said nothing, nothing."""
    calls = next((key for key in ("tool_calls", "function_call") if item.get(key)), None)
    if calls is not None:
        _refuse(f"message {index}: {calls} cannot be shown to this model; leave such turns out")
    if content is None and role == "assistant":
        content = item.get("refusal") or ""
    if isinstance(content, dict):  # a single part
        content = [content]
    if not isinstance(content, str | list):
        _refuse(f"message {index}: content must be a text or a list of parts, got {type(content).__name__}")
    return content


def _split(text: str, tag: str) -> list[Piece]:
    if not tag:
        return [text]
    first, *others = text.split(tag)
    pieces: list[Piece] = [first]
    for other in others:
        pieces += [Shown(has_own_line=False), other]
    return pieces


def _pieces(index: int, parts: Sequence[Any]) -> list[Piece]:
    pieces: list[Piece] = []
    for part in parts:
        kind = _kind(part)
        if isinstance(part, str):
            pieces.append(part)
        elif kind in _TEXTS and isinstance(part.get(_TEXTS[kind]), str):
            pieces.append(part[_TEXTS[kind]])
        elif kind in _PICTURES:
            pieces += [Shown(picture, index=_index_of(part)) for picture in _pictures(index, part)]
        elif kind in _FILES:
            pieces.append(Shown(_document(index, part)))
        elif kind in _TEXTS:
            _refuse(f"message {index}: a part of type {kind!r} has no text")
        else:
            _refuse(f"message {index}: a part must be a text or an image_url, got {kind!r}")
    return pieces


def _kind(part: Any) -> Any:
    """A part's type; where it does not say, that of what it holds."""
    if not isinstance(part, dict):
        return type(part).__name__
    held = (key for key in ("text", "image_url", "image") if part.get(key) is not None)
    kind = part.get("type")
    return next(held, None) if kind is None else str(kind)


def _pictures(index: int, part: Mapping[str, Any]) -> list[Any]:
    """The pictures of a part; [None] where it only marks the place of one."""
    if part.get("file_id") is not None:
        _refuse(f"message {index}: file_id {part['file_id']!r:.60} names a file of another service; give the picture")
    value = next((part[key] for key in _PICTURE_KEYS if part.get(key) is not None), None)
    found = [_picture(each) for each in value] if isinstance(value, list) else [_picture(value)]
    return found or [None]


def _index_of(part: Mapping[str, Any]) -> int | None:
    """Which of the row's pictures a part shows, as data sets of the Hub say it."""
    index = part.get("index")
    is_whole = isinstance(index, int) or (isinstance(index, float) and index.is_integer())
    return int(index) if is_whole and not isinstance(index, bool) else None  # type: ignore[arg-type]


def _document(index: int, part: Mapping[str, Any]) -> dict[str, Any]:
    """A whole document as a picture's value: its data, or its address."""
    file = part["file"] if isinstance(part.get("file"), dict) else part
    data, url = file.get("file_data"), file.get("file_url")
    if isinstance(data, str) and data.strip():
        return {DOCUMENT: data if data[:5].lower() == "data:" else f"data:application/pdf;base64,{data}"}
    if not isinstance(url, str) or not url.strip():
        what = "file_id names a file of another service" if file.get("file_id") else "it has no file_data"
        _refuse(f"message {index}: a file part: {what}; give file_data, as in data:application/pdf;base64,…")
    return {DOCUMENT: url}


def _picture(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.get("data") is not None:  # Anthropic's
        return f"data:{value.get('media_type')};base64,{value['data']}"
    if value.get("url") is not None:
        return value["url"]
    return value if any(each is not None for each in value.values()) else None


def _parsed(messages: Any) -> Any:
    if not isinstance(messages, str):
        return messages
    try:
        return parse_json(messages)
    except RowError as error:
        _refuse(f"messages: {error.message}")


def _listed(messages: Any) -> Any:
    """A struct of lists as a list of structs."""
    if not isinstance(messages, dict) or not messages or not all(isinstance(e, list) for e in messages.values()):
        return messages
    if len({len(each) for each in messages.values()}) > 1:
        _refuse(f"messages: {' and '.join(messages)} are lists of different lengths")
    return [dict(zip(messages, each, strict=True)) for each in zip(*messages.values(), strict=True)]


def _refuse(message: str) -> NoReturn:
    raise RowError(ErrorCode.ROW_MALFORMED, message)
