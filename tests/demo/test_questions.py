"""Pictures and questions: seeded, disjoint by split, and true to the scene by a second, independent reading."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise

import pytest

from ray_job.demo.pictures import COLOURS, SHAPES, Scene, draw, encode
from ray_job.demo.questions import KINDS, SPLIT_SIZE, SPLITS, Example, make_example, make_split, split_seed
from ray_job.models.phi3_vision.image_processing import hd_size

EXAMPLES = tuple(make_split("test", 600))
_ORDINALS = {"first": 0, "second": 1}


def test_the_same_seed_gives_the_same_pictures_and_questions() -> None:
    for seed in range(20):
        first, again = make_example(seed), make_example(seed)
        assert first == again
        assert [p.tobytes() for p in first.pictures] == [p.tobytes() for p in again.pictures]


def test_another_seed_gives_other_pictures() -> None:
    drawn = Counter(picture.tobytes() for example in EXAMPLES for picture in example.pictures)
    assert set(drawn.values()) == {1}


def test_splits_do_not_meet() -> None:
    assert all(b - a >= SPLIT_SIZE for a, b in pairwise(sorted(SPLITS.values())))
    with pytest.raises(ValueError, match="outside the split"):
        split_seed("train", 0, seed=SPLIT_SIZE)
    with pytest.raises(ValueError, match="outside the split"):
        split_seed("train", SPLIT_SIZE)
    # The last seed of one split comes before the first of the next.
    assert split_seed("train", 9_999_999, seed=999) == split_seed("eval", 0) - 1


def test_every_kind_and_every_grid_of_crops_occurs() -> None:
    assert {qa.kind for example in EXAMPLES for qa in example.questions} == set(KINDS)
    sizes = [hd_size(scene.width, scene.height, 2, 64) for example in EXAMPLES for scene in example.scenes]
    grids = {(size.rows, size.cols) for size in sizes}
    assert grids == {(1, 1), (1, 2), (2, 1)}


def test_every_example_has_questions_with_short_answers() -> None:
    for example in EXAMPLES:
        assert example.questions
        plain = [qa.answer for qa in example.questions if qa.kind != "json"]
        assert all(0 < len(answer) <= 16 and len(answer.split()) <= 2 for answer in plain)


def test_items_are_where_the_scene_says_in_the_colour_it_says() -> None:
    for example in EXAMPLES[:150]:
        for scene, picture in zip(example.scenes, example.pictures, strict=True):
            for item in scene.items:
                if item.is_shape:
                    pixel = picture.getpixel((int(item.x), int(item.y)))
                    assert isinstance(pixel, tuple)
                    nearest = min(
                        COLOURS, key=lambda c: sum((a - b) ** 2 for a, b in zip(COLOURS[c], pixel, strict=True))
                    )
                    assert nearest == item.colour, example.seed


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_pictures_can_be_files(file_format: str) -> None:
    assert len(encode(draw(EXAMPLES[0].scenes[0]), file_format)) > 100


def test_answers_hold_when_read_again() -> None:
    checked = Counter(qa.kind for e in EXAMPLES for qa in e.questions if _holds(e, qa.question, qa.answer))
    assert set(checked) == set(KINDS)


def _holds(example: Example, question: str, answer: str) -> bool:
    """Asserts the answer where this second reading understands the question; says whether it did."""
    colours = [word for word in COLOURS if re.search(rf"\b{word}\b", question)]
    shapes = [word for word in SHAPES if re.search(rf"\b{word}(e?s)?\b", question)]
    ordinal = next((number for word, number in _ORDINALS.items() if word in question), None)
    scenes = example.scenes
    if "JSON" in question:
        assert _described(scenes[0]) == json.loads(answer)
    elif "plus" in question:
        a, b = map(int, re.findall(r"\d+", question))
        assert int(answer) == a + b
    elif "number" in question:
        assert scenes[ordinal or 0].text == answer
    elif re.search(r"the (first|second) digit", question):
        assert ordinal is not None
        assert scenes[0].items[ordinal].name == answer
    elif " is at the " in question:
        assert _in_corner(scenes[0], question) == answer
    elif re.match("How many|Count", question):
        assert _count(scenes[ordinal or 0], colours, shapes) == int(answer)
    elif re.match("Is there|Do you see", question):
        assert (_count(scenes[0], colours, shapes) > 0) == (answer == "yes")
    elif "hich picture has" in question:
        assert len(scenes[_ORDINALS[answer]].items) == max(len(scene.items) for scene in scenes)
    elif re.match("In which picture|Which picture shows", question):
        assert [bool(_count(s, colours, shapes)) for s in scenes].index(True) == _ORDINALS[answer]
    elif len(scenes) == 1 and answer in COLOURS:
        assert {i.colour for i in scenes[0].items if not shapes or i.name in shapes} == {answer}
    elif len(scenes) == 1 and answer in SHAPES:
        assert {i.name for i in scenes[0].items if not colours or i.colour in colours} == {answer}
    elif answer in ("left", "right"):
        (item,) = [i for i in scenes[0].items if i.name in shapes and (not colours or i.colour in colours)]
        assert (item.x < scenes[0].width / 2) == (answer == "left")
    elif ordinal is not None:
        assert answer in (scenes[ordinal].items[0].name, scenes[ordinal].items[0].colour)
    else:
        return False
    return True


def _described(scene: Scene) -> object:
    if not scene.items[0].is_shape:
        return {"text": scene.text, "colour": scene.items[0].colour}
    [(colour, name, count)] = [(*what, number) for what, number in Counter(_looks(scene)).items()]
    return {"colour": colour, "shape": name, "count": count}


def _looks(scene: Scene) -> list[tuple[str, str]]:
    return [(item.colour, item.name) for item in scene.items]


def _count(scene: Scene, colours: list[str], shapes: list[str]) -> int:
    return sum((not colours or i.colour in colours) and (not shapes or i.name in shapes) for i in scene.items)


def _in_corner(scene: Scene, question: str) -> str:
    right, low = "right" in question, "bottom" in question
    return next(i.name for i in scene.items if (i.x > scene.width / 2, i.y > scene.height / 2) == (right, low))
