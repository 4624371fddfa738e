"""`documents.pages`: which pages it chooses, and what is no choice."""

from __future__ import annotations

import pytest

from ray_job.errors import SpecError
from ray_job.spec import DocumentsSpec, JobSpec


@pytest.mark.parametrize(
    ("pages", "num_pages", "chosen"),
    [
        (None, 3, [1, 2, 3]),
        ("1-3,-1", 9, [1, 2, 3, 9]),
        ("1-3, -1", 2, [1, 2]),
        ("-1", 4, [4]),
        ("-3--2", 5, [3, 4]),
        ("3-", 5, [3, 4, 5]),
        ("2--2", 5, [2, 3, 4]),
        ("4,2,2-3", 5, [2, 3, 4]),
        (2, 5, [2]),
        ("7-9", 5, []),
        ("-9", 5, []),
        ("-9-2", 3, [1, 2]),
    ],
)
def test_pages_are_chosen_in_order_and_once(pages: str | int | None, num_pages: int, chosen: list[int]) -> None:
    assert list(DocumentsSpec.model_validate({"pages": pages}).chosen(num_pages)) == chosen


@pytest.mark.parametrize("pages", ["0", "1-0", "3-1", "-1--3", "a", "1,,2", "", "1-2-3", True])
def test_what_is_no_choice_is_refused_where_the_spec_is_read(pages: object) -> None:
    with pytest.raises(SpecError, match=r"documents\.pages"):
        JobSpec.from_dict({"input": {"path": "x"}, "output": {"path": "y"}, "documents": {"pages": pages}})


def test_how_pages_are_put_together_is_in_the_fingerprint_and_passwords_are_not() -> None:
    data = {"input": {"path": "x"}, "output": {"path": "y"}}
    fields = [
        JobSpec.from_dict({**data, "documents": documents}).answer_fields()
        for documents in ({}, {"pages_per_row": 2}, {"password_env": "HOME", "deadline_s": 3})
    ]
    assert fields[0] != fields[1]
    assert fields[0] == fields[2]
