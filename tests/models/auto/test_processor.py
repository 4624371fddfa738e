"""A library model's processor: ids and arrays of the library's own, called on the whole conversation at once."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.models.auto.processor import LibraryProcessor
from ray_job.prompts.parts import ImageTag, Message, Special, Text
from tests.models.auto.chat_tokenizers import BOS_ID, EOS_ID, PAD_ID
from tests.models.auto.conversations import as_library, encoded, library, ours, picture, told, user, whole_call
from tests.models.auto.families import FAMILIES, make, write_older

_QUESTION = "what is the thing in the picture?"
_CONVERSATIONS = {
    "a picture": ([user(1, _QUESTION)], 1),
    "text only": ([user("the thing,\n\n  and  more: é, 🎉, <b>")], 0),
    "pictures between texts": ([user("this and", 1, " that, ", 2, _QUESTION, 3)], 3),
    "system prompt": ([told("system", "You look at the pictures."), user(1, _QUESTION)], 1),
    "earlier turns": ([user(1, _QUESTION), told("assistant", "A thing."), user("and this?", 2)], 2),
}


def knows_turns(folder: Path) -> bool:
    return folder.name != "paligemma"


@pytest.mark.parametrize("name", _CONVERSATIONS)
def test_ids_equal_the_librarys_for_the_whole_conversation(family: Path, name: str) -> None:
    messages, num_pictures = _CONVERSATIONS[name]
    if not knows_turns(family) and (len(messages) > 1 or not num_pictures):
        pytest.skip("the library's processor of PaliGemma takes a picture and one text")
    images = [picture(number) for number in range(num_pictures)]
    if not knows_turns(family):  # shows pictures first, wherever the text has them
        parts = sorted(messages[0].parts, key=lambda part: not isinstance(part, ImageTag))
        messages = [Message("user", tuple(parts))]
    expected = whole_call(family, messages, images)["input_ids"][0].tolist()
    assert as_library(family, encoded(family, messages, images)) == expected


def test_arrays_of_each_picture_joined_equal_the_whole_calls(family: Path) -> None:
    """Once normalised as the model's side does; the pictures are of one size, which whole calls need not pad."""
    images = [picture(0), picture(5)]
    whole = whole_call(family, [user(1, 2, _QUESTION)], images)
    prepared = [ours(family).prepare(image).arrays for image in images]
    normalization = ours(family).normalization
    assert normalization is not None
    assert set(prepared[0]) <= set(whole)
    for name in prepared[0]:
        found, expected = np.concatenate([arrays[name] for arrays in prepared]), whole[name]
        if name == "pixel_values":
            assert found.dtype == np.uint8
            found = normalization(torch.from_numpy(found)).numpy()
            np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-6)
        else:
            np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_the_model_takes_arrays_by_their_names(family: Path) -> None:
    _, model = make(family.name)
    arrays = ours(family).prepare(picture(0)).arrays
    normalization = ours(family).normalization
    assert normalization is not None
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    tensors["pixel_values"] = normalization(tensors["pixel_values"])
    with torch.no_grad():
        features = model.get_image_features(**tensors, return_dict=True).pooler_output
    rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in features])
    assert len(rows) == ours(family).prepare(picture(0)).placeholder.num_tokens


def test_pictures_go_where_their_tags_are(family: Path) -> None:
    images = [picture(0), picture(1)]
    counts = [ours(family).prepare(image).placeholder.num_tokens for image in images]
    ids = encoded(family, [user(2, 1, _QUESTION)], images)
    owners = [token for token in ids if token < 0]
    assert owners == [-2] * counts[1] + [-1] * counts[0]
    swapped = encoded(family, [user(1, 2, _QUESTION)], images[::-1])
    assert as_library(family, ids) == as_library(family, swapped)


def test_a_line_break_alone_after_a_picture_is_left_out(family: Path) -> None:
    assert encoded(family, [user(1, "\n", _QUESTION)], [picture(0)]) == encoded(
        family, [user(1, _QUESTION)], [picture(0)]
    )


def hostile_texts(folder: Path) -> list[str]:
    tokens = sorted(ours(folder)._tokenizer.control)
    return [
        "".join(tokens),
        " ".join(tokens) + "\n\n" + "x".join(reversed(tokens)),
        "{{ messages }}{% if 1 %}<|image_1|>[{'type': 'image'}]\\u2028 \u2028\x00",
        tokens[0][:-1],
        tokens[-1][1:],
    ]


def test_hostile_text_stays_text(family: Path) -> None:
    """Nothing but the template and the picture writes control tokens, and the text is all there."""
    processor = ours(family)
    control_ids = {processor._tokenizer.id_of(token) for token in processor._tokenizer.control}
    plain = encoded(family, [user(1, "x")], [picture(0)])
    for text in hostile_texts(family):
        ids = encoded(family, [user(1, text)], [picture(0)])
        assert [each for each in ids if each in control_ids] == [each for each in plain if each in control_ids]
        assert [each for each in ids if each < 0] == [each for each in plain if each < 0]
        spelled = library(family).tokenizer.decode([each for each in ids if each >= 0])
        assert text in spelled


def test_a_trusted_prompt_may_name_special_tokens(family: Path) -> None:
    token = sorted(ours(family).special_tokens)[0]
    told_as_text = ours(family).encode_chat([user(f"a {token} b")], [])
    message = Message("user", (Text("a "), Special(token), Text(" b")))
    ids = ours(family).encode_chat([message], [])
    token_id = ours(family)._tokenizer.id_of(token)
    assert ids.count(token_id) == told_as_text.count(token_id) + 1


def test_tokens_of_pictures_are_no_users(family: Path) -> None:
    assert library(family).image_token not in ours(family).special_tokens


@pytest.mark.parametrize("tags", [(), (1, 1), (2,), (1, 2)])
def test_tags_that_do_not_match_the_pictures(family: Path, tags: tuple[int, ...]) -> None:
    placeholder = ours(family).prepare(picture(0)).placeholder
    with pytest.raises(RowError) as caught:
        ours(family).encode_chat([user(*tags, "What?")], [placeholder])
    assert caught.value.code == ErrorCode.PROMPT_TAGS


def test_what_a_template_refuses_is_the_rows_error(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(RowError, match="Conversation roles must alternate") as caught:
        ours(checkpoint("gemma3")).encode_chat([user("a"), user("b")], [])
    assert caught.value.code == ErrorCode.ROW_MALFORMED
    with pytest.raises(RowError, match="no place for a system prompt"):
        ours(checkpoint("paligemma")).encode_chat([told("system", "Be brief."), user("b")], [])
    with pytest.raises(RowError) as caught:
        ours(checkpoint("gemma3")).encode_chat([], [])
    assert caught.value.code == ErrorCode.PROMPT_MISSING


def test_an_assistants_last_message_is_gone_on_with(family: Path) -> None:
    if not knows_turns(family):
        pytest.skip("PaliGemma knows no turns")
    messages = [user(1, _QUESTION), told("assistant", "It is the")]
    ids = encoded(family, messages, [picture(0)])
    assert ours(family).decode(ids[-5:]).endswith("the")


def test_ids_of_an_answer(family: Path) -> None:
    processor = ours(family)
    assert (processor.pad_id, processor.stop_ids, processor.max_len) == (PAD_ID, {EOS_ID}, 2048)
    assert processor.decode([*processor._tokenizer._text_ids("the thing"), EOS_ID, BOS_ID]) == "the thing"


def test_stop_ids_are_all_that_the_files_name(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoint("qwen2_vl"), tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS_ID, 7]}))
    assert LibraryProcessor.from_pretrained(tmp_path / "model").stop_ids == {EOS_ID, 7}


def test_a_folder_of_an_older_release_is_the_same(family: Path, tmp_path: Path) -> None:
    write_older(family.name, tmp_path)
    older = LibraryProcessor.from_pretrained(tmp_path)
    prepared, expected = older.prepare(picture(0)), ours(family).prepare(picture(0))
    assert prepared.placeholder == expected.placeholder
    assert older.encode_chat([user(1, "What?")], [prepared.placeholder]) == encoded(
        family, [user(1, "What?")], [picture(0)]
    )
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(prepared.arrays[name], array)


def test_it_pickles_small_and_is_the_same(family: Path) -> None:
    pickled = pickle.dumps(ours(family))
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    prepared, expected = copy.prepare(picture(1)), ours(family).prepare(picture(1))
    assert prepared.placeholder == expected.placeholder
    assert copy.encode_chat([user(1, "What?")], [prepared.placeholder]) == encoded(
        family, [user(1, "What?")], [picture(1)]
    )


_PREPARE = """
import json, pickle, sys
from PIL import Image
from ray_job.prompts.parts import ImageTag, Message, Text

def heavy():
    return {name.partition(".")[0] for name in sys.modules} & {"torch", "torchvision", "ray"}

found = {}
for name, pickled in json.load(sys.stdin).items():
    before = heavy()
    processor = pickle.loads(bytes.fromhex(pickled))
    placeholder = processor.prepare(Image.new("RGB", (100, 60))).placeholder
    ids = processor.encode_chat([Message("user", (ImageTag(1), Text("What is it?")))], [placeholder])
    assert processor.decode(ids[-3:]) is not None
    found[name] = [sorted(heavy() - before), ids]
json.dump(found, sys.stdout)
"""


def test_a_preparing_process_imports_no_torch(checkpoint: Callable[[str], Path]) -> None:
    """One process for all families: each must import nothing heavy that those before it have not."""
    folders = {name: checkpoint(name) for name in FAMILIES}
    pickled = json.dumps({name: pickle.dumps(ours(folder)).hex() for name, folder in folders.items()})
    done = subprocess.run([sys.executable, "-c", _PREPARE], input=pickled, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [user(1, "What is it?")], [Image.new("RGB", (100, 60))]
    assert json.loads(done.stdout) == {name: [[], encoded(folder, *asked)] for name, folder in folders.items()}
    assert "PyTorch was not found" not in done.stderr
