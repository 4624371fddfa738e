"""Rows of JSON lines: the OpenAI batch form, or plain objects.

A split is a range of bytes that begins and ends at a line (a whole file where it is compressed). A line that cannot be
used is a row too: its id is `name#line`, with lines counted from 1 as editors do, and its error says what is wrong.
Types are inferred from the first lines of each file (SAMPLE_LINES, or as many as SAMPLE_BYTES hold); a key that first
appears later is not a column.

In the OpenAI form (`messages` in the line or in its `body`, and no other prompt in the spec) rows have the columns
`messages` and `params`, both JSON text; see `openai.py` for what becomes of the request's fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from ray_job.errors import InputError, RowError, Stage
from ray_job.inputs.columns import Found, Roles, choose_roles
from ray_job.inputs.files import InputFiles
from ray_job.inputs.formats.json_columns import as_text, converter, infer_columns, parse_object
from ray_job.inputs.formats.jsonl_splits import JsonlSplit, at_line, open_lines, sample, scan
from ray_job.inputs.formats.lines import Line
from ray_job.inputs.formats.openai import REQUEST_FIELDS, is_request, parse_request
from ray_job.inputs.source import Source, Split, first_rows, malformed
from ray_job.prompts.messages import is_chat as is_messages
from ray_job.rows import ROW_ID
from ray_job.spec import JobSpec, LimitsSpec

MESSAGES = "messages"
PARAMS = "params"
TABLE_BYTES = 8 * 2**20
_THREADS = 8


@dataclass(frozen=True)
class JsonlSource(Source):
    """Rows of JSON lines."""

    id_column: str | None
    is_chat: bool  # the OpenAI form
    max_line_bytes: int

    def read(self, split: Split, max_rows: int) -> Iterator[pa.Table]:
        """See `Source.read`."""
        assert isinstance(split, JsonlSplit)
        num_rows = 0
        with open_lines(split.location, self.max_line_bytes, split) as lines:
            wanted = islice(lines, split.num_rows)
            while batch := _take(wanted, max_rows):
                yield self._table(batch, split)
                num_rows += len(batch)
        if num_rows != split.num_rows:
            raise InputError(f"{split.location}: has changed since the job began; run it again")

    def _table(self, lines: Sequence[Line], split: JsonlSplit) -> pa.Table:
        convert = {field.name: converter(field.type) for field in self.columns}
        ids: list[Any] = []
        errors: list[RowError | None] = []
        columns: dict[str, list[Any]] = {name: [] for name in convert}
        for line in lines:
            problems: list[RowError] = []
            made = f"{split.name}#{line.number}"
            item = self._item(line, made, problems)
            ids.append(self._id(item, made, problems))
            for name, values in columns.items():
                try:
                    values.append(convert[name](item.get(name)))
                except BaseException as error:  # of this row, or it goes on from there
                    values.append(None)
                    problem = RowError.of(error, Stage.READ, made)
                    problems.append(RowError(problem.code, f"{name!r} {problem.message}", Stage.READ))
            errors.append(at_line(split.name, line, problems[0]) if problems else None)
        arrays = [pa.array(columns[field.name], field.type) for field in self.columns]
        return self.table([pa.array(ids, self.id_field.type), *arrays], errors)

    def _item(self, line: Line, made_id: str, problems: list[RowError]) -> Mapping[str, Any]:
        """The line's object; in the OpenAI form with `messages` and `params` as their texts."""
        item: dict[str, Any] = {}
        try:
            if line.content is None:
                raise malformed(f"longer than {self.max_line_bytes} bytes, 4 × limits.max_image_bytes")
            item = parse_object(line.content)
            if self.is_chat:
                messages, params = parse_request(item)
                # A column of its own with the row's parameters wins over the request's.
                item = {**item, MESSAGES: messages, **({PARAMS: params} if self.overrides_column == PARAMS else {})}
        except BaseException as error:  # of this row, or it goes on from there
            problems.append(RowError.of(error, Stage.READ, made_id))
        return item

    def _id(self, item: Mapping[str, Any], made: str, problems: list[RowError]) -> Any:
        if self.id_column is None:
            return made
        value = item.get(self.id_column)
        if self.id_field.type != pa.string():  # checked when the input was opened
            return value
        try:
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise malformed(f"must be a text that is not empty, got {as_text(value)!s:.60}")
            return as_text(value)
        except RowError as error:
            problems.append(malformed(f"{self.id_column!r}, the row's id, {error.message}"))
            return made


def open_jsonl(spec: JobSpec, found: InputFiles) -> JsonlSource:
    """Samples the files for types and counts their lines.

    Raises:
        InputError: a file cannot be read, no sampled line is an object, or ids are numbers and a line has none.
        SpecError: the spec does not fit the columns.
    """
    max_line_bytes = _max_line_bytes(spec.limits)
    with ThreadPoolExecutor(_THREADS) as pool:
        samples = [item for items in pool.map(lambda file: sample(file, max_line_bytes), found.files) for item in items]
    if not samples:
        raise InputError(f"{found.files[0].location}: none of its first lines is a JSON object; is it JSON lines?")
    columns, is_chat, roles = _choose(spec, samples)
    id_type = pa.string() if roles.id is None else columns[roles.id]
    checked_id = roles.id if id_type == pa.int64() else None
    splits: list[JsonlSplit] = []
    for file in found.files:
        splits += scan(file, max_line_bytes, checked_id)
        if spec.input.limit is not None and sum(split.num_rows for split in splits) >= spec.input.limit:
            break
    return JsonlSource(
        id_field=pa.field(ROW_ID, id_type),
        columns=roles.travelling(pa.schema(columns.items())),
        kept=tuple(pa.field(name, columns[name]) for name in roles.kept),
        image_columns=roles.images,
        image_root=found.image_root(spec.input),
        prompt=roles.prompt,
        overrides_column=roles.overrides,
        splits=first_rows(splits, spec.input.limit),
        num_ignored=found.num_ignored,
        id_column=roles.id,
        is_chat=is_chat,
        max_line_bytes=max_line_bytes,
    )


def _choose(spec: JobSpec, samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, pa.DataType], bool, Roles]:
    """The columns' types, whether the lines are OpenAI requests, and what each column is for."""
    columns = infer_columns(samples)
    prompt = spec.prompt
    is_other = prompt.template is not None or prompt.questions is not None or prompt.questions_column is not None
    is_chat = not is_other and prompt.messages_column in (None, MESSAGES) and any(map(is_request, samples))
    if is_chat:
        columns = {**columns, MESSAGES: pa.string()}
        if spec.generation.overrides_column is None:
            columns[PARAMS] = pa.string()
    found = Found(
        pa.schema(columns.items()),
        default_id="custom_id" if "custom_id" in columns else None,
        overrides_column=PARAMS if is_chat else None,
        not_kept=REQUEST_FIELDS if is_chat else (),
        chat_columns=[key for key in ("prompt",) if any(is_messages(item.get(key)) for item in samples)],
    )
    roles = choose_roles(spec, found, "input")
    lists = (*roles.images, roles.prompt.questions_column)
    texts = (roles.prompt.messages_column, roles.overrides)
    columns.update({name: pa.list_(pa.string()) for name in lists if name is not None})
    columns.update({name: pa.string() for name in texts if name is not None})
    return columns, is_chat, roles


def _max_line_bytes(limits: LimitsSpec) -> int:
    """A line may hold a few pictures of the largest allowed size as base64."""
    return 4 * limits.max_image_bytes


def _take(lines: Iterator[Line], max_rows: int) -> list[Line]:
    """The next lines: as many as a table may have rows, or fewer where they are long."""
    taken: list[Line] = []
    num_bytes = 0
    for line in lines:
        taken.append(line)
        num_bytes += line.end - line.start
        if len(taken) == max_rows or num_bytes >= TABLE_BYTES:
            break
    return taken
