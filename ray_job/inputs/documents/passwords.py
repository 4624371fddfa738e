"""The passwords that documents may open with. They are carried to the workers, and shown nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Self

from ray_job.errors import ErrorCode, RowError, SpecError
from ray_job.spec import DocumentsSpec


@dataclass(frozen=True)
class Passwords:
    """The job's own, if it has one; a row may have another."""

    _common: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, spec: DocumentsSpec) -> Self:
        """From the environment of the process that starts the job; none where the variable is not set."""
        return cls(None if spec.password_env is None else os.environ.get(spec.password_env))

    @staticmethod
    def check(spec: DocumentsSpec) -> None:
        """That the variable is set, before a job relies on it.

        Raises:
            SpecError: it is not.
        """
        if spec.password_env is not None and spec.password_env not in os.environ:
            raise SpecError([f"documents.password_env: there is no environment variable {spec.password_env!r}; set it"])

    def to_try(self, own: Any = None) -> list[str | None]:
        """The row's, then the job's, then None: many a document is encrypted and opens without a password.

        Raises:
            RowError: ROW_MALFORMED: the row's is no text.
        """
        if own is not None and not isinstance(own, str):
            raise RowError(ErrorCode.ROW_MALFORMED, f"a document's password is a text, not {type(own).__name__}")
        return [*(each for each in (own, self._common) if each), None]
