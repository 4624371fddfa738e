"""The columns that WebDataset samples have, by the extensions of their members and the keys of their JSON.

image          the picture, whatever its extension (png, v2.png) where it is the only one of its sample; where samples
               have several (jpg and png), the first kind seen
left.jpg, …    are the pictures, each in its own column, where no sample has one without such a first part
jpg, seg.png   further pictures, and everything else that is not text, as bytes under its extension
txt, cls       texts
json           the whole text; and a column for each of its keys that has no other column's name
__key__        the part of the name before its first dot; `__url__`: the shard
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.inputs.formats.text.json_columns import KeyTypes, converter, kind_of, parse_object
from ray_job.inputs.formats.webdataset.samples import Sample

KEY, URL, IMAGE = "__key__", "__url__", "image"
MAX_KEYS = 4096
_PICTURES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        *("heic", "heif", "avif", "jp2", "j2k", "ico"),
    ]
)
_TEXTS = frozenset(
    [
        *("txt", "text", "transcript", "caption", "captions", "prompt", "question", "answer", "lang", "url"),
        *("cls", "cls2", "index", "inx", "id", "md", "html", "htm", "xml", "csv", "tsv", "yaml", "yml"),
        *("json", "jsn", "jsonl"),
    ]
)
JSON = ("json", "jsn")


@dataclass(frozen=True)
class SampleColumns:
    """The columns, and which members fill them."""

    schema: pa.Schema
    extensions: Mapping[str, tuple[str, ...]]  # of each column that is a member's content
    keys: tuple[str, ...]  # columns that are keys of the JSON
    image_columns: tuple[str, ...] | None  # None: there are no pictures

    def wanted(self, names: Sequence[str]) -> frozenset[str]:
        """The extensions whose content these columns need."""
        found = {extension for name in names for extension in self.extensions.get(name, ())}
        return frozenset(found | set(JSON) if set(names) & set(self.keys) else found)

    def with_text_id(self, name: str | None) -> SampleColumns:
        """The same, but a key that is the id is text: a sample without one could not be called by its name."""
        if name not in self.keys:
            return self
        place = self.schema.get_field_index(name)
        return replace(self, schema=self.schema.set(place, pa.field(name, pa.string())))

    def check_pictures(self, samples: Iterable[Sample], names: Sequence[str]) -> None:
        """Fails samples that have pictures, but none in the columns of these names."""
        shown = {extension for name in names for extension in self.extensions.get(name, ())}
        for sample in samples:
            others = [extension for extension in sample.fields if _is_picture(extension)]
            if names and others and not shown & sample.fields.keys():
                columns = ", ".join([*names, *others])
                text = f"the sample's pictures ({', '.join(others)}) are in other columns than {', '.join(names)}"
                advice = f"set input.image_columns: [{columns}] to show them, or rename them"
                sample.fail(RowError(ErrorCode.IMAGE_MISSING, f"{text}; {advice}", Stage.READ))

    def arrays(self, samples: Sequence[Sample], url: str, names: Sequence[str]) -> dict[str, pa.Array]:
        """The columns of these names; a value that does not fit its column fails its sample."""
        arrays = {}
        parsed = self._parsed(samples) if set(names) & set(self.keys) else []
        for name in names:
            if name in (KEY, URL):
                values = [sample.key if name == KEY else url for sample in samples]
                arrays[name] = pa.array(values, pa.string())
            elif name in self.extensions:
                contents = pa.array([_content(sample, self.extensions[name]) for sample in samples], pa.large_binary())
                is_text = self.schema.field(name).type == pa.large_string()
                arrays[name] = contents.view(pa.large_string()) if is_text else contents
            elif name in self.keys:
                arrays[name] = self._key(name, samples, parsed)
        return arrays

    def _key(self, name: str, samples: Sequence[Sample], parsed: Sequence[Mapping[str, Any]]) -> pa.Array:
        type_ = self.schema.field(name).type
        convert, values = converter(type_), []
        for sample, item in zip(samples, parsed, strict=True):
            try:
                values.append(convert(item.get(name)))
            except RowError as error:
                values.append(None)
                sample.fail(RowError(error.code, f"{name!r} of its json {error.message}", Stage.READ))
        return pa.array(values, type_)

    @staticmethod
    def _parsed(samples: Sequence[Sample]) -> list[Mapping[str, Any]]:
        items: list[Mapping[str, Any]] = []
        for sample in samples:
            content = _content(sample, JSON)
            try:
                items.append({} if content is None else parse_object(content))
            except RowError as error:
                items.append({})
                sample.fail(RowError(error.code, f"its json {error.message}", Stage.READ))
        return items


class Keys:
    """The keys of JSON objects, with a small value of each kind that stands for all of its kind."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str], Any] = {}

    def see(self, item: Mapping[str, Any]) -> None:
        """Takes the keys of an object."""
        for key, value in item.items():
            kind = kind_of(value)
            if (key, kind) not in self._examples and not self.is_full:
                small = {"str": "", "list": [], "dict": {}}
                self._examples[key, kind] = small.get(kind, value)

    def merge(self, other: Keys) -> None:
        """Takes those of another."""
        for (key, _), value in other._examples.items():
            self.see({key: value})

    @property
    def is_full(self) -> bool:
        """Whether there are more keys than become columns."""
        return len(self._examples) >= MAX_KEYS

    def types(self) -> dict[str, pa.DataType]:
        """The type of each key's column."""
        types = KeyTypes()
        for (key, _), value in self._examples.items():
            types.add({key: value})
        return types.columns()


def sample_columns(layouts: Iterable[frozenset[str]], keys: Keys) -> SampleColumns:
    """The columns of samples.

    Args:
        layouts: every set of extensions that a sample has, in order of first sight.
        keys: of their JSON.
    """
    listed = list(layouts)
    found = list(dict.fromkeys(extension for layout in listed for extension in sorted(layout)))
    images = _alternatives(found, listed)
    extensions: dict[str, tuple[str, ...]] = {IMAGE: images} if images else {}
    extensions.update({extension: (extension,) for extension in found if extension not in images})
    fields = [pa.field(KEY, pa.string()), pa.field(URL, pa.string())]
    for name in extensions:
        is_text = name != IMAGE and name.rpartition(".")[2] in _TEXTS
        fields.append(pa.field(name, pa.large_string() if is_text else pa.large_binary()))
    own = {field.name for field in fields}
    types = {key: type_ for key, type_ in keys.types().items() if key not in own}
    fields += [pa.field(key, type_) for key, type_ in types.items()]
    parts = [extension for extension in found if _is_picture(extension)]  # left.jpg, right.jpg
    return SampleColumns(pa.schema(fields), extensions, tuple(types), (IMAGE,) if images else tuple(parts) or None)


def _alternatives(found: Sequence[str], layouts: Sequence[frozenset[str]]) -> tuple[str, ...]:
    """The first kind of picture, and those that no sample has beside another of them.

    One with a first part (v2.png) is among them where it is the only picture of each sample that has it.
    """
    chosen: list[str] = []
    for extension in found:
        if extension in _PICTURES and not _beside(extension, layouts) & set(chosen):
            chosen.append(extension)
    if not chosen:
        return ()
    others = [extension for extension in found if extension not in chosen and _is_picture(extension)]
    return (*chosen, *(each for each in others if not any(map(_is_picture, _beside(each, layouts)))))


def _beside(extension: str, layouts: Iterable[frozenset[str]]) -> set[str]:
    return {other for layout in layouts if extension in layout for other in layout} - {extension}


def _is_picture(extension: str) -> bool:
    return extension.rpartition(".")[2] in _PICTURES


def _content(sample: Sample, extensions: Iterable[str]) -> bytes | None:
    return next((sample.fields[extension] for extension in extensions if extension in sample.fields), None)
