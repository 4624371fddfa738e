"""How much of a job is done: for progress, for the limits on failed rows, and for the report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from ray_job.errors import TooManyRowErrors
from ray_job.output.ledger import Ledger
from ray_job.output.parts import Receipt
from ray_job.rows import FinishReason
from ray_job.spec import LimitsSpec


@dataclass
class Totals:
    """What the committed parts hold so far, including those of earlier runs."""

    rows: int = 0  # input rows, each once it has a record for every question
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    parts: int = 0
    error_codes: dict[str, int] = field(default_factory=dict)  # most frequent first
    unparsed: dict[str, int] = field(default_factory=dict)  # answers without a value in `parsed`, by finish_reason

    @classmethod
    def of_ledger(cls, ledger: Ledger) -> Self:
        """Counts what the parts' footers name."""
        is_answer = ledger.is_answer[ledger.counts]
        return cls(
            rows=int(np.count_nonzero(ledger.rows().is_whole)),
            answered=int(np.count_nonzero(is_answer)),
            failed=int(np.count_nonzero(~is_answer)),
            prompt_tokens=sum(part.account.prompt_tokens for part in ledger.parts),
            completion_tokens=sum(part.account.completion_tokens for part in ledger.parts),
            parts=len({part.location.path.rpartition("/")[2] for part in ledger.parts}),
            error_codes=ledger.error_codes(),
            unparsed=dict(sum((Counter(part.account.unparsed) for part in ledger.parts), Counter())),
        )

    def start(self, ledger: Ledger, num_rows: int, retry_failed: bool) -> None:
        """Starts from what earlier runs committed: `num_rows` rows are done; failed rows that are retried are not."""
        found = self.of_ledger(ledger)
        self.rows, self.answered, self.parts = num_rows, found.answered, found.parts
        self.prompt_tokens, self.completion_tokens = found.prompt_tokens, found.completion_tokens
        self.unparsed = found.unparsed
        if not retry_failed:
            self.failed, self.error_codes = found.failed, found.error_codes

    def add(self, receipt: Receipt, num_completed: int = 0) -> None:
        """Counts one more part, and the rows it makes whole together with parts before it."""
        self.rows += receipt.rows + num_completed
        self.answered += receipt.answered
        self.failed += receipt.failed
        self.prompt_tokens += receipt.prompt_tokens
        self.completion_tokens += receipt.completion_tokens
        self.parts += 1
        counts = Counter(self.error_codes) + Counter(receipt.error_codes)
        self.error_codes = dict(counts.most_common())
        self.unparsed = dict(Counter(self.unparsed) + Counter(receipt.unparsed))

    def unparsed_lines(self) -> list[tuple[str, str]]:
        """How many answers have no value in `parsed`, why, and what to do about it."""
        cut, others = self.unparsed.get(str(FinishReason.LENGTH), 0), self.unparsed.get(str(FinishReason.STOP), 0)
        lines = []
        if cut:
            advice = "raise generation.max_new_tokens, or set structured_outputs.close_at_limit"
            lines.append(("  cut", f"{cut}, so not valid JSON and without `parsed`: {advice}"))
        if others:
            lines.append(("  not parsed", f"{others}: their text is not JSON of the type of `parsed`"))
        return lines

    def check(self, limits: LimitsSpec, num_rows: int) -> None:
        """Ends a job in which too many rows fail.

        Raises:
            TooManyRowErrors: more rows failed than the limits allow. A rate is of all rows of the input, so that a few
                errors at the start of a long job do not end it.
        """
        codes = ", ".join(f"{count} {code}" for code, count in self.error_codes.items())
        if limits.max_errors is not None and self.failed > limits.max_errors:
            raise TooManyRowErrors(f"{self.failed} rows failed ({codes}); limits.max_errors is {limits.max_errors}")
        rate, num_all = limits.max_error_rate, max(num_rows, self.answered + self.failed)
        if rate is not None and self.failed > rate * num_all:
            what = "rows" if num_all == num_rows else "questions"
            raise TooManyRowErrors(
                f"{self.failed} of {num_all} {what} failed ({codes}); limits.max_error_rate is {rate}"
            )
