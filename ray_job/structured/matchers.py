"""Follows answers through their forms, token by token: the engine's `Forms` over llguidance.

An answer is what decoding makes of its tokens, and decoding may drop the space it begins with. So the first token comes
from two grammars where it does: the form's, for tokens that write all they are, and a space with the form behind it,
for tokens whose space is dropped. The first token says which of them goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt

from ray_job.errors import ErrorCode, ModelError, RowError, Stage
from ray_job.spec import StructuredOutputs
from ray_job.structured.closing import Closing, Endings, growth_of, text_growth_of
from ray_job.structured.grammar import FormError, form_key, grammar_of, limits, optional_grammars
from ray_job.structured.vocabulary import WrittenIds, has, mask_of, readable, written_ids

_MOST_KEPT = 64  # compiled forms
_LONGEST_WAY = 2000  # tokens that the shortest answer may need
_SILENT = 0


class TokenizerForms:
    """The forms of a model's answers; its tokenizer is read when the first form comes, or by `load`.

    Args:
        tokenizer_json: the tokenizer, as the content of a tokenizer.json; asked for once.
        num_ids: of the model's logits; its tokenizer may have fewer.
        stop_ids: all ids that end an answer.
        decode: ids to an answer's text.
        threads: that compute masks; by default most of the machine's.
    """

    def __init__(
        self,
        tokenizer_json: Callable[[], str],
        num_ids: int,
        stop_ids: Collection[int],
        decode: Callable[[Sequence[int]], str],
        threads: int | None = None,
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._num_ids = num_ids
        self._stop_ids = frozenset(stop_ids)
        self._decode = decode
        self._threads = threads
        self._kept: OrderedDict[str, FormMatcher] = OrderedDict()  # matchers without a token, by their forms
        self._ways: OrderedDict[str, tuple[list[int] | None, int]] = OrderedDict()  # to close_at_limit
        self._lock = threading.Lock()

    @property
    def num_words(self) -> int:
        """W: 32-bit words of a mask over the model's ids."""
        return -(-self._num_ids // 32)

    def load(self, form: StructuredOutputs) -> None:
        """Reads the tokenizer and compiles a job's form now. Raises ModelError where it cannot be followed."""
        try:
            with self._lock:
                self._of(form)
        except RowError as error:
            raise ModelError(f"generation.{error.message}") from None

    def matcher(self, form: StructuredOutputs, max_tokens: int) -> FormMatcher:
        """Of an answer that has no token yet and may have `max_tokens`.

        Raises:
            RowError: PARAMS_INVALID, what is wrong with the form.
        """
        with self._lock:
            matcher = self._of(form).copy()
            if form.close_at_limit:
                matcher.closing = self._closing(form, matcher, max_tokens)
            return matcher

    def fill_masks(self, matchers: Sequence[Any], masks_BW: npt.NDArray[np.int32]) -> None:
        """Sets the bits of the tokens that each matcher allows next, and clears the others.

        Args:
            matchers: made by `matcher`; tokens that end an answer are among those they allow.
            masks_BW: a row for each; of token t, bit t mod 32 of word t // 32.

        Raises:
            RuntimeError: one is broken, and by what.
        """
        parts = [part for matcher in matchers for part in matcher.parts]
        words_PW = np.zeros((len(parts), -(-self._tokenizer.vocab_size // 32)), np.int32)
        if len(parts) == 1:
            parts[0].unsafe_compute_mask_ptr(words_PW.ctypes.data, words_PW.nbytes)
        elif parts:
            numbered = [(part, number) for number, part in enumerate(parts)]
            self._executor.unsafe_compute_mask_ptr(numbered, words_PW.ctypes.data, words_PW.shape[1] * 4, len(parts))
        place = 0
        for matcher, mask_W in zip(matchers, masks_BW, strict=True):
            stop = place + len(matcher.parts)
            matcher.write_mask(words_PW[place:stop, : self.num_words], mask_W)
            place = stop

    def _of(self, form: StructuredOutputs) -> FormMatcher:
        """The one that is kept, before its first token."""
        key = form_key(form)
        if key not in self._kept:
            self._kept[key] = self._compiled(form)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _compiled(self, form: StructuredOutputs) -> FormMatcher:
        try:
            grammar = grammar_of(form)
            parts = [self._parser(grammar)]
            if len(self._ids.of_first) > 1:
                parts.append(self._parser(_behind_space(grammar)))
            matcher = FormMatcher(parts, self._ids, self._stop_ids)
            self.fill_masks([matcher], np.empty((1, self.num_words), np.int32))  # what it breaks of is known now
        except FormError as error:
            raise RowError(ErrorCode.PARAMS_INVALID, f"structured_outputs.{error}", Stage.GENERATE) from None
        except (ValueError, RuntimeError) as error:
            text = f"structured_outputs: the form cannot be followed with this model's tokenizer: {error}"
            raise RowError(ErrorCode.PARAMS_INVALID, text, Stage.GENERATE) from None
        return matcher

    def _closing(self, form: StructuredOutputs, matcher: FormMatcher, max_tokens: int) -> Closing:
        key = form_key(form)
        if key not in self._ways:
            parts = [len(self._endings.way(part, _LONGEST_WAY) or []) for part in self._parts(form)]
            self._ways[key] = self._endings.way(matcher, _LONGEST_WAY), max(parts, default=0)
            if len(self._ways) > _MOST_KEPT:
                self._ways.popitem(last=False)
        way, longest_part = self._ways[key]
        if way is None or len(way) > max_tokens:
            shown = f"about {len(way)}" if way is not None else f"more than {_LONGEST_WAY}"
            text = (
                f"structured_outputs: an answer of this form needs {shown} tokens, and max_new_tokens is {max_tokens}"
            )
            raise RowError(ErrorCode.PARAMS_INVALID, f"{text}; raise it, or ask for less", Stage.GENERATE)
        growth, text_growth = growth_of(form, longest_part), text_growth_of(form)
        return Closing(self._endings, max_tokens, growth, text_growth, way)

    def _parts(self, form: StructuredOutputs) -> Iterator[FormMatcher]:
        """Matchers of what an answer need not hold, each part alone."""
        for grammar in optional_grammars(form):
            with contextlib.suppress(ValueError):  # what cannot be alone, such as a part that nothing conforms to
                yield FormMatcher([self._parser(grammar)], self._ids, self._stop_ids)

    def _parser(self, grammar: str) -> llguidance.LLMatcher:
        parser = llguidance.LLMatcher(self._tokenizer, grammar, log_level=_SILENT, limits=limits())
        if parser.is_error():
            raise ValueError(_first_line(parser.get_error()))
        return parser

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        # It takes no fewer ids than it has tokens.
        text, stop_ids = readable(self._tokenizer_json()), sorted(self._stop_ids)
        least = llguidance.LLTokenizer(text, eos_token=stop_ids).vocab_size
        return llguidance.LLTokenizer(text, n_vocab=max(least, self._num_ids), eos_token=stop_ids)

    @cached_property
    def _ids(self) -> WrittenIds:
        return written_ids(self._tokenizer, self._num_ids, self._stop_ids, self._decode)

    @cached_property
    def _endings(self) -> Endings:
        def allowed(matcher: Any) -> npt.NDArray[np.int32]:
            mask_W = np.empty(self.num_words, np.int32)
            self.fill_masks([matcher], mask_W[None])
            return mask_W

        return Endings(self._ids.by_bytes, self._stop_ids, allowed)

    @cached_property
    def _executor(self) -> llguidance.LLExecutor:
        return llguidance.LLExecutor(self._threads)


class FormMatcher:
    """One answer's place in its form."""

    __slots__ = ("_ids", "_is_over", "_stop_ids", "closing", "parts")

    def __init__(self, parts: list[llguidance.LLMatcher], ids: WrittenIds, stop_ids: frozenset[int]) -> None:
        self.parts = parts  # of the first token: the form, and where spaces are dropped the form behind a space
        self._ids = ids
        self._stop_ids = stop_ids
        self._is_over = False
        self.closing: Closing | None = None

    def copy(self) -> FormMatcher:
        """Another answer at the same place, without a limit."""
        return FormMatcher([part.deep_copy() for part in self.parts], self._ids, self._stop_ids)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow: the answer ends here, without asking the model."""
        return self._is_over or (self.parts[0].is_stopped() and not self.parts[0].is_error())

    def ends_by(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens end the answer from here."""
        ends = token_ids[-1:] and token_ids[-1] in self._stop_ids
        text_ids = list(token_ids[:-1] if ends else token_ids)
        after, num_first = self.copy(), min(len(self.parts) - 1, len(text_ids))
        for token_id in text_ids[:num_first]:  # it says which part goes on
            after.take(token_id)
        part, rest = after.parts[0], text_ids[num_first:]
        if part.try_consume_tokens(rest) < len(rest):
            return False
        return part.is_accepting() if ends else after.is_complete

    @property
    def may_end(self) -> bool:
        """Whether the answer is whole as it is."""
        return self.parts[0].is_accepting()

    def forced_ids(self) -> list[int]:
        """Tokens that come next whatever the model says; they are not taken yet. Empty where there is a choice.

        The first token of an answer whose space would be dropped is one.
        """
        if len(self.parts) > 1 or self.is_complete:
            return []
        return self._forced_of(self.parts[0])

    def take(self, token_id: int) -> None:
        """Goes on by a token, the one that ends the answer included. Raises ValueError for one that is not allowed."""
        if token_id in self._stop_ids:
            if not self.may_end:
                raise ValueError(f"token {token_id} ends the answer before its form is whole")
            self._is_over = True
            return
        if self.closing is not None:
            self.closing.took(token_id)
        ids = self._ids.of_first if len(self.parts) > 1 else (self._ids.anywhere_W,)
        self.parts = [part for part, ids_W in zip(self.parts, ids, strict=True) if has(ids_W, token_id)]
        if not self.parts:
            raise ValueError(f"token {token_id} writes no text that a form allows")
        if not self.parts[0].consume_token(token_id):
            raise ValueError(_first_line(self.parts[0].get_error()))

    def _forced_of(self, part: llguidance.LLMatcher) -> list[int]:
        forced = part.compute_ff_tokens()
        written = list(itertools.takewhile(self._is_text, forced))
        if written or not forced:
            return written
        # What comes next spells a special token, which it would become in the tokenizer's own form.
        token_id = self._ids.longest_at_start_of(part.compute_ff_bytes())
        return [] if token_id is None else [token_id]

    def _is_text(self, token_id: int) -> bool:
        return token_id not in self._stop_ids and has(self._ids.anywhere_W, token_id)

    def write_mask(self, words_PW: npt.NDArray[np.int32], mask_W: npt.NDArray[np.int32]) -> None:
        """The mask of the next token, from what each of its parts says. Raises RuntimeError where it is broken."""
        for part in self.parts:
            if part.is_error():
                raise RuntimeError(_first_line(part.get_error()))
        if len(self.parts) == 1:
            mask_W[:] = words_PW[0] & self._ids.anywhere_W
        else:
            mask_W[:] = 0
            for part, words_W, ids_W in zip(self.parts, words_PW, self._ids.of_first, strict=True):
                forced = self._forced_of(part)[:1]  # of which the words know the tokenizer's own form alone
                mask_W |= (mask_of(forced, len(mask_W)) if forced else words_W) & ids_W
        if not mask_W.any():
            raise RuntimeError("no token of the model goes on with the form")
        if self.closing is not None:
            self.closing.restrict(self, mask_W)


def _behind_space(grammar: str) -> str:
    form = json.loads(grammar)["grammars"][0]
    return json.dumps({"grammars": [{"lark_grammar": 'start: " " @form'}, {**form, "name": "form"}]})


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "unknown reason"
