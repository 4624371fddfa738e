"""What the footer of a part says about its rows, so that resuming and counting need not read any column.

A record is one row of the output. Its key holds the number of the input row and of the question in one 64-bit integer,
`key = position << 16 | question_index`, so that keys sort as rows do. In the footer a key takes about a byte, since
neighbouring keys differ by little and are stored as compressed differences.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_job.errors import RayJobError
from ray_job.rows import NUM_QUESTIONS, PARSED, POSITION, QUESTION_INDEX
from ray_job.spec import MAX_QUESTIONS

FOOTER_KEY = "ray_job"
_QUESTION_BITS = (MAX_QUESTIONS - 1).bit_length()
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Account:
    """The records of one part, in the order of its rows."""

    run: int  # number of the run that wrote it
    keys: Ints
    num_questions: Ints  # how many questions the record's row has
    attempts: Ints  # how often the record was tried
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error_codes: dict[str, int] = field(default_factory=dict)
    unparsed: dict[str, int] = field(default_factory=dict)  # answers without a value in `parsed`, by finish_reason
    written_s: float = 0.0  # Unix time; unlike the file's own it survives copying

    @classmethod
    def of_results(cls, table: pa.Table, run: int) -> Account:
        """The account of results (`rows.result_schema`)."""
        questions = QUESTION_INDEX in table.column_names
        return cls(
            run=run,
            keys=keys(_ints(table, POSITION), _ints(table, QUESTION_INDEX) if questions else None),
            num_questions=_ints(table, NUM_QUESTIONS),
            attempts=_ints(table, "attempts"),
            written_s=round(time.time(), 3),
            **sums(table),
        )

    def to_footer(self) -> str:
        """JSON with packed arrays."""
        arrays = {name: _pack(getattr(self, name)) for name in ("keys", "num_questions", "attempts")}
        return json.dumps({**self.__dict__, **arrays})

    @classmethod
    def of_footer(cls, text: bytes) -> Self:
        """Reads `to_footer` back.

        Raises:
            ValueError: the text is something else, or damaged.
        """
        fields: dict[str, Any] = json.loads(text)
        try:
            arrays = {name: _unpack(fields[name]) for name in ("keys", "num_questions", "attempts")}
            if len({len(array) for array in arrays.values()}) > 1:
                raise ValueError("its arrays differ in length")
            return cls(**{**fields, **arrays})
        except (KeyError, TypeError, zlib.error) as error:
            raise ValueError(f"not an account: {error}") from None

    @property
    def positions(self) -> Ints:
        """The number of each record's input row."""
        return positions_of(self.keys)


def sums(table: pa.Table) -> dict[str, Any]:
    """What an account says of all its records together: those of its fields, by name."""
    usage, errors = table.column("usage"), table.column("error").to_pylist()
    return {
        "prompt_tokens": pc.sum(pc.struct_field(usage, [0])).as_py() or 0,
        "completion_tokens": pc.sum(pc.struct_field(usage, [1])).as_py() or 0,
        "error_codes": dict(Counter(error["code"] for error in errors if error is not None)),
        "unparsed": _unparsed(table),
    }


def _unparsed(table: pa.Table) -> dict[str, int]:
    if PARSED not in table.column_names:
        return {}
    reasons = table.column("finish_reason").filter(table.column(PARSED).is_null())
    return dict(Counter(reasons.drop_null().to_pylist()))  # a failed row has none


def keys(positions: Ints, questions: Ints | None) -> Ints:
    """Joins the numbers of rows and questions.

    Raises:
        RayJobError: a row has more questions than fit.
    """
    if questions is None:
        return positions << _QUESTION_BITS
    if len(questions) and questions.max() >= MAX_QUESTIONS:
        raise RayJobError(f"a row has more than {MAX_QUESTIONS} questions; split it")
    return positions << _QUESTION_BITS | questions


def first_keys(positions: Ints) -> Ints:
    """The least key of each row."""
    return positions << _QUESTION_BITS


def positions_of(keys: Ints) -> Ints:
    """The rows' numbers in keys."""
    return keys >> _QUESTION_BITS


def questions_of(keys: Ints) -> Ints:
    """The questions' numbers in keys."""
    return keys & (MAX_QUESTIONS - 1)


def _ints(table: pa.Table, column: str) -> Ints:
    return np.asarray(table.column(column).to_numpy(), dtype=np.int64)


def _pack(values: Ints) -> str:
    return base64.b64encode(zlib.compress(np.diff(values, prepend=0).tobytes(), level=1)).decode()


def _unpack(text: str) -> Ints:
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.int64))
