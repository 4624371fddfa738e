"""Which of the data's columns the job uses, and for what: checked against the spec, every problem at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from ray_job.arrow.column_types import carried_type, reason_not_stored, wide_type
from ray_job.errors import SpecError
from ray_job.prompts.conversation import QUESTION, nearest, settle, template_fields
from ray_job.redaction.logs import logger_of
from ray_job.rows import INTERNAL_PREFIX, OUTPUT_COLUMNS, ROW_ID
from ray_job.spec import JobSpec, PromptSpec

_LOG = logger_of(__name__)


@dataclass(frozen=True)
class Found:
    """The columns a reader found in the data."""

    columns: pa.Schema
    default_id: str | None = None
    image_columns: tuple[str, ...] | None = None  # where the format itself says; None: by their names
    overrides_column: str | None = None
    # Columns whose types differ between files: name → what is wrong. Only using one is a problem.
    clashes: Mapping[str, str] = field(default_factory=dict)
    not_kept: Collection[str] = ()  # columns left out of the default of input.keep_columns
    also_kept: Collection[str] = ()  # columns in it although they are of no plain type
    chat_columns: Collection[str] = ()  # columns of texts that are lists of messages


@dataclass(frozen=True)
class Roles:
    """The columns by their use."""

    id: str | None  # None: ids are made from file and position
    images: tuple[str, ...]
    kept: tuple[str, ...]
    prompt: PromptSpec  # with its defaults settled
    fields: tuple[str, ...]  # columns that the template names
    overrides: str | None
    password: str | None = None  # of the row's documents

    @property
    def delivered(self) -> tuple[str, ...]:
        """All columns a row needs beside its id, each once."""
        prompt = (self.prompt.messages_column, self.prompt.questions_column, *self.fields)
        names = (*self.images, *self.kept, *prompt, self.overrides, self.password)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def travelling(self, columns: pa.Schema) -> pa.Schema:
        """The delivered columns with the types they travel in: those that are passed through keep their own."""
        fields = (columns.field(name) for name in self.delivered)
        return pa.schema([f if f.name in self.kept else f.with_type(wide_type(f.type)) for f in fields])


def choose_roles(spec: JobSpec, found: Found, source: str) -> Roles:
    """What each column is used for, from the spec and the defaults.

    Raises:
        SpecError: a named column is missing, clashes between files, or may not be kept; all problems at once.
    """
    names = [*found.columns.names, *found.clashes]
    problems: list[str] = []
    id_column = spec.input.id_column or found.default_id or _id_of_output(found.columns)
    images = _image_columns(spec, found, names)
    overrides = spec.generation.overrides_column or found.overrides_column
    if spec.input.id_column is not None:
        problems += _missing("input.id_column", [spec.input.id_column], names)
    problems += _missing("input.image_columns", spec.input.image_columns or (), names)
    if spec.generation.overrides_column is not None:
        problems += _missing("generation.overrides_column", [spec.generation.overrides_column], names)
    password = spec.documents.password_column
    problems += _missing("documents.password_column", [] if password is None else [password], names)
    if password is not None and password in (spec.input.keep_columns or ()):
        problems.append(f"input.keep_columns: {password!r} holds passwords, which no output may hold; leave it out")
    problems += _missing("input.keep_columns", spec.input.keep_columns or (), names)
    prompt = spec.prompt
    try:
        prompt = settle(spec.prompt, [*names, ROW_ID], _chat_columns(found))
    except SpecError as error:
        problems += error.problems
    if spec.input.keep_columns is not None:
        kept = spec.input.keep_columns
    else:
        others = {id_column, *images, overrides, password, prompt.messages_column, *found.not_kept}
        plain = [f for f in found.columns if (_is_plain(f.type) or f.name in found.also_kept) and f.name not in others]
        kept = (*_storable(plain), *(name for name in found.clashes if name not in others))
    kept = tuple(dict.fromkeys(kept))
    problems += _kept_problems(kept, found.columns)
    if id_column is not None and id_column in found.columns.names:
        problems += _id_problems(id_column, found.columns.field(id_column).type)
    if problems:
        raise SpecError(problems, source)
    roles = Roles(id_column, images, kept, prompt, _fields(spec, prompt, names, id_column), overrides, password)
    used = [id_column, *roles.delivered]
    problems = [f"column {name!r}: {text}" for name, text in found.clashes.items() if name in used]
    asked = (*images, overrides, prompt.messages_column, prompt.questions_column)
    problems += [f"column {name!r}: the name is this job's own; rename it" for name in asked if name and _is_own(name)]
    if problems:
        raise SpecError(problems, source)
    return roles


def _image_columns(spec: JobSpec, found: Found, names: Collection[str]) -> tuple[str, ...]:
    if spec.input.image_columns is not None:
        return spec.input.image_columns
    if found.image_columns is not None:
        return found.image_columns
    return next(((name,) for name in ("images", "image") if name in names), ())


def _chat_columns(found: Found) -> list[str]:
    """The columns that hold conversations, the likeliest first."""
    named = [name for name in ("messages", "conversations", "prompt") if name in found.columns.names]
    is_text = {"messages": True, "conversations": True, "prompt": False}
    return [
        name
        for name in named
        if name in found.chat_columns or _is_chat(found.columns.field(name).type, is_text=is_text[name])
    ]


def _is_chat(type_: pa.DataType, *, is_text: bool) -> bool:
    """Whether values may be messages: structs that name a speaker, or JSON texts where `is_text`."""
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    inner = type_.value_type if is_list else type_
    if pa.types.is_struct(inner):
        return any(inner.get_field_index(key) >= 0 for key in ("role", "from"))
    return is_text and not is_list and wide_type(carried_type(type_)) == pa.large_string()


def _id_of_output(columns: pa.Schema) -> str | None:
    """An output of this job as the input: its rows keep their ids."""
    is_output = set(columns.names) >= OUTPUT_COLUMNS and not _id_problems(ROW_ID, columns.field(ROW_ID).type)
    return ROW_ID if is_output else None


def _fields(spec: JobSpec, prompt: PromptSpec, names: Collection[str], id_column: str | None) -> tuple[str, ...]:
    """The columns a template names: not the question that a list of them fills in, nor the row's own id."""
    made = {QUESTION} if spec.has_questions else set()
    if id_column == ROW_ID or ROW_ID not in names:
        made.add(ROW_ID)
    return tuple(name for name in template_fields(prompt.template or "") if name not in made)


def _missing(key: str, wanted: Iterable[str], names: Sequence[str]) -> list[str]:
    return [f"{key}: no column {name!r}; {nearest(name, names)}" for name in wanted if name not in names]


def _storable(fields: Sequence[pa.Field]) -> tuple[str, ...]:
    """Columns that an output can hold; the others are named in a warning."""
    reasons = {field.name: reason for field in fields if (reason := reason_not_stored(field.type)) is not None}
    if reasons:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
        _LOG.warning("not passed through to the output, since Parquet cannot hold their types: %s", listed)
    return tuple(field.name for field in fields if field.name not in reasons)


def _kept_problems(kept: Iterable[str], columns: pa.Schema) -> list[str]:
    problems = []
    for name in kept:
        if name in columns.names and (reason := reason_not_stored(columns.field(name).type)) is not None:
            problems.append(
                f"column {name!r} cannot be passed through: it is {columns.field(name).type}, which Parquet cannot "
                f"hold ({reason}). Leave it out of input.keep_columns"
            )
    return problems


def _is_own(name: str) -> bool:
    return name == ROW_ID or name.startswith(INTERNAL_PREFIX)


def _id_problems(name: str, type_: pa.DataType) -> list[str]:
    held = carried_type(type_)
    is_number_or_text = not (pa.types.is_nested(held) or pa.types.is_floating(held) or pa.types.is_boolean(held))
    if not is_number_or_text or held == pa.null() or reason_not_stored(type_) is not None:
        return [f"input.id_column: {name!r} is of type {type_}; an id is a text, a whole number, a date or bytes"]
    return []


def _is_plain(type_: pa.DataType) -> bool:
    """Whether a column is passed through by default: text, numbers, dates; not bytes, lists or structs."""
    types = pa.types
    is_bytes = types.is_binary(type_) or types.is_large_binary(type_) or types.is_fixed_size_binary(type_)
    is_bytes = is_bytes or types.is_binary_view(type_)
    return not (is_bytes or types.is_nested(type_) or isinstance(type_, pa.BaseExtensionType))
