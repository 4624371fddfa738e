"""Rows of JSON: lines, an array's items, or objects behind each other; the OpenAI batch form, or plain objects.

Every object is looked at when the input is opened, so that a key that appears late is a column all the same, of a type
that all its values have. A split is a range of bytes between two objects (a whole file where it is compressed or not
in UTF-8).

In the OpenAI form (`messages` in the line or in its `body`, and no other prompt in the spec) rows have the columns
`messages` and `params`, both JSON text; see `openai.py` for what becomes of the request's fields. The first object with
`messages` or a prompt decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from ray_job.errors import InputError, RowError, Stage
from ray_job.inputs.columns import Found, Roles, choose_roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.formats.tables.schemas import hive_columns
from ray_job.inputs.formats.text.json_columns import MAX_KEYS, KeyTypes, as_text, converter, parse_object
from ray_job.inputs.formats.text.openai import REQUEST_FIELDS, is_request, parse_request
from ray_job.inputs.formats.text.record_source import RecordSource, max_record_bytes
from ray_job.inputs.formats.text.record_splits import RecordSplit, open_records, scan_all
from ray_job.inputs.formats.text.records import Record, located
from ray_job.inputs.formats.text.text_files import TextFile, look_into
from ray_job.inputs.source import malformed
from ray_job.prompts.messages import is_chat as is_messages
from ray_job.redaction.logs import logger_of
from ray_job.spec import JobSpec

MESSAGES = "messages"
PARAMS = "params"
_PROMPTS = ("prompt", "question")
_THREADS = 16
_MIN_LEARNED_ROWS = 10_000  # so that a few rows tried mostly have the columns of all, whose run may continue theirs
_LOG = logger_of(__name__)


@dataclass(frozen=True)
class JsonSource(RecordSource):
    """Rows of JSON."""

    is_chat: bool  # the OpenAI form

    def item(self, record: Record, file: TextFile) -> tuple[Mapping[str, Any], RowError | None]:
        """The object; in the OpenAI form with `messages` and `params` as their texts."""
        item: dict[str, Any] = {}
        try:
            item = parse_object(record.content or b"")
            if self.is_chat:
                messages, params = parse_request(item)
                # A column of its own with the row's parameters wins over the request's.
                item = {**item, MESSAGES: messages, **({PARAMS: params} if self.overrides_column == PARAMS else {})}
        except BaseException as error:  # of this row, or it goes on from there
            return item, RowError.of(error, Stage.READ, f"{file.name}#{record.number}")
        return item, None

    def column(self, field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[RowError | None]]:
        """Values converted one by one."""
        convert = converter(field.type)
        fitting: list[Any] = []
        problems: list[RowError | None] = []
        for value in values:
            try:
                fitting.append(convert(value))
                problems.append(None)
            except BaseException as error:  # of this row, or it goes on from there
                fitting.append(None)
                problems.append(RowError.of(error, Stage.READ, field.name))
        return pa.array(fitting, field.type), problems

    def id(self, value: Any) -> Any:
        """A number as it is, checked when the input was opened; or a text."""
        if self.id_field.type != pa.string():
            return value
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise malformed(f"must be a text that is not empty, got {as_text(value)!s:.60}")
        return as_text(value)


class _Learned:
    """What the objects of an input have in common."""

    def __init__(self) -> None:
        self.keys = KeyTypes()
        self.num_objects = 0
        self.is_chat: bool | None = None  # None: no object says
        self.has_chat_prompts = False  # lists of messages in `prompt`
        self.problem = ""  # of the first record that is no object

    def add(self, record: Record) -> None:
        """Learns a record; one that is no object says so when it is read."""
        try:
            item = _object(record)
        except RowError as error:
            self.problem = self.problem or error.message
            return
        self.num_objects += 1
        self.keys.add(item)
        self.has_chat_prompts = self.has_chat_prompts or is_messages(item.get("prompt"))
        if self.is_chat is None:
            has_prompt = any(isinstance(item.get(name), str) for name in _PROMPTS)
            self.is_chat = True if is_request(item) else False if has_prompt else None


def open_json(spec: JobSpec, found: InputFiles) -> JsonSource:
    """Looks at every object, or with a limit at the first ones, for columns and types, and cuts the files.

    Raises:
        InputError: a file cannot be read, none holds an object, or ids are numbers and a row has none.
        SpecError: the spec does not fit the columns.
    """
    max_bytes, learned = max_record_bytes(spec.limits), _Learned()
    with ThreadPoolExecutor(_THREADS) as pool:
        look = partial(look_into, framing="lines", encoding=spec.input.encoding)
        files = list(pool.map(look, found.files))
    limit = spec.input.limit
    max_rows = None if limit is None else max(limit, _MIN_LEARNED_ROWS)
    splits = scan_all(files, max_bytes, lambda _, record: learned.add(record), max_rows)
    if all(file.num_bytes == 0 for file in found.files):
        raise InputError(f"{files[0].location}: has no bytes; check that it was written to its end")
    if not learned.num_objects:
        problem = f" (the first row: {learned.problem})" if learned.problem else ""
        raise InputError(f"{files[0].location}: holds no JSON object, on a line or in an array{problem}; is it JSON?")
    if learned.keys.is_full:
        _LOG.warning("more than %d different keys; those seen first are columns", MAX_KEYS)
    partitions = hive_columns((file.name for file in files), {spec.input.id_column, *learned.keys.columns()})
    columns, is_chat, roles = _choose(spec, learned, partitions)
    schema = pa.schema(columns.items())
    if roles.id is not None and columns[roles.id] == pa.int64():
        _check_ids(splits, max_bytes, roles.id, learned)
    own = {"id_column": roles.id, "max_record_bytes": max_bytes, "is_chat": is_chat, "partitions": partitions}
    return JsonSource.planned(spec, found, schema, roles, splits, **own)


def _choose(spec: JobSpec, learned: _Learned, partitions: pa.Schema) -> tuple[dict[str, pa.DataType], bool, Roles]:
    """The columns' types, whether the objects are OpenAI requests, and what each column is for."""
    columns = {**learned.keys.columns(), **{field.name: field.type for field in partitions}}
    prompt = spec.prompt
    is_other = prompt.template is not None or prompt.questions is not None or prompt.questions_column is not None
    is_chat = not is_other and prompt.messages_column in (None, MESSAGES) and bool(learned.is_chat)
    if learned.is_chat is False and not is_other and prompt.messages_column is None and MESSAGES in columns:
        template = next(f"{{{name}}}" for name in _PROMPTS if name in columns)
        spec = spec.model_copy(update={"prompt": prompt.model_copy(update={"template": template})})
    if is_chat:
        columns = {**columns, MESSAGES: pa.string()}
        if spec.generation.overrides_column is None:
            columns[PARAMS] = pa.string()
    found = Found(
        pa.schema(columns.items()),
        default_id="custom_id" if "custom_id" in columns else None,
        overrides_column=PARAMS if is_chat else None,
        not_kept=REQUEST_FIELDS if is_chat else (),
        chat_columns=["prompt"] if learned.has_chat_prompts else [],
    )
    roles = choose_roles(spec, found, "input")
    lists = (*roles.images, roles.prompt.questions_column)
    texts = (roles.prompt.messages_column, roles.overrides)
    columns.update({name: pa.list_(pa.string()) for name in lists if name is not None})
    columns.update({name: pa.string() for name in texts if name is not None})
    return columns, is_chat, roles


def _check_ids(splits: Sequence[RecordSplit], max_bytes: int, column: str, learned: _Learned) -> None:
    """Where ids are numbers each row has one: none could be made up."""
    if learned.keys.num_values(column) == sum(split.num_rows for split in splits):
        return
    for split in splits:
        with open_records(split.file, max_bytes, split) as records:
            for record in records:
                _check_id(split.file, record, column)


def _object(record: Record) -> dict[str, Any]:
    if record.problem is not None:
        raise malformed(record.problem)
    return parse_object(record.content or b"")


def _check_id(file: TextFile, record: Record, column: str) -> None:
    try:
        if _object(record).get(column) is None:
            raise malformed(f"{column!r} must be a whole number, as in other rows")
    except RowError as error:
        raise InputError(
            f"{located(file.name, file.unit, record, error).message}. Ids are numbers here, so the row cannot be "
            "called by its position: repair it or take it out, or give input.id_column another column"
        ) from None
