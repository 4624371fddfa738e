"""What a job would do, from headers alone: no model, no Ray, and no picture decoded that has its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ray_job.engine.batching import DEFAULT_MAX_TOKENS, SampleSize, num_batches
from ray_job.inputs.documents.source import num_documents
from ray_job.inputs.skipped import NOTHING, Skipped
from ray_job.inputs.source import iter_tables
from ray_job.inputs.video.source import num_videos
from ray_job.models.loading import load_processor
from ray_job.rows import ROW_ID
from ray_job.spec import GenerationParams, JobSpec
from ray_job.stages.literal_tags import LiteralTags
from ray_job.stages.open_job import open_job

_EDGES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_BAR_WIDTH = 40


@dataclass
class Plan:
    """A job before it runs. Tokens are of prompts, pictures included; bad rows have none."""

    rows: int = 0
    skipped: Skipped = NOTHING  # files of the input that hold no rows
    samples: int = 0
    pictures: int = 0
    distinct_pictures: int = 0
    documents: int = 0  # those that can be opened
    videos: int = 0  # likewise
    bad_samples: dict[str, int] = field(default_factory=dict)  # by error code, as far as headers tell
    examples: dict[str, str] = field(default_factory=dict)  # one message for each error code
    image_tokens: int = 0
    image_tokens_from: str = "sizes"  # or "prepared pictures", where a picture's tokens do not follow from its size
    prompt_tokens: list[int] = field(default_factory=list)  # of each good sample
    max_new_tokens: int = 0  # in all
    batches: int = 0  # as the static engine makes them; the continuous one runs as many rows at once
    parts: int = 0
    renamed: dict[str, str] = field(default_factory=dict)  # kept columns, and what the output calls them instead
    hint: str | None = None  # what the user may have meant otherwise

    def to_dict(self) -> dict[str, Any]:
        """JSON of the plan, the tokens as a histogram."""
        own = {"prompt_tokens": sum(self.prompt_tokens), "skipped": self.skipped.to_dict()}
        return {**asdict(self), **own, "histogram": self.histogram()}

    def histogram(self) -> dict[str, int]:
        """How many samples have how many prompt tokens."""
        buckets = {_bucket(edge): 0 for edge in (*_EDGES, None)}
        for length in self.prompt_tokens:
            buckets[_bucket(next((edge for edge in _EDGES if length <= edge), None))] += 1
        return buckets

    @property
    def _picture_tokens(self) -> int:
        return round(self.image_tokens / max(1, self.pictures))

    def table(self) -> str:
        """The plan for people."""
        lines = [
            f"rows             {self.rows}",
            *([f"skipped          {self.skipped.text()}"] if self.skipped.num_files else []),
            f"samples          {self.samples}",
            f"pictures         {self.pictures} ({self.distinct_pictures} distinct)",
            *([f"documents        {self.documents}, {self._picture_tokens} tokens a page"] if self.documents else []),
            *([f"videos           {self.videos}, {self._picture_tokens} tokens a frame"] if self.videos else []),
            f"prompt tokens    {sum(self.prompt_tokens)} ({self.image_tokens} of them pictures)",
            f"picture tokens   counted from {self.image_tokens_from}",
            f"answer tokens    at most {self.max_new_tokens}",
            f"batches          {self.batches}",
            f"parts            {self.parts}",
            f"bad rows         {sum(self.bad_samples.values())}, as far as headers tell",
        ]
        lines += [f"  {code}: {count}, e.g. {self.examples[code]}" for code, count in sorted(self.bad_samples.items())]
        lines += [f"column {name!r} is {other!r} in the output" for name, other in self.renamed.items()]
        lines += [f"hint: {self.hint}"] if self.hint else []
        lines.append("prompt tokens of a sample")
        most = max(1, *self.histogram().values())
        for name, count in self.histogram().items():
            if count:
                lines.append(f"  {name:>9}  {'█' * max(1, round(_BAR_WIDTH * count / most))} {count}")
        return "\n".join(lines)


def plan_job(spec: JobSpec) -> Plan:
    """Reads the whole input, prepares it without decoding, and counts.

    Raises:
        SpecError, InputError, ModelError: as `run_job` would before its first row.
    """
    spec, source, preparer = open_job(spec)
    plan = Plan(rows=source.num_rows, skipped=source.skipped, renamed=source.renamed)
    plan.documents, plan.videos = num_documents(source), num_videos(source)
    if not load_processor(spec.model).counts_by_size:
        plan.image_tokens_from = "prepared pictures"
    digests: set[bytes] = set()
    sizes: list[SampleSize] = []
    tags = LiteralTags(spec)
    for table in iter_tables(source, spec.batching.block_rows):
        values = preparer.values(table)
        with preparer.fetching(values, headers_only=True) as pictures:
            for place, row in enumerate(values):
                prepared = preparer.row(row, headers_only=True)
                pictures.done(place)
                digests.update(picture["digest"] for picture in prepared.pictures)
                plan.pictures += len(prepared.pictures)
                tags.see(row, len(prepared.pictures))
                for sample in prepared.samples:
                    _count(plan, sample, sizes, str(row[ROW_ID]))
    plan.hint = tags.hint(f"{plan.rows} rows")
    plan.samples = sum(plan.bad_samples.values()) + len(sizes)
    plan.distinct_pictures = len(digests)
    plan.max_new_tokens = sum(size.max_new_tokens for size in sizes)
    max_tokens = spec.batching.max_batch_tokens or DEFAULT_MAX_TOKENS
    plan.batches = num_batches(sizes, spec.batching.max_batch_rows, max_tokens)
    plan.parts = -(-plan.samples // spec.rows_of_a_part(plan.rows))
    return plan


def _count(plan: Plan, sample: dict[str, Any], sizes: list[SampleSize], row_id: str) -> None:
    error = sample["error"]
    if error is not None:
        plan.bad_samples[error["code"]] = plan.bad_samples.get(error["code"], 0) + 1
        is_told = error["message"].startswith(f"{row_id.partition('#')[0]}, ")  # as of a line that cannot be read
        plan.examples.setdefault(error["code"], error["message"] if is_told else f"{row_id}: {error['message']}")
        return
    input_ids = sample["input_ids"]
    plan.prompt_tokens.append(len(input_ids))
    plan.image_tokens += sum(token < 0 for token in input_ids)
    params = GenerationParams.model_validate_json(sample["params"])
    sizes.append(SampleSize(len(input_ids), params.max_new_tokens))


def _bucket(edge: int | None) -> str:
    return f"> {_EDGES[-1]}" if edge is None else f"≤ {edge}"
