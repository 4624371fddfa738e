"""Conversations as data sets and APIs have them, made with the real libraries, down to what the model is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_job.errors import ErrorCode, RowError, SpecError
from ray_job.inputs.opening import open_source
from ray_job.inputs.source import iter_tables
from ray_job.prompts.conversation import Conversations
from ray_job.prompts.messages import read_turns
from ray_job.prompts.parts import ImageTag, Message, Text
from ray_job.spec import JobSpec
from ray_job.stages.fetch import picture_values
from ray_job.stages.prepare import row_values

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def shown(messages: list[Message]) -> str:
    """A conversation as one text: pictures in guillemets, roles in front."""
    texts = []
    for message in messages:
        parts = (
            f"«{p.index}»" if isinstance(p, ImageTag) else p.text
            for p in message.parts
            if hasattr(p, "text") or isinstance(p, ImageTag)
        )
        texts.append(f"{message.role}: {''.join(parts)}")
    return " | ".join(texts)


def asked(path: Path, **sections: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """For each row what is asked, and its pictures in the order of their tags; a failed row has its error."""
    read = {"path": str(path), **sections.pop("input", {})}
    data = {"input": read, "output": {"path": "out"}, **sections}
    source = open_source(JobSpec.from_dict(data))
    conversations, found = Conversations(source.prompt, ()), []
    for table in iter_tables(source):
        for row in row_values(table, source):
            try:
                pictures = picture_values(row, source)
                ((messages),) = conversations.of_row(row, len(pictures))
                found.append((shown(messages), pictures))
            except RowError as error:
                found.append((f"{error.code}: {error.message}", []))
    return found


def lines(path: Path, *items: Any) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


LLAVA = said(("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Which colour?"), ("gpt", "Black."))
LLAVA_ASKED = "user: «1»\nWhat is it? | assistant: A cat. | user: Which colour?"


def test_llava_as_it_is_published(tmp_path: Path) -> None:
    """The recorded last answer is what is to be generated; a row without a picture is text."""
    text = said(("human", "Two and two?"), ("gpt", "4"))
    several = said(("human", "Which is larger, <image> or <image>?"), ("gpt", "The first."))
    path = lines(
        tmp_path / "llava.jsonl",
        {"id": "1", "image": "a.jpg", "conversations": LLAVA},
        {"id": "2", "conversations": text},
        {"id": "3", "image": ["a.jpg", "b.jpg"], "conversations": several},
        {"id": "4", "conversations": LLAVA},
        {"id": "5", "image": "a.jpg", "conversations": text},
    )
    found = asked(path, input={"id_column": "id"})
    assert found[:3] == [
        (LLAVA_ASKED, ["a.jpg"]),
        ("user: Two and two?", []),
        ("user: Which is larger, «1» or «2»?", ["a.jpg", "b.jpg"]),
    ]
    assert found[3] == (LLAVA_ASKED, [None]), "a picture that is shown and missing is an error where it is fetched"
    assert found[4] == ("user: «1»\nTwo and two?", ["a.jpg"]), "a picture that no tag shows stands first"


@pytest.mark.parametrize("as_text", [False, True])
def test_llava_in_parquet(tmp_path: Path, as_text: bool) -> None:
    values = [json.dumps(LLAVA)] if as_text else [LLAVA]
    table = pa.table({"image": pa.array([{"bytes": b"1", "path": None}], STRUCT), "conversations": values})
    pq.write_table(table, tmp_path / "a.parquet")
    assert asked(tmp_path / "a.parquet") == [(LLAVA_ASKED, [{"bytes": b"1", "path": None}])]


def test_a_struct_of_lists_is_a_list_of_structs(tmp_path: Path) -> None:
    """What a `Sequence` of a dict was in `datasets`."""
    fields = {key: [turn[key] for turn in LLAVA] for key in ("from", "value")}
    torn = {"from": ["human"], "value": ["a", "b"]}
    pq.write_table(pa.table({"image": ["a.jpg"] * 2, "conversations": [fields, torn]}), tmp_path / "a.parquet")
    found = asked(tmp_path / "a.parquet")
    assert found[0] == (LLAVA_ASKED, ["a.jpg"])
    assert found[1][0] == "row_malformed: messages: from and value are lists of different lengths"


def test_sharegpt_with_a_system_turn(tmp_path: Path) -> None:
    turns = said(("system", "Be terse."), ("human", "Hi <|end|>"), ("gpt", "Hi. <image>"), ("human", "Bye"))
    path = lines(tmp_path / "a.jsonl", {"conversations": turns})
    assert asked(path) == [("system: Be terse. | user: Hi <|end|> | assistant: Hi. <image> | user: Bye", [])]


def test_an_image_tag_in_a_template_counts_where_it_stands_as_often_as_the_row_has_pictures(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"image": ["a", "b"], "prompt": "<image> and <image>?"},
        {"image": ["a"], "prompt": "<image> and <image>?"},
        {"image": [], "prompt": "<image> and <image>?"},
    )
    literal = [("user: «1»\n<image> and <image>?", ["a"]), ("user: <image> and <image>?", [])]
    assert asked(path) == [("user: «1» and «2»?", ["a", "b"]), *literal]
    assert asked(path, prompt={"image_tag": ""})[0][0] == "user: «1»\n«2»\n<image> and <image>?"
    tagged = {"template": "<|image_1|>, <|image_2|>: {prompt}"}
    assert asked(path, prompt=tagged)[0][0] == "user: «1», «2»: <image> and <image>?"
    path = lines(tmp_path / "one.jsonl", {"image": ["a", "b"], "prompt": "<image> and <image>?"})
    assert asked(path, prompt={"image_tag": "<image>"}) == [("user: «1» and «2»?", ["a", "b"])]
    template = {"template": "[IMG] or [IMG]: {prompt}", "system": "Look.", "image_tag": "[IMG]"}
    assert asked(path, prompt=template)[0][0] == "system: Look. | user: «1» or «2»: <image> and <image>?"
    path = lines(tmp_path / "b.jsonl", {"conversations": said(("human", "What is <image> in HTML?"))})
    assert asked(path, prompt={"image_tag": ""}) == [("user: What is <image> in HTML?", [])]


def test_an_image_tag_counts_in_other_messages_where_it_stands_as_often_as_the_row_has_pictures(tmp_path: Path) -> None:
    """As LLaMA-Factory and ms-swift write them; a single tag too few, and it is the text that it says."""
    chat = [{"role": "user", "content": "Compare <image> and <image>."}, {"role": "assistant", "content": "<image>"}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is <image>?"}]}]
    path = lines(
        tmp_path / "rows.jsonl",
        {"messages": chat, "images": ["a.jpg", "b.jpg"]},
        {"messages": chat, "images": ["a.jpg"]},
        {"messages": chat, "images": []},
        {"messages": parts, "images": ["a.jpg"]},
    )
    assert asked(path) == [
        ("user: Compare «1» and «2».", ["a.jpg", "b.jpg"]),
        ("user: «1»\nCompare <image> and <image>.", ["a.jpg"]),
        ("user: Compare <image> and <image>.", []),
        ("user: «1»\nWhat is <image>?", ["a.jpg"]),
    ]
    assert asked(path, prompt={"image_tag": ""})[0][0] == "user: «1»\n«2»\nCompare <image> and <image>."


def _trl() -> pa.Table:
    """As `datasets` writes TRL's vision rows: every part has every key, null where it has no such value."""
    part = pa.struct([("type", pa.string()), ("text", pa.string()), ("image_url", pa.struct([("url", pa.string())]))])
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part))]))
    text, image = {"type": "text", "text": "How many?"}, {"type": "image"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "2"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Be terse."}]}
    rows = [
        [{"role": "user", "content": [image, text]}, answer],
        [system, {"role": "user", "content": [text, image]}, answer],
        [{"role": "user", "content": [text]}],
        [{"role": "user", "content": [image, image, text]}],
        [{"role": "user", "content": [image, text]}, answer, {"role": "user", "content": [image, text]}],
        [answer],
    ]
    pictures = [[b"1"], [b"1"], [b"1"], [b"1"], [b"1", b"2"], []]
    images = pa.array([[{"bytes": data, "path": None} for data in row] for row in pictures], pa.list_(STRUCT))
    return pa.table({"messages": pa.array(rows, messages), "images": images})


@pytest.mark.parametrize("name", ["messages", "prompt"])
def test_trl_messages_take_the_rows_pictures_in_order(tmp_path: Path, name: str) -> None:
    pq.write_table(_trl().rename_columns([name, "images"]), tmp_path / "a.parquet")
    found = asked(tmp_path / "a.parquet")
    assert [text for text, _ in found] == [
        "user: «1»\nHow many?",
        "system: Be terse. | user: How many?«1»\n",
        "user: «1»\nHow many?",
        "prompt_tags: the messages show 2 pictures without saying which, and the row has 1 for them; show each once, "
        "or choose columns with input.image_columns",
        "user: «1»\nHow many? | assistant: 2 | user: «2»\nHow many?",
        "row_malformed: no user message, so there is nothing to answer",
    ]
    assert [[picture["bytes"] for picture in pictures] for _, pictures in found] == [
        [b"1"], [b"1"], [b"1"], [], [b"1", b"2"], [],
    ]  # fmt: skip


def test_a_prompt_of_messages_in_json_lines(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]
    path = lines(
        tmp_path / "a.jsonl",
        {"prompt": prompt, "images": ["a.jpg"], "completion": [{"role": "assistant", "content": "2"}]},
    )
    assert asked(path) == [("user: «1»\nHow many?", ["a.jpg"])]
    path = lines(tmp_path / "b.jsonl", {"prompt": "[1, 2]"})
    assert asked(path) == [("user: [1, 2]", [])], "a text stays a text"


def test_pictures_within_messages_and_beside_them_keep_their_order(tmp_path: Path) -> None:
    deep = pa.struct([("type", pa.string()), ("text", pa.string()), ("image", STRUCT)])
    content = [
        {"type": "image", "image": {"bytes": b"own", "path": None}},
        {"type": "text", "text": "or"},
        {"type": "image"},
    ]
    messages = pa.array(
        [[{"role": "user", "content": content}]],
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(deep))])),
    )
    images = pa.array([[{"bytes": b"next", "path": None}]])
    pq.write_table(pa.table({"messages": messages, "images": images}), tmp_path / "a.parquet")
    ((text, pictures),) = asked(tmp_path / "a.parquet")
    assert text == "user: «1»\nor«2»\n"
    assert [picture["bytes"] for picture in pictures] == [b"own", b"next"]


def test_a_picture_of_the_row_that_no_message_shows_is_said(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": "own.jpg"}]}]
    path = lines(tmp_path / "a.jsonl", {"messages": messages, "images": ["a.jpg"]}, {"messages": messages})
    found = asked(path)
    assert found[0][0].startswith("prompt_tags: the messages show 0 pictures without saying which, and the row has 1")
    assert found[1] == ("user: «1»\n", ["own.jpg"]), "a row without a picture in its column"
    assert asked(path, input={"image_columns": []})[0] == ("user: «1»\n", ["own.jpg"])


@pytest.mark.data
def test_what_datasets_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    rows = {"conversations": [LLAVA], "image": [Image.new("RGB", (8, 8), "red")]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "a.parquet"))
    ((text, pictures),) = asked(tmp_path / "a.parquet")
    assert text == LLAVA_ASKED
    assert pictures[0]["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        ([1, 0], ["b.jpg", "a.jpg"]),
        ([0, 0, 1], ["a.jpg", "a.jpg", "b.jpg"]),
        ([1.0, None], ["b.jpg", "a.jpg"]),
        ([None, None], ["a.jpg", "b.jpg"]),
        ([0], "prompt_tags: the messages show 0 pictures without saying which, and the row has 1 for them; "),
        ([0, 2], "prompt_tags: the messages show picture 2, counted from 0, and the row has 2"),
        ([0, -1], "prompt_tags: the messages show picture -1, counted from 0, and the row has 2"),
    ],
)  # fmt: skip
def test_an_index_says_which_of_the_rows_pictures(tmp_path: Path, indices: list[Any], found: Any) -> None:
    content = [*({"type": "image", "text": None, "index": index} for index in indices), {"type": "text", "text": "?"}]
    row = {"messages": [{"role": "user", "content": content}], "images": ["a.jpg", "b.jpg"]}
    ((text, pictures),) = asked(lines(tmp_path / "a.jsonl", row))
    assert text.startswith(found) if isinstance(found, str) else pictures == found


@pytest.mark.parametrize(
    ("message", "text", "found"),
    [
        ({"role": "user", "content": "What?", "images": ["a", "b"]}, "user: «1»\n«2»\nWhat?", ["a", "b"]),
        ({"role": "user", "content": "What?", "image": {"url": "a.jpg"}}, "user: «1»\nWhat?", ["a.jpg"]),
        ({"from": "human", "value": "Is <image> red?", "image": "a.jpg"}, "user: Is «1» red?", ["a.jpg"]),
        ({"role": "user", "content": "What?", "images": []}, "user: What?", []),
        ({"role": "user", "content": [{"type": "image"}], "images": ["a", "b"]}, "2 pictures of its own", []),
        ({"role": "user", "content": "What?", "videos": ["a.mp4"]}, "videos cannot be shown to this model", []),
    ],
)  # fmt: skip
def test_pictures_beside_a_messages_content(tmp_path: Path, message: dict[str, Any], text: str, found: Any) -> None:
    ((asks, pictures),) = asked(lines(tmp_path / "a.jsonl", {"messages": [message]}))
    assert text in asks
    assert pictures == found


PARTS: list[tuple[dict[str, Any], list[Any]]] = [
    ({"type": "image_url", "image_url": {"url": "u", "detail": "high"}}, ["u"]),
    ({"type": "image_url", "image_url": "u", "uuid": "x"}, ["u"]),
    ({"type": "image_url", "image_url": [{"url": "u"}, "v"]}, ["u", "v"]),
    ({"type": "input_image", "image_url": "u", "detail": "auto", "file_id": None}, ["u"]),
    ({"type": "image", "image": "u"}, ["u"]),
    ({"type": "image", "image": ["u", "v"]}, ["u", "v"]),
    ({"type": "image", "image": {"url": "u"}}, ["u"]),
    ({"type": "image", "url": "u"}, ["u"]),
    ({"type": "image", "path": "u"}, ["u"]),
    ({"type": "image", "source": {"type": "base64", "media_type": "a/b", "data": "QQ"}}, ["data:a/b;base64,QQ"]),
    ({"type": "image", "image": {"bytes": None, "path": "u"}}, [{"bytes": None, "path": "u"}]),
    ({"type": None, "text": None, "image": "u"}, ["u"]),
]  # fmt: skip


@pytest.mark.parametrize(("part", "pictures"), PARTS)
def test_a_picture_in_each_form_that_people_write(tmp_path: Path, part: dict[str, Any], pictures: list[Any]) -> None:
    messages = [{"role": "user", "content": [part, {"type": "input_text", "text": "What?"}]}]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [json.dumps(messages)]}), path)
    tags = "".join(f"«{number}»\n" for number, _ in enumerate(pictures, 1))
    assert asked(path) == [(f"user: {tags}What?", pictures)]


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ({"role": "assistant", "content": None, "refusal": "No.", "name": "x", "tool_calls": None}, "assistant: No."),
        ({"role": "assistant", "content": None, "tool_calls": []}, "assistant: "),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, "assistant: No."),
        ({"role": "assistant", "content": [{"type": "output_text", "text": "Yes.", "logprobs": 0}]}, "assistant: Yes."),
        ({"role": "developer", "content": "Be terse.", "name": "d"}, "system: Be terse."),
        ({"role": "user", "content": ["a", {"type": "text", "text": "b"}]}, "user: ab"),
        ({"role": "user", "content": {"type": "text", "text": "b"}}, "user: b"),
        ({"role": "User", "content": "b"}, "user: b"),
        ({"role": "user", "value": "b"}, "user: b"),
        ({"from": "bot", "value": "b"}, "assistant: b"),
        ({"from": "human", "content": "b"}, "user: b"),
    ],
)  # fmt: skip
def test_turns_with_the_fields_that_clients_write(turn: dict[str, Any], text: str) -> None:
    messages = [turn, {"role": "user", "content": "And?"}]
    (found,) = Conversations(_prompt(), ()).of_row({"m": messages}, 0)
    assert shown(found) == f"{text} | user: And?"


def _prompt() -> Any:
    return JobSpec.from_dict(
        {"input": {"path": "x"}, "output": {"path": "y"}, "prompt": {"messages_column": "m"}}
    ).prompt


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([{"role": "tool", "content": "5"}], "message 0: role must be one of system, developer, user, .* got 'tool'"),
        ([{"from": "observation", "value": "5"}], "got 'observation'"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}], "got 'input_audio'"),
        ([{"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}], "got 'video'"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}], "file_id 'file-1' names"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}], "message 0: tool_calls"),
        ([{"role": "user", "content": None}], "message 0: content must be a text or a list of parts, got NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a part of type 'text' has no text"),
        ([None], "message 0: role must be one of"),
        ([{"role": ["user"], "content": "x"}], "message 0: role must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_the_rows_error_by_name(messages: Any, part: str) -> None:
    with pytest.raises(RowError, match=part) as caught:
        read_turns([*messages, {"role": "user", "content": "And?"}])
    assert caught.value.code == ErrorCode.ROW_MALFORMED


def test_a_column_of_that_name_that_holds_no_messages_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [3], "conversations": [["x"]], "prompt": ["What?"]}), path)
    assert asked(path) == [("user: What?", [])]
    pq.write_table(pa.table({"conversations": [["x"]]}), path)
    with pytest.raises(SpecError, match="say what to ask"):
        asked(path)


def test_text_parts_are_text(tmp_path: Path) -> None:
    assert (
        Text("<|image_1|>")
        in Conversations(_prompt(), ()).of_row({"m": [{"role": "user", "content": "<|image_1|>"}]}, 0)[0][0].parts
    )
