"""Scenes and their pictures: coloured shapes, a line of printed text, single characters in known places.

A `Scene` is the truth (what stands where, in pixels of the picture); `draw` turns it into a PIL picture.
Questions are asked of the scene, never of the pixels, so an answer cannot be wrong by construction.
No torch here, and nothing is downloaded: the font is the one inside Pillow.

Sizes are chosen in *units*: one unit is the side of one crop once the picture has been resized for the
model, so a shape of a third of a unit is equally legible in a square and in a wide picture.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 205, 30),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
TEXT_COLOURS = ("black", "red", "green", "blue", "purple")  # yellow prints too pale on a light ground
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = "0123456789"
MAX_TEXT = 3

# The crop grids a budget of two local crops can end in, as width/height ratios, and how often each is drawn.
# Ratios stay clear of the borders where rounding decides between two grids.
_RATIOS: tuple[tuple[float, float, int], ...] = (
    (1.00, 1.45, 6),  # 1×1
    (2.02, 2.30, 4),  # 1×2
)
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_FROM_LEFT = ("first", "second")
_SUPERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Item:
    """A shape or one printed digit. `x`, `y` is its centre; `place` says which of several it is."""

    name: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    half_width: float
    half_height: float
    place: int | None = 0

    @property
    def is_shape(self) -> bool:
        return self.name in SHAPES


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows. `layout` is "shapes", "text", "sheet" or the kind of places its characters stand in."""

    width: int
    height: int
    background: tuple[Rgb, Rgb]
    items: tuple[Item, ...]
    layout: str

    @property
    def text(self) -> str:
        return "".join(item.name for item in self.items)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of (scene.width, scene.height)."""
    k = _SUPERSAMPLING
    image = Image.new("RGB", (scene.width * k, scene.height * k), scene.background[0])
    canvas = ImageDraw.Draw(image)
    if scene.background[1] != scene.background[0]:
        canvas.rectangle((0, scene.height * k // 2, scene.width * k, scene.height * k), scene.background[1])
    for item in scene.items:
        if item.is_shape:
            _PAINTERS[item.name](canvas, item.x * k, item.y * k, item.half_width * k, item.rgb)
        else:
            font = _font(round(item.half_height * 2 * k))
            canvas.text((item.x * k, item.y * k), item.name, font=font, fill=item.rgb, anchor="mm")
    return image.reduce(k)


def shapes_scene(rng: random.Random, num_shapes: int | None = None) -> Scene:
    """One to four shapes that do not touch, in any of the crop grids, wide or tall."""
    width, height, unit = _frame(rng, tall=rng.random() < 0.4)
    room = 4 if width * height > 2.2 * unit * unit else 3
    count = rng.randint(1, room) if num_shapes is None else min(num_shapes, room)
    names = rng.sample(SHAPES, rng.choice((1, 2, 2, 3, 5)))
    colours = rng.sample(tuple(COLOURS), rng.choice((1, 2, 2, 3, 6)))
    items: list[Item] = []
    largest = 0.36 if count <= 2 else 0.28
    while len(items) < count:
        largest *= 0.97  # a crowded picture ends in smaller shapes instead of an endless search
        radius = rng.uniform(min(0.15, largest), largest) * unit
        radius = min(radius, 0.45 * min(width, height))
        x = rng.uniform(radius + 1, width - radius - 1)
        y = rng.uniform(radius + 1, height - radius - 1)
        if all((x - i.x) ** 2 + (y - i.y) ** 2 > (1.15 * (radius + i.half_width) + 1) ** 2 for i in items):
            colour = rng.choice(colours)
            items.append(Item(rng.choice(names), colour, _shade(rng, colour), x, y, radius, radius))
    return Scene(width, height, _background(rng), tuple(items), "shapes")


def text_scene(rng: random.Random, text: str) -> Scene:
    """One line of `text`, at most three characters, anywhere in a square or wide picture."""
    width, height, unit = _frame(rng, tall=False)
    half = rng.uniform(0.60, 0.95) * unit / 2
    advances = [_advance(c) * half * 2 for c in text]
    shrink = min(1.0, 0.92 * width / sum(advances), 0.80 * height / (2 * half))
    half *= shrink
    advances = [a * shrink for a in advances]
    total = sum(advances)
    x = rng.uniform(0.03 * width, 0.97 * width - total)
    y = rng.uniform(half, height - half)
    colour = rng.choice(TEXT_COLOURS)
    rgb = _shade(rng, colour)
    items = []
    for place, (char, advance) in enumerate(zip(text, advances, strict=True)):
        items.append(Item(char, colour, rgb, x + advance / 2, y, advance / 2, half, place))
        x += advance
    return Scene(width, height, _background(rng), tuple(items), "text")


def places_scene(rng: random.Random, alphabet: str) -> Scene:
    """Single characters, each in a place with a name: the four corners, or the first and second in a row or column.

    In a row or column every place falls in a local crop of its own: an answer is right only if crops are cut, ordered
    and laid out right.
    """
    layout = rng.choice(("corners", "corners", "row", "column"))
    columns, rows = (2, 2) if layout == "corners" else (2, 1)
    unit = rng.uniform(45, 80)
    long, short = columns * unit, rows * unit * rng.uniform(0.93, 0.99)
    items = []
    for place, char in enumerate(rng.choices(alphabet, k=columns * rows)):
        column, row = place % columns, place // columns
        colour = rng.choice(TEXT_COLOURS)
        half = rng.uniform(0.45, 0.70) * unit / 2
        x = (column + rng.uniform(0.32, 0.68)) * unit
        y = (row + rng.uniform(0.36, 0.64)) * short / rows
        if layout == "column":
            x, y = y, x
        half_width = _advance(char) * half
        items.append(Item(char, colour, _shade(rng, colour), x, y, half_width, half, place))
    size = (round(short), round(long)) if layout == "column" else (round(long), round(short))
    return Scene(*size, _background(rng), tuple(items), layout)


def sheet_scene(rng: random.Random) -> Scene:
    """A square picture full of lines of shapes and characters in all sizes: nothing to ask, much to look at.

    Teaches the vision tower far more for each crop than the pictures that questions are about.
    """
    unit = rng.uniform(45, 80)
    side = round(2 * unit)
    items: list[Item] = []
    y = rng.uniform(0, 0.1) * unit
    while True:
        half = rng.uniform(0.13, 0.36) * unit
        if y + 2 * half > side:
            return Scene(side, side, _background(rng), tuple(items), "sheet")
        items += _sheet_line(rng, side, y + half, half)
        y += 2 * half + rng.uniform(0, 0.06) * unit


def _sheet_line(rng: random.Random, width: int, y: float, half: float) -> list[Item]:
    """Neighbours share a colour half of the time, as digits of a number do."""
    items: list[Item] = []
    x = rng.uniform(0, half)
    is_print, colour = rng.random() < 0.65, ""
    while True:
        name = rng.choice(DIGITS if is_print else SHAPES)
        if not colour or rng.random() < 0.5:
            colour = rng.choice(TEXT_COLOURS if is_print else tuple(COLOURS))
        half_width = _advance(name) * half if is_print else half
        if x + 2 * half_width > width:
            return items
        items.append(Item(name, colour, _shade(rng, colour), x + half_width, y, half_width, half, None))
        x += 2 * half_width + (rng.uniform(0, half) if not is_print or rng.random() < 0.2 else 0)
        if rng.random() < 0.15:
            is_print, colour = not is_print, ""


def place_names(scene: Scene) -> Sequence[str]:
    """The names of a `places_scene`'s places, by `Item.place`."""
    return _CORNERS if scene.layout == "corners" else _FROM_LEFT[: len(scene.items)]


def encode(image: Image.Image, file_format: str, quality: int = 90) -> bytes:
    """The picture as the bytes of a JPEG, PNG or WEBP file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **({} if file_format == "PNG" else {"quality": quality}))
    return buffer.getvalue()


def _frame(rng: random.Random, tall: bool) -> tuple[int, int, float]:
    """A picture size and the length of its unit."""
    low, high, _ = rng.choices(_RATIOS, [weight for *_, weight in _RATIOS])[0]
    ratio = rng.uniform(low, high)
    unit = rng.uniform(45, 80)
    long = (2.0 if low > 2 else 1.4) * unit
    width, height = round(long), round(long / ratio)
    return (height, width, unit) if tall else (width, height, unit)


def _background(rng: random.Random) -> tuple[Rgb, Rgb]:
    """Light and nearly grey; a third of the pictures have another tint in their lower half."""
    first = _tint(rng)
    return (first, _tint(rng)) if rng.random() < 0.33 else (first, first)


def _tint(rng: random.Random) -> Rgb:
    level = rng.randint(222, 250)
    red, green, blue = (level + rng.randint(-12, 5) for _ in range(3))
    return red, green, blue


def _shade(rng: random.Random, colour: str) -> Rgb:
    red, green, blue = (max(0, min(255, c + rng.randint(-14, 14))) for c in COLOURS[colour])
    return red, green, blue


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("the demo draws text with Pillow's own font, which needs Pillow built with FreeType")
    return font


@lru_cache(maxsize=64)
def _advance(char: str) -> float:
    """Width of a character, with some air, in font sizes."""
    return float(_font(100).getlength(char)) / 100 + 0.07


Painter = Callable[[ImageDraw.ImageDraw, float, float, float, Rgb], None]


def _circle(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: Rgb) -> None:
    canvas.ellipse((x - r, y - r, x + r, y + r), rgb)


def _polygon(points: Sequence[tuple[float, float]]) -> Painter:
    def paint(canvas: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: Rgb) -> None:
        canvas.polygon([(x + r * px, y + r * py) for px, py in points], rgb)

    return paint


def _star_points() -> list[tuple[float, float]]:
    outer = [(0.0, -1.0), (0.951, -0.309), (0.588, 0.809), (-0.588, 0.809), (-0.951, -0.309)]
    inner = [(0.247, -0.340), (0.399, 0.130), (0.0, 0.420), (-0.399, 0.130), (-0.247, -0.340)]
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


_ARM = 0.34
_PAINTERS: dict[str, Painter] = {
    "circle": _circle,
    "square": _polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": _polygon([(0.0, -0.95), (0.95, 0.80), (-0.95, 0.80)]),
    "star": _polygon(_star_points()),
    "cross": _polygon(
        [
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ]
    ),
}
