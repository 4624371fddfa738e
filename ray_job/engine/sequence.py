"""One sample while it is being answered: its tokens so far, and when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ray_job.engine.interface import Matcher, Vocabulary
from ray_job.engine.stops import StopSearch, cut
from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.rows import FinishReason, Result, Sample


@dataclass(slots=True)
class Sequence:
    """A running sample.

    `max_len` is the longest sequence the model can hold, prompt included. Tokens that an answer's form leaves no choice
    about are taken without asking the model, so its answer may grow by several tokens at once.
    """

    sample: Sample
    vocabulary: Vocabulary
    max_len: int
    started_s: float = field(default_factory=time.monotonic)
    token_ids: list[int] = field(default_factory=list)  # the answer so far, without the token that ended it
    num_generated: int = 0  # the token that ended it included
    num_forced: int = 0  # of those, taken without asking the model
    matcher: Matcher | None = None  # of an answer that has a form, once it has begun
    finish_reason: FinishReason | None = None
    _text: str | None = None  # of the finished answer
    _stop_search: StopSearch | None = None  # made at the first token, where there are stop strings

    @property
    def prompt_len(self) -> int:
        return len(self.sample.input_ids)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def needs_seen_ids(self) -> bool:
        """Whether the sampler must know which tokens were seen."""
        return self.sample.params.repetition_penalty != 1.0

    @property
    def all_ids(self) -> list[int]:
        """Prompt and answer so far; what the model has seen or will see next."""
        return [*self.sample.input_ids, *self.token_ids]

    @property
    def text_ids(self) -> list[int]:
        """Prompt and answer so far without picture placeholders, for the repetition penalty."""
        return [token for token in self.all_ids if token >= 0]

    @property
    def max_tokens(self) -> int:
        """The longest answer, the token that ends it included."""
        return max(1, min(self.sample.params.max_new_tokens, self.max_len - self.prompt_len))

    def begin(self) -> None:
        """Takes the tokens that the answer's form begins with. Called again, it does nothing.

        Raises:
            RowError: the form is not valid, or nothing here knows forms.
        """
        form = self.sample.params.structured_outputs
        if form is None or self.matcher is not None:
            return
        if self.vocabulary.forms is None:
            message = "generation.structured_outputs: this model's answers cannot be given a form; remove it"
            raise RowError(ErrorCode.PARAMS_INVALID, message, Stage.GENERATE)
        self.matcher = self.vocabulary.forms.matcher(form, self.max_tokens)
        if self.matcher.is_complete:
            self._finish(FinishReason.STOP)
        self._take_forced(self.matcher)

    def append(self, token_id: int) -> None:
        """Takes the next token, and those that its form leaves no choice about; decides whether the answer ends.

        Raises:
            ValueError: the answer's form does not allow the token.
        """
        assert not self.is_finished
        self._take(token_id)
        if self.matcher is not None:
            self._take_forced(self.matcher)

    def result(self) -> Result:
        """The finished answer."""
        assert self.is_finished
        return Result(
            key=self.sample.key,
            token_ids=tuple(self.token_ids),
            text=self._text,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_len,
            completion_tokens=self.num_generated,
            latency_ms=(time.monotonic() - self.started_s) * 1000,
        )

    def _take(self, token_id: int) -> None:
        self.num_generated += 1
        is_end = token_id in self.vocabulary.stop_ids
        if not is_end and token_id in self.sample.params.stop_token_ids:
            self._finish(FinishReason.STOP)  # whatever the form says of it
            return
        if self.matcher is not None:
            self.matcher.take(token_id)
        if is_end:
            self._finish(FinishReason.STOP)
            return
        self.token_ids.append(token_id)
        if self._has_stop_string(token_id) or (self.matcher is not None and self.matcher.is_complete):
            self._finish(FinishReason.STOP)
        elif self.num_generated >= self.max_tokens:
            self._finish(FinishReason.LENGTH)

    def _take_forced(self, matcher: Matcher) -> None:
        while not self.is_finished and (forced := matcher.forced_ids()):
            for token_id in forced:
                if not self.is_finished:
                    self._take(token_id)
                    self.num_forced += 1

    def _has_stop_string(self, token_id: int) -> bool:
        stops = self.sample.params.stop
        if not stops:
            return False
        if self._stop_search is None:
            self._stop_search = StopSearch(stops, self.vocabulary.detokenize)
        return self._stop_search.ends_with(token_id) and cut(self._whole_text(), stops) is not None

    def _finish(self, reason: FinishReason) -> None:
        """Settles the text: what a stop string begins is cut off, whatever ended the answer."""
        text = self._whole_text()
        before_stop = cut(text, self.sample.params.stop)
        self._text = text if before_stop is None else before_stop
        self.finish_reason = reason if before_stop is None else FinishReason.STOP

    def _whole_text(self) -> str:
        return self.vocabulary.detokenize(self.token_ids)
