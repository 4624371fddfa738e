"""One sample while it is being answered: its tokens so far, and when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ray_job.engine.interface import Vocabulary
from ray_job.rows import FinishReason, Result, Sample

_STOP_MARGIN = 8  # characters of a text's beginning that may read differently without the tokens before them


@dataclass(slots=True)
class Sequence:
    """A running sample.

    `max_len` is the longest sequence the model can hold, prompt included.
    """

    sample: Sample
    vocabulary: Vocabulary
    max_len: int
    started_s: float = field(default_factory=time.monotonic)
    token_ids: list[int] = field(default_factory=list)  # the answer so far, without the token that ended it
    num_generated: int = 0  # the token that ended it included
    finish_reason: FinishReason | None = None
    _text: str | None = None  # set when a stop string cut the answer

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

    def append(self, token_id: int) -> None:
        """Takes the next token and decides whether the answer ends with it."""
        assert not self.is_finished
        self.num_generated += 1
        if token_id in self.vocabulary.stop_ids or token_id in self.sample.params.stop_token_ids:
            self.finish_reason = FinishReason.STOP
            return
        self.token_ids.append(token_id)
        if self._cut_at_stop_string():
            self.finish_reason = FinishReason.STOP
        elif (
            self.num_generated >= self.sample.params.max_new_tokens
            or self.prompt_len + self.num_generated >= self.max_len
        ):
            self.finish_reason = FinishReason.LENGTH

    def result(self) -> Result:
        """The finished answer."""
        assert self.is_finished
        text = self._text if self._text is not None else self.vocabulary.detokenize(self.token_ids)
        return Result(
            key=self.sample.key,
            token_ids=tuple(self.token_ids),
            text=text,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_len,
            completion_tokens=self.num_generated,
            latency_ms=(time.monotonic() - self.started_s) * 1000,
        )

    def _cut_at_stop_string(self) -> bool:
        if not self.sample.params.stop or not self._may_end_with_stop_string():
            return False
        text = self.vocabulary.detokenize(self.token_ids)
        starts = [start for stop in self.sample.params.stop if (start := text.find(stop)) >= 0]
        if starts:
            self._text = text[: min(starts)]
        return bool(starts)

    def _may_end_with_stop_string(self) -> bool:
        """Looks at the end of the text alone, so that an answer's text is not made anew at every token.

        A stop string that was not there before reaches into the newest token. Tokens may have no text, so as many
        are taken as it needs; at the cut the text may differ from the whole one's, which the margin is for.
        """
        longest = max(len(stop) for stop in self.sample.params.stop)
        num_tokens = longest + _STOP_MARGIN
        while num_tokens < len(self.token_ids):
            tail = self.vocabulary.detokenize(self.token_ids[-num_tokens:])
            if len(tail) >= longest + _STOP_MARGIN:
                return any(stop in tail for stop in self.sample.params.stop)
            num_tokens *= 2
        return True
