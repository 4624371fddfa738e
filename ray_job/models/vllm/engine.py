"""vLLM's engine as an `Engine`: it schedules, computes and chooses tokens, and when an answer ends is decided here.

A row's tokens go through the same `Sequence` that the other engines use, so stop strings, lengths, token counts and
reasons mean the same; a row that it ends is aborted in vLLM. Rows wait here and enter as slots fall free, so that a
row's deadline counts from when it runs. What vLLM refuses is that row's error; a step that fails is not one row's
fault, and whoever steps the engine ends the process (`stages/poison.py` then finds the row).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.llm_engine import LLMEngine

from ray_job.engine.duplicates import Duplicates
from ray_job.engine.interface import Slots, Vocabulary
from ray_job.engine.memory import is_fatal, is_out_of_memory
from ray_job.engine.sequence import Sequence
from ray_job.engine.stats import EngineStats, Meter
from ray_job.errors import ErrorCode, RowError, Stage, first_line
from ray_job.models.vllm.forms import drops_first_space, form_arguments
from ray_job.models.vllm.prompts import PromptFormat
from ray_job.models.vllm.sampling import sampling_arguments
from ray_job.rows import Result, Sample
from ray_job.spec import GenerationParams

_REMEMBERED_ANSWERS = 1024


class VllmEngine:
    """See `Engine`.

    Args:
        llm: vLLM's engine, with nothing in it; nobody else uses it.
        vocabulary: of the model's tokenizer.
        prompts: how the model's pictures are handed over.
        max_slots: most rows that run together.
        row_deadline_s: a row that has run for longer fails.
    """

    def __init__(
        self,
        llm: LLMEngine,
        vocabulary: Vocabulary,
        prompts: PromptFormat,
        *,
        max_slots: int,
        row_deadline_s: float | None = None,
    ) -> None:
        self._llm = llm
        self._vocabulary = vocabulary
        self._prompts = prompts
        self._max_slots = max_slots
        self._row_deadline_s = row_deadline_s
        self._max_len = int(llm.model_config.max_model_len)
        self._numbers = itertools.count()  # of requests
        self._waiting: deque[tuple[Sample, float]] = deque()  # and when they came
        self._running: dict[str, _RunningRow] = {}  # by vLLM's request
        self._duplicates = Duplicates(_REMEMBERED_ANSWERS)
        self._done: list[Result] = []  # since `step` last returned
        self._meter = Meter()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._done)

    def add(self, sample: Sample) -> None:
        remembered = self._duplicates.remembered(sample)
        if remembered is not None:
            self._done.append(remembered)
        elif self._duplicates.leads(sample):
            self._waiting.append((sample, time.monotonic()))

    def step(self) -> list[Result]:
        """Fills free slots and runs one step of vLLM.

        Raises:
            Exception: whatever ends vLLM's engine: it cannot be used any more.
        """
        if self._row_deadline_s is not None:
            self._fail_overdue(self._row_deadline_s)
        with self._meter.time("schedule_s"):
            while self._waiting and len(self._running) < self._max_slots:
                self._admit(*self._waiting.popleft())
        if self._running:
            self._run()
        done, self._done = self._done, []
        return done

    def stats(self) -> EngineStats:
        """What was done so far. Pictures are encoded in the steps that read prompts, and not counted."""
        cache = self._llm.vllm_config.cache_config
        max_tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        return self._meter.stats(
            duplicate_rows=self._duplicates.num_found, max_tokens=max_tokens, token_ceiling=max_tokens
        )

    def slots(self) -> Slots:
        """See `Engine.slots`."""
        return Slots(len(self._running), self._max_slots)

    def _admit(self, sample: Sample, arrived_s: float) -> None:
        """Hands a row to vLLM; one that it does not take is an error."""
        request = str(next(self._numbers))
        try:
            self._check_len(len(sample.input_ids))  # undone pictures may still grow
            prompt = self._rendered(sample)
            self._check_len(len(prompt["prompt_token_ids"]))
            whole = replace(sample, input_ids=prompt["prompt_token_ids"])
            row = _RunningRow(sample, Sequence(whole, self._vocabulary, self._max_len, started_s=arrived_s))
            self._llm.add_request(request, prompt, self._sampling_params(sample.params))
        except Exception as error:
            if is_fatal(error):
                raise
            self._llm.abort_request([request])
            self._llm.reset_mm_cache()  # else a picture that was prepared and not sent would count as sent
            self._report(sample, Result(key=sample.key, error=_row_error(error)))
            return
        self._running[request] = row

    def _sampling_params(self, params: GenerationParams) -> SamplingParams:
        """Raises RowError for a form that cannot be held to."""
        form, held = params.structured_outputs, None
        if form is not None:
            held = StructuredOutputsParams(**form_arguments(form, drops_space=self._drops_space))
        return SamplingParams(
            **sampling_arguments(params, self._vocabulary.stop_ids),
            structured_outputs=held,
            output_kind=RequestOutputKind.DELTA,
        )

    @cached_property
    def _drops_space(self) -> bool:
        """Whether decoding an answer leaves out the space that it begins with."""
        return drops_first_space(self._vocabulary.detokenize, self._llm.model_config.get_vocab_size())

    def rendered_ids(self, sample: Sample) -> list[int]:
        """What vLLM makes of a prompt, pictures' tokens included. The engine must have no work."""
        try:
            ids: list[int] = self._rendered(sample)["prompt_token_ids"]
        finally:
            self._llm.reset_mm_cache()
        return ids

    def _rendered(self, sample: Sample) -> Mapping[str, Any]:
        """The prompt as vLLM's engine takes it: processed pictures, and token ids with all their placeholders."""
        prompt = parse_model_prompt(self._llm.model_config, self._prompts.prompt(sample))
        rendered: list[Mapping[str, Any]] = self._llm.renderer.render_cmpl([prompt])
        return rendered[0]

    def _check_len(self, num_tokens: int) -> None:
        """Raises RowError for a prompt that leaves no room for an answer."""
        if num_tokens >= self._max_len:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"{num_tokens} tokens, and vLLM runs this model with {self._max_len}, the answer included; "
                "shorten the prompt, or raise max_model_len in batching.engine_options",
                Stage.GENERATE,
            )

    def _run(self) -> None:
        """One step of vLLM, and what came out of it."""
        reads_prompts = any(not row.has_tokens for row in self._running.values())
        self._meter.add(steps=1, decode_steps=int(not reads_prompts))
        if self._waiting:
            self._meter.add(waiting_slots=self._max_slots, waiting_slots_used=len(self._running))
        with self._meter.time("prefill_s" if reads_prompts else "decode_s"):
            outputs = self._llm.step()
        with self._meter.time("schedule_s"):
            for output in outputs:
                row = self._running.get(output.request_id)
                if row is not None:
                    self._take(output, row)

    def _take(self, output: RequestOutput, row: _RunningRow) -> None:
        """A row's new tokens; it leaves where they end its answer."""
        self._count(output, row)
        row.has_tokens = True
        [completion] = output.outputs
        answer = row.answer
        try:
            for token in completion.token_ids:
                if not answer.is_finished:
                    answer.append(token)
            if answer.is_finished:
                self._meter.add(rows=1, prompt_tokens=answer.prompt_len)
                self._leave(output.request_id, row, answer.result(), is_over=output.finished)
            elif output.finished:
                raise RuntimeError(f"vLLM ended the row early: {completion.finish_reason} {completion.stop_reason}")
        except Exception as error:  # of the detokeniser, too
            failed = Result(key=row.sample.key, error=_row_error(error))
            self._leave(output.request_id, row, failed, is_over=output.finished)

    def _count(self, output: RequestOutput, row: _RunningRow) -> None:
        num_tokens = len(output.outputs[0].token_ids)
        if row.has_tokens:
            self._meter.add(decode_tokens=num_tokens)
            return
        reused = output.num_cached_tokens or 0
        self._meter.add(prefix_tokens_reused=reused, prefill_tokens=row.answer.prompt_len - reused)

    def _leave(self, request: str, row: _RunningRow, result: Result, *, is_over: bool) -> None:
        """Reports a row; `is_over` tells that vLLM has let go of it already."""
        del self._running[request]
        if not is_over:
            self._llm.abort_request([request])
        self._report(row.sample, result)

    def _fail_overdue(self, deadline_s: float) -> None:
        """Ends rows that have run for too long."""
        oldest_s = time.monotonic() - deadline_s
        for request, row in list(self._running.items()):
            if row.began_s < oldest_s:
                overdue = RowError.overdue(deadline_s, Stage.GENERATE)
                self._leave(request, row, Result(key=row.sample.key, error=overdue), is_over=False)

    def _report(self, sample: Sample, result: Result) -> None:
        self._done.extend(self._duplicates.fan_out(sample, result))


@dataclass(slots=True, eq=False)
class _RunningRow:
    """A row in vLLM."""

    sample: Sample
    answer: Sequence
    has_tokens: bool = False  # of its answer
    began_s: float = field(default_factory=time.monotonic)


def _row_error(error: Exception) -> RowError:
    if isinstance(error, RowError):
        return error
    if is_out_of_memory(error):
        return RowError(ErrorCode.OUT_OF_MEMORY, f"vLLM has no memory for the row: {first_line(error)}", Stage.GENERATE)
    text = f"vLLM refuses the row: {type(error).__name__}: {first_line(error)}"
    return RowError(ErrorCode.GENERATION_FAILED, text, Stage.GENERATE)
