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

from ray_job.demo.pictures import (
    COLOURS,
    DIGITS,
    LETTERS,
    MAX_TEXT,
    SHAPES,
    WORDS,
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
    "count",  # how many shapes, 1 to 6
    "count_of",  # how many circles, red shapes or red circles, 0 to 6
    "side",  # left or right, above or below
    "edge",  # the shape furthest left, right, up or down
    "exists",  # yes or no
    "number",  # three to five printed digits
    "word",  # three to five printed letters
    "place",  # the character in a corner, or first to fourth in a row or a column
    "more",  # which of two or three pictures has the most shapes
    "same",  # whether two pictures show the same shape or colour
    "which",  # in which picture something is
    "nth",  # something of the nth picture
    "sum",  # arithmetic without a picture
)
SPLIT_SIZE = 10_000_000_000
SPLITS = {"train": 0, "eval": SPLIT_SIZE, "test": 2 * SPLIT_SIZE, "demo": 3 * SPLIT_SIZE}
SEEDS_PER_RUN = 10_000_000  # of a split that one `seed` argument owns

_ORDINALS = ("first", "second", "third")
_PLURALS = {name: name + ("es" if name == "cross" else "s") for name in SHAPES}
_THEMES = {"shapes": 50, "text": 22, "places": 10, "pictures": 15, "sum": 3}
_MAX_PER_KIND = 2


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
    return Example(seed, tuple(scenes), tuple(_thin(rng, questions)))


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
    """At most two questions of a kind, in random order, so that no kind drowns the others."""
    rng.shuffle(questions)
    kept: list[QA] = []
    for question in questions:
        if sum(other.kind == question.kind for other in kept) < _MAX_PER_KIND and question not in kept:
            kept.append(question)
    return kept


def _shapes_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    scene = shapes_scene(rng)
    items = scene.items
    questions = [_count(rng, items), _exists(rng, items), _exists(rng, items)]
    questions += [_count_of(rng, items) for _ in range(2)]
    questions += _of_the_only_one(rng, items) + _sides(rng, items) + _edges(rng, items)
    return [scene], questions


def _count(rng: random.Random, items: Sequence[Item]) -> QA:
    ask = rng.choice(("How many shapes are there?", "How many shapes are in the picture?", "Count the shapes."))
    return QA(ask, str(len(items)), "count")


def _count_of(rng: random.Random, items: Sequence[Item]) -> QA:
    shape, colour = _mentioned(rng, items, chance=0.85)
    what = rng.choice((_PLURALS[shape], f"{colour} shapes", f"{colour} {_PLURALS[shape]}"))
    number = sum(
        (shape == i.name or what.endswith("shapes")) and (colour == i.colour or not what.startswith(colour))
        for i in items
    )
    ask = rng.choice(("How many {} are there?", "How many {} are in the picture?", "Count the {}."))
    return QA(ask.format(what), str(number), "count_of")


def _exists(rng: random.Random, items: Sequence[Item]) -> QA:
    shape, colour = _mentioned(rng, items, chance=0.65)
    if rng.random() < 0.5:
        what, found = shape, any(i.name == shape for i in items)
    else:
        what, found = f"{colour} {shape}", any((i.name, i.colour) == (shape, colour) for i in items)
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


def _sides(rng: random.Random, items: Sequence[Item]) -> list[QA]:
    """Where one item stands from another, both ways, for pairs that are clearly apart."""
    questions = []
    for a in items:
        for b in items:
            names = _reference(a, items), _reference(b, items)
            if a is b or None in names:
                continue
            apart = a.half_width + b.half_width
            if abs(a.x - b.x) > 0.6 * apart:
                ask = rng.choice(("Is the {} left or right of the {}?", "Is the {} to the left or right of the {}?"))
                questions.append(QA(ask.format(*names), "left" if a.x < b.x else "right", "side"))
            if abs(a.y - b.y) > 0.6 * apart:
                answer = "above" if a.y < b.y else "below"
                questions.append(QA("Is the {} above or below the {}?".format(*names), answer, "side"))
    return questions


def _edges(rng: random.Random, items: Sequence[Item]) -> list[QA]:
    """The item furthest out in a direction, where the next one is clearly less far."""
    if len(items) < 2:
        return []
    questions = []
    directions: tuple[tuple[str, Callable[[Item], float]], ...] = (
        ("on the left", lambda i: i.x),
        ("on the right", lambda i: -i.x),
        ("at the top", lambda i: i.y),
        ("at the bottom", lambda i: -i.y),
    )
    for where, key in directions:
        first, second = sorted(items, key=key)[:2]
        if key(second) - key(first) > 0.6 * (first.half_width + second.half_width):
            words = where.replace("on the ", "furthest ").replace("at the ", "nearest the ")
            ask = rng.choice(("Which shape is {}?", "What is {}?"))
            questions.append(QA(ask.format(words), f"{first.colour} {first.name}", "edge"))
    return questions


def _reference(item: Item, items: Sequence[Item]) -> str | None:
    """How to speak of an item without doubt, or None."""
    if _is_only(item.name, [i.name for i in items]):
        return item.name
    if _is_only((item.name, item.colour), [(i.name, i.colour) for i in items]):
        return f"{item.colour} {item.name}"
    return None


def _text_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    text = _digits(rng) if rng.random() < 0.5 else _letters(rng)
    scene = text_scene(rng, text)
    ask_colour = rng.choice(("What colour is the text?", "Which colour is the text?"))
    return [scene], [_reading(rng, text), QA(ask_colour, scene.items[0].colour, "colour")]


def _reading(rng: random.Random, text: str) -> QA:
    kind = "number" if text.isdigit() else "word"
    asks = ("What {} is written?", "What {} is written in the picture?", "Read the {}.", "Which {} do you see?")
    return QA(rng.choice(asks).format(kind), text, kind)


def _digits(rng: random.Random, low: int = 3) -> str:
    return "".join(rng.choices(DIGITS, k=rng.randint(low, MAX_TEXT)))


def _letters(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(WORDS)
    return "".join(rng.choices(LETTERS, k=rng.randint(3, MAX_TEXT)))


def _places_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    noun, alphabet = rng.choice((("letter", LETTERS), ("digit", DIGITS)))
    scene = places_scene(rng, alphabet)
    questions = []
    for item, name in zip(scene.items, place_names(scene), strict=True):
        ask = "What {noun} is at the {place}?" if scene.layout == "corners" else "What is the {place} {noun}?"
        questions.append(QA(ask.format(noun=noun, place=name), item.name, "place"))
    return [scene], questions


def _pictures_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    count = rng.choice((2, 2, 3))
    maker = rng.choice((_single_shapes, _many_shapes, _printed))
    return maker(rng, count)


def _single_shapes(rng: random.Random, count: int) -> tuple[list[Scene], list[QA]]:
    scenes = [shapes_scene(rng, 1) for _ in range(count)]
    items = [scene.items[0] for scene in scenes]
    questions = []
    for name, ordinal in zip(("name", "colour"), ("shape", "colour"), strict=True):
        values = [getattr(item, name) for item in items]
        if count == 2:
            ask = rng.choice(("Do the pictures show the same {}?", "Is the {} the same in both pictures?"))
            questions.append(QA(ask.format(ordinal), _yes(values[0] == values[1]), "same"))
        place = rng.randrange(count)
        ask = rng.choice(("What {} is in the {} picture?", "What {} does the {} picture show?"))
        questions.append(QA(ask.format(ordinal, _ORDINALS[place]), values[place], "nth"))
        place = rng.randrange(count)
        if _is_only(values[place], values):
            thing = _a(values[place]) if name == "name" else f"a {values[place]} shape".replace("a o", "an o")
            ask = rng.choice(("In which picture is there {}?", "Which picture shows {}?"))
            questions.append(QA(ask.format(thing), _ORDINALS[place], "which"))
    return _often_same(rng, scenes, questions)


def _often_same(rng: random.Random, scenes: list[Scene], questions: list[QA]) -> tuple[list[Scene], list[QA]]:
    """Drops most "no" answers to "same", which chance would make far more frequent than "yes"."""
    kept = [q for q in questions if q.kind != "same" or q.answer == "yes" or rng.random() < 0.3]
    return scenes, kept or questions


def _many_shapes(rng: random.Random, count: int) -> tuple[list[Scene], list[QA]]:
    scenes = [shapes_scene(rng, rng.randint(1, 5)) for _ in range(count)]
    numbers = [len(scene.items) for scene in scenes]
    questions = []
    place = rng.randrange(count)
    ask = rng.choice(("How many shapes are in the {} picture?", "How many shapes does the {} picture show?"))
    questions.append(QA(ask.format(_ORDINALS[place]), str(numbers[place]), "nth"))
    if _is_only(max(numbers), numbers):
        ask = "Which picture has more shapes?" if count == 2 else "Which picture has the most shapes?"
        questions.append(QA(ask, _ORDINALS[numbers.index(max(numbers))], "more"))
    shown = [{item.name for item in scene.items} for scene in scenes]
    for shape in SHAPES:
        if sum(shape in names for names in shown) == 1:
            place = next(i for i, names in enumerate(shown) if shape in names)
            questions.append(QA(f"In which picture is there {_a(shape)}?", _ORDINALS[place], "which"))
    return scenes, questions


def _printed(rng: random.Random, count: int) -> tuple[list[Scene], list[QA]]:
    texts = [_digits(rng) for _ in range(count)]
    scenes = [text_scene(rng, text) for text in texts]
    place = rng.randrange(count)
    ask = rng.choice(("What number is written in the {} picture?", "Read the number in the {} picture."))
    return scenes, [QA(ask.format(_ORDINALS[place]), texts[place], "nth")]


def _sum_example(rng: random.Random) -> tuple[list[Scene], list[QA]]:
    questions = []
    for _ in range(4):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
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
