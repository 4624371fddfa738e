"""Questions about scenes with one right, short answer each, and the seeded examples made of them.

Answers come from the scene. A question is asked only where its answer is beyond doubt: "the circle" only if
there is one circle, "left of" only if the two are clearly apart. No torch here.

Seeds: every split owns a range of ten thousand million seeds and no two ranges meet, so the pictures of one
split never teach another. `make_example(seed)` is a pure function of its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from ray_job.demo.json_answers import json_question
from ray_job.demo.pictures import (
    COLOURS,
    DIGITS,
    MAX_TEXT,
    SHAPES,
    Item,
    Scene,
    draw,
    place_names,
    places_scene,
    shapes_scene,
    sheet_scene,
    text_scene,
)

KINDS = (
    "shape",  # the only shape's name, or the name of the only red one
    "colour",  # the colour of a shape or of the print
    "count",  # how many shapes, 1 to 4
    "side",  # in which half of the picture, left or right
    "exists",  # yes or no
    "number",  # two or three printed digits
    "place",  # the digit in a corner, or the first or second in a row or a column
    "more",  # which of two pictures has more shapes
    "which",  # in which of two pictures something is
    "nth",  # something of the first or second picture
    "sum",  # arithmetic without a picture
    "json",  # all shapes of a picture, or its print, as an object of one of `json_answers.SCHEMAS`
)
SPLIT_SIZE = 10_000_000_000
SPLITS = {"train": 0, "eval": SPLIT_SIZE, "test": 2 * SPLIT_SIZE, "demo": 3 * SPLIT_SIZE}
SEEDS_PER_RUN = 10_000_000  # of a split that one `seed` argument owns

_ORDINALS = ("first", "second")
_THEMES = {"shapes": 50, "text": 22, "places": 10, "pictures": 15, "sum": 3}
_TRAINED_THEMES = {"shapes": 57, "text": 13, "places": 6, "pictures": 21, "sum": 3}  # more of what is hard
_MAX_PER_KIND = 2
_JSON_CHANCE = 0.4  # that print or a single shape is asked for in JSON; several alike are rare, and always are


@dataclass(frozen=True, slots=True)
class QA:
    """A question, its one right answer, and which of `KINDS` it is."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures and questions that are each about all of them. Text-only examples have no pictures."""

    seed: int
    scenes: tuple[Scene, ...]
    questions: tuple[QA, ...]

    @property
    def pictures(self) -> list[Image.Image]:
        """The scenes drawn, in the order of `<|image_1|>`, `<|image_2|>`, …"""
        return [draw(scene) for scene in self.scenes]


def make_example(seed: int, theme: str | None = None) -> Example:
    """The example of a seed; the same on every machine with the same Pillow font."""
    rng = random.Random(seed)
    drawn = rng.choices(tuple(_THEMES), tuple(_THEMES.values()))[0]
    scenes, questions = _MAKERS[drawn if theme is None else theme](rng)
    return Example(seed, tuple(scenes), (*_thin(rng, questions), *_as_json(seed, scenes)))


def training_theme(seed: int) -> str:
    """What the training example of a seed is about."""
    return random.Random(f"theme {seed}").choices(tuple(_TRAINED_THEMES), tuple(_TRAINED_THEMES.values()))[0]


def split_seed(split: str, index: int, seed: int = 0) -> int:
    """The seed of example `index` of a split, for run `seed`. Raises KeyError for an unknown split."""
    if not (0 <= index < SEEDS_PER_RUN and 0 <= seed < SPLIT_SIZE // SEEDS_PER_RUN):
        raise ValueError(f"index {index} or seed {seed} is outside the split")
    return SPLITS[split] + seed * SEEDS_PER_RUN + index


def make_split(split: str, count: int, seed: int = 0) -> Iterator[Example]:
    """The first `count` examples of a split for run `seed`."""
    for index in range(count):
        yield make_example(split_seed(split, index, seed))


def _thin(rng: random.Random, questions: list[QA]) -> list[QA]:
    """At most two questions of a kind, in random order, so that no kind dominates."""
    rng.shuffle(questions)
    kept: list[QA] = []
    for question in questions:
        if sum(other.kind == question.kind for other in kept) < _MAX_PER_KIND and question not in kept:
            kept.append(question)
    return kept


def _as_json(seed: int, scenes: Sequence[Scene]) -> list[QA]:
    """Drawn apart from the rest, so that a seed's pictures and other questions do not depend on it."""
    found = json_question(scenes[0]) if len(scenes) == 1 else None
    if found is None:
        return []
    is_rare = scenes[0].layout == "shapes" and len(scenes[0].items) > 1
    is_asked = is_rare or random.Random(f"json {seed}").random() < _JSON_CHANCE
    return [QA(*found, "json")] if is_asked else []


def _shapes_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    scene = shapes_scene(rng)
    items = scene.items
    questions = [_count(rng, items), _exists(rng, items), _exists(rng, items)]
    questions += _of_the_only_one(rng, items) + _sides(rng, items, scene.width)
    return [scene], questions


def _count(rng: random.Random, items: Sequence[Item]) -> QA:
    ask = rng.choice(("How many shapes are there?", "How many shapes are in the picture?", "Count the shapes."))
    return QA(ask, str(len(items)), "count")


def _exists(rng: random.Random, items: Sequence[Item]) -> QA:
    shape, colour = _mentioned(rng, items, chance=0.65)
    if rng.random() < 0.5:
        what, found = shape, any(i.name == shape for i in items)
    else:
        what, found = f"{colour} shape", any(i.colour == colour for i in items)
    article = "an" if what[0] in "aeiou" else "a"
    ask = rng.choice(("Is there {} {}?", "Is there {} {} in the picture?", "Do you see {} {}?"))
    return QA(ask.format(article, what), _yes(found), "exists")


def _mentioned(rng: random.Random, items: Sequence[Item], chance: float) -> tuple[str, str]:
    """A shape and a colour to ask about, each from the scene with probability `chance`, else any."""
    item = rng.choice(items)
    shape = item.name if rng.random() < chance else rng.choice(SHAPES)
    colour = item.colour if rng.random() < chance else rng.choice(tuple(COLOURS))
    return shape, colour


def _of_the_only_one(rng: random.Random, items: Sequence[Item]) -> list[QA]:
    """Shape and colour questions whose subject is one of a kind."""
    if len(items) == 1:
        shape = rng.choice(("What shape is in the picture?", "What shape is this?", "Name the shape."))
        colour = rng.choice(("What colour is the shape?", "What colour is it?"))
        return [QA(shape, items[0].name, "shape"), QA(colour, items[0].colour, "colour")]
    questions = []
    for item in items:
        if _is_only(item.name, [i.name for i in items]):
            ask = rng.choice(("What colour is the {}?", "Which colour does the {} have?"))
            questions.append(QA(ask.format(item.name), item.colour, "colour"))
        if _is_only(item.colour, [i.colour for i in items]):
            ask = rng.choice(("What shape is {}?", "Which shape is {}?", "What is the {} shape?"))
            questions.append(QA(ask.format(item.colour), item.name, "shape"))
    return questions


def _sides(rng: random.Random, items: Sequence[Item], width: int) -> list[QA]:
    """In which half of the picture an item stands, where it is clearly in one."""
    questions = []
    for item in items:
        name = _reference(item, items)
        if name is not None and abs(item.x - width / 2) > 0.08 * width:
            ask = rng.choice(("Is the {} left or right?", "Is the {} to the left or right?"))
            questions.append(QA(ask.format(name), "left" if item.x < width / 2 else "right", "side"))
    return questions


def _reference(item: Item, items: Sequence[Item]) -> str | None:
    """An unambiguous name for an item, or None."""
    if _is_only(item.name, [i.name for i in items]):
        return item.name
    if _is_only((item.name, item.colour), [(i.name, i.colour) for i in items]):
        return f"{item.colour} {item.name}"
    return None


def _text_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    text = _digits(rng)
    scene = text_scene(rng, text)
    ask_colour = rng.choice(("What colour is the text?", "Which colour is the text?"))
    return [scene], [_reading(rng, text), QA(ask_colour, scene.items[0].colour, "colour")]


def _reading(rng: random.Random, text: str) -> QA:
    asks = ("What number is written?", "What number is written in the picture?", "Read the number.")
    return QA(rng.choice((*asks, "Which number do you see?")), text, "number")


def _digits(rng: random.Random) -> str:
    return "".join(rng.choices(DIGITS, k=rng.randint(2, MAX_TEXT)))


def _places_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    scene = places_scene(rng, DIGITS)
    ask = "What digit is at the {}?" if scene.layout == "corners" else "What is the {} digit?"
    named = zip(scene.items, place_names(scene), strict=True)
    return [scene], [QA(ask.format(name), item.name, "place") for item, name in named]


def _pictures_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    return rng.choice((_single_shapes, _many_shapes, _printed))(rng)


def _single_shapes(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    scenes = [shapes_scene(rng, 1) for _ in _ORDINALS]
    items = [scene.items[0] for scene in scenes]
    questions = []
    for noun, values in (("shape", [item.name for item in items]), ("colour", [item.colour for item in items])):
        place = rng.randrange(len(scenes))
        ask = rng.choice(("What {} is in the {} picture?", "What {} does the {} picture show?"))
        questions.append(QA(ask.format(noun, _ORDINALS[place]), values[place], "nth"))
        place = rng.randrange(len(scenes))
        if _is_only(values[place], values):
            thing = _a(values[place]) if noun == "shape" else f"{_a(values[place])} shape"
            ask = rng.choice(("In which picture is there {}?", "Which picture shows {}?"))
            questions.append(QA(ask.format(thing), _ORDINALS[place], "which"))
    return scenes, questions


def _many_shapes(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    scenes = [shapes_scene(rng, rng.randint(1, 5)) for _ in _ORDINALS]
    numbers = [len(scene.items) for scene in scenes]
    place = rng.randrange(len(scenes))
    ask = rng.choice(("How many shapes are in the {} picture?", "How many shapes does the {} picture show?"))
    questions = [QA(ask.format(_ORDINALS[place]), str(numbers[place]), "nth")]
    if _is_only(max(numbers), numbers):
        questions.append(QA("Which picture has more shapes?", _ORDINALS[numbers.index(max(numbers))], "more"))
    shown = [{item.name for item in scene.items} for scene in scenes]
    for shape in SHAPES:
        if sum(shape in names for names in shown) == 1:
            place = next(i for i, names in enumerate(shown) if shape in names)
            questions.append(QA(f"In which picture is there {_a(shape)}?", _ORDINALS[place], "which"))
    return scenes, questions


def _printed(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    texts = [_digits(rng) for _ in _ORDINALS]
    place = rng.randrange(len(texts))
    ask = rng.choice(("What number is written in the {} picture?", "Read the number in the {} picture."))
    return [text_scene(rng, text) for text in texts], [QA(ask.format(_ORDINALS[place]), texts[place], "nth")]


def _sum_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    questions = []
    for _ in range(4):
        a, b = rng.randint(0, 4), rng.randint(0, 4)
        ask = rng.choice(("What is {} plus {}?", "How much is {} plus {}?"))
        questions.append(QA(ask.format(a, b), str(a + b), "sum"))
    return [], questions


def _is_only(value: object, values: Sequence[object]) -> bool:
    return sum(value == other for other in values) == 1


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _sheet_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    """For training the vision tower only."""
    return [sheet_scene(rng)], []


_MAKERS: dict[str, Callable[[random.Random], tuple[list[Scene], list[QA]]]] = {
    "shapes": _shapes_example,
    "text": _text_example,
    "places": _places_example,
    "pictures": _pictures_example,
    "sum": _sum_example,
    "sheet": _sheet_example,
}
