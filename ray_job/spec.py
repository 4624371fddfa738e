"""What a job is: a frozen, validated description that YAML, Python and the command line share.

Every field is checked before Ray starts or a weight is read, and every problem is reported at once. Unknown
keys are refused with the nearest known name. It knows nothing of Ray, torch or any file's content.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ray_job.errors import SpecError
from ray_job.redaction.text import public_uri

# Parts of a large job are large enough to leave few files; a small one has at least so many, where blocks allow.
_MOST_PART_ROWS, _FEWEST_PARTS = 256, 20
# Below this temperature a token that is not the likeliest could only be drawn where logits differ by rounding.
_LOWEST_TEMPERATURE = 1e-5
LENGTH_NAMES = ("max_new_tokens", "max_completion_tokens", "max_tokens")
"""What engines and APIs call the longest answer; the first is ours."""
MAX_QUESTIONS = 2**16  # of one row


def _has_half_pair(text: str) -> bool:
    """Whether half of a surrogate pair is in it, which no tokenizer takes."""
    return text.encode(errors="replace").decode() != text


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | int | float) else value


def _one_or_many(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "array", "items": {"type": kind}}]})


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), _one_or_many("string")]
Ints = Annotated[tuple[int, ...], BeforeValidator(_as_tuple), _one_or_many("integer")]


class _Section(BaseModel):
    """Unknown keys are refused, and true or false where a number belongs; a text that spells a number is one.

    The latter since YAML reads `1e-5` as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What `repr` and a notebook show: no credentials."""
        for name, value in super().__repr_args__():
            if isinstance(value, tuple):
                yield name, tuple(public_uri(each) if isinstance(each, str) else each for each in value)
            else:
                yield name, public_uri(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        values = value if isinstance(value, list | tuple) else [value]
        if _has_numbers(cls.model_fields[info.field_name].annotation) and any(isinstance(v, bool) for v in values):
            raise ValueError(f"got {value!r}; allowed: a number")
        return value


def _has_numbers(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_has_numbers, get_args(annotation)))


class InputSpec(_Section):
    """Where the rows come from."""

    path: Strings = Field(
        min_length=1,
        description="File, folder, glob or URI (s3://…, gs://…), or a list of them.",
    )
    format: Literal["auto", "parquet", "images", "jsonl"] = Field(
        "auto", description="`auto` decides by the files' suffixes."
    )
    id_column: str | None = Field(
        None,
        description="Column whose value becomes `row_id`, type unchanged. Default: `custom_id` for JSONL; "
        "otherwise a stable id `relative path#position` is made.",
    )
    image_columns: Strings | None = Field(
        None,
        description="Columns holding pictures, in order: {bytes, path} structs, lists of them, raw bytes, or "
        "paths/URIs. Default: `images` or `image` where the data has it. An empty list: text only.",
    )
    image_root: str | None = Field(
        None, description="Folder that relative picture paths start from and may not leave. Default: the input's."
    )
    allow_hosts: Strings = Field(
        (),
        description="Hosts whose pictures may be fetched by https, as `name` or `name:port`; redirects and private "
        "addresses are refused all the same. Default: nothing is fetched from the web.",
    )
    keep_columns: Strings | None = Field(
        None,
        description="Columns passed through to the output, of any type that Parquet holds; dictionaries as values. "
        "Default: all columns of plain types except the id.",
    )
    limit: int | None = Field(None, ge=1, description="Only the first N rows.")


class PromptSpec(_Section):
    """What is asked about each row's pictures."""

    template: str | None = Field(
        None,
        description="Text with {column} fields, e.g. 'What is on this {category}?'. Picture tags "
        "<|image_1|> … place the pictures; without tags they stand first. Default: '{prompt}' or '{question}' "
        "where the data has that column.",
    )
    system: str | None = Field(None, description="System prompt, the same for every row.")
    messages_column: str | None = Field(
        None, description="Column with OpenAI chat messages (list or JSON text). Default: `messages` for JSONL."
    )
    questions: Strings | None = Field(
        None, description="Ask each of these about every row; fills {question} in the template."
    )
    questions_column: str | None = Field(
        None, description="Column holding a list of questions for its row; fills {question} in the template."
    )
    column_markup: Literal["literal", "tags", "special"] = Field(
        "literal",
        description="How text from columns is read: `literal` (nothing in it is special), `tags` (picture tags "
        "count), `special` (picture tags and chat tokens count: only for data you trust).",
    )

    @model_validator(mode="after")
    def _one_source_of_questions(self) -> Self:
        chosen = [
            name for name in ("messages_column", "questions", "questions_column") if getattr(self, name) is not None
        ]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other; keep one")
        if self.messages_column is not None and self.template is not None:
            raise ValueError("messages_column and template exclude each other; keep one")
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        questions = self.questions or ()
        if len(questions) > MAX_QUESTIONS:
            raise ValueError(
                f"questions: {len(questions)} of them; allowed: {MAX_QUESTIONS}. Ask the rest in another job"
            )
        texts = {"template": (self.template,), "system": (self.system,), "questions": questions}
        for name, values in texts.items():
            for text in values:
                if text is not None and _has_half_pair(text):
                    raise ValueError(f"{name}: holds half of a surrogate pair, which is no character; remove it")
        return self


class ModelSpec(_Section):
    """Which model answers, and how it is held."""

    path: str = Field(
        "builtin:demo",
        description="Folder with config.json, tokenizer.json and *.safetensors; the URI of one in a bucket, fetched "
        "once on each machine; a hub id with `revision`; "
        "`builtin:demo` (the small model in this package); `builtin:noop` (answers nothing, for measuring).",
    )
    revision: str | None = Field(None, description="Commit of a hub id (40 hex digits); required for one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="`auto`: bfloat16 on a GPU, float32 on a CPU. A CPU without arithmetic for a 16-bit dtype keeps "
        "the weights in it, half the memory, and computes in float32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`auto`: the GPU that `workers.gpus_per_actor` gives the actor, and a CPU where that is 0. `cuda` "
        "and `cpu` settle what `auto` means there, and must agree with a number.",
    )
    attention: Literal["sdpa", "eager"] = "sdpa"
    num_crops: int | None = Field(
        None, ge=1, le=64, description="Most local crops a picture is cut into. Default: the model's own."
    )


def with_one_length(params: Mapping[str, Any]) -> dict[str, Any]:
    """Generation parameters, the longest answer under our name for it. Raises ValueError where two names differ."""
    given = {name: params[name] for name in LENGTH_NAMES if params.get(name) is not None}
    value, *others = given.values() or [None]
    if any(other != value for other in others):
        values = " and ".join(map(repr, given.values()))
        raise ValueError(f"{' and '.join(given)} differ ({values}) and mean the same limit; keep one")
    rest = {name: value for name, value in params.items() if name not in LENGTH_NAMES[1:]}
    return rest | ({LENGTH_NAMES[0]: value} if given else {})


def _with_other_length_names(schema: dict[str, Any]) -> None:
    ours, *others = LENGTH_NAMES
    found = {key: value for key, value in schema["properties"][ours].items() if key not in ("default", "title")}
    schema["properties"] |= {name: {**found, "description": f"The same as `{ours}`."} for name in others}


class GenerationParams(_Section):
    """How an answer is generated. Each field can be overridden per row by `overrides_column`."""

    model_config = ConfigDict(json_schema_extra=_with_other_length_names)

    max_new_tokens: int = Field(
        128, ge=1, description="Most tokens in an answer. `max_tokens` and `max_completion_tokens` mean the same."
    )
    temperature: float = Field(
        0.0, ge=0.0, le=100.0, description="0, and anything below 0.00001: greedy. Otherwise: sampling."
    )
    top_p: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Sample from the likeliest tokens that have this probability together. 1: off. 0: the likeliest "
        "token alone, as in OpenAI's API (vLLM refuses 0).",
    )
    top_k: int = Field(0, ge=-1, description="Sample from this many of the likeliest tokens. 0 or -1: off, as in vLLM.")
    repetition_penalty: float = Field(
        1.0,
        ge=0.01,
        le=10.0,
        description="Divides positive and multiplies negative logits of tokens in prompt or answer. 1: off.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="With sampling. The job's seed is mixed with each row's id; a row's own seed is used as it is.",
    )
    stop: Strings = Field((), description="Strings that end an answer; they are cut off.")
    stop_token_ids: Ints = Field((), description="Token ids that end an answer, beside the model's own.")

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, data: Any) -> Any:
        return with_one_length(data) if isinstance(data, Mapping) else data

    @field_validator("top_k", mode="after")
    @classmethod
    def _one_way_to_say_off(cls, top_k: int) -> int:
        return max(top_k, 0)

    @model_validator(mode="after")
    def _no_empty_stop(self) -> Self:
        if "" in self.stop:
            raise ValueError("stop: an empty string would end every answer at once; remove it")
        if any(_has_half_pair(text) for text in self.stop):
            raise ValueError("stop: holds half of a surrogate pair, which is no character; remove it")
        return self

    @property
    def is_greedy(self) -> bool:
        """Whether the answer is the most likely token at every step."""
        return self.temperature < _LOWEST_TEMPERATURE or self.top_p == 0.0 or self.top_k == 1

    def overridden(self, overrides: Mapping[str, Any]) -> GenerationParams:
        """These parameters with some replaced; `model_fields_set` of the result has the names of those.

        Raises:
            ValueError: a name or value is not allowed; pydantic.ValidationError where it is one field's.
        """
        own = with_one_length(overrides)
        whole = GenerationParams.model_validate({**self.model_dump(), **own})
        return GenerationParams.model_construct(set(own), **dict(whole))


class GenerationSpec(GenerationParams):
    """Generation parameters of the job, and where rows may change them."""

    overrides_column: str | None = Field(
        None,
        description="Column with a row's own parameters (struct or JSON object). Default: the request body's "
        "for JSONL.",
    )

    @property
    def params(self) -> GenerationParams:
        """The parameters alone."""
        return GenerationParams.model_validate(self.model_dump(exclude={"overrides_column"}))


class BatchingSpec(_Section):
    """How rows are grouped on their way through."""

    block_rows: int = Field(32, ge=1, le=4096, description="Rows that travel together to an actor.")
    blocks_per_actor: int = Field(4, ge=1, le=64, description="Blocks an actor works on at once.")
    engine: Literal["continuous", "static"] = Field(
        "continuous",
        description="`continuous`: a finished row's place is taken at once. `static`: padded batches, each run to the "
        "end of its last row; the plain reference, with the same answers.",
    )
    max_batch_rows: int = Field(32, ge=1, le=1024, description="Most rows generated together.")
    max_batch_tokens: int | None = Field(
        None,
        ge=64,
        description="Most tokens held together, prompts and answers. Default: what memory allows (static: 65,536, "
        "padding included).",
    )
    step_tokens: int = Field(1024, ge=16, description="Most tokens the continuous engine computes in one step.")
    vision_cache_mib: int = Field(256, ge=0, description="Picture features kept for rows that repeat a picture.")
    share_prefixes: bool = Field(
        True,
        description="Compute what rows' prompts have in common only once. Computed in float32 the answers are the "
        "same; in 16 bits sums over shared keys are rounded at other places, which may turn a near tie.",
    )
    padding_side: Literal["left", "right"] = Field("left", description="Of the static engine; the answers are equal.")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.engine == "continuous" and self.padding_side != "left":
            raise ValueError("padding_side: the continuous engine pads nothing; leave it out or set engine: static")
        return self


class WorkersSpec(_Section):
    """Who does the work."""

    min_actors: int = Field(1, ge=1, description="Actors holding the model that are always there.")
    max_actors: int | None = Field(None, ge=1, description="Default: min_actors (a fixed pool).")
    gpus_per_actor: float | Literal["auto"] = Field(
        "auto",
        description="GPUs an actor takes; a fraction shares one, memory included. `auto`: 1 where the cluster has "
        "GPUs, else 0. With 0 it computes on CPUs, whatever GPUs there are; with more, a GPU that torch cannot use "
        "is an error. A model lies on one GPU whole: there is no tensor parallelism.",
    )
    cpus_per_actor: float = Field(
        0.0,
        ge=0,
        description="CPUs reserved per actor, and the most threads it computes with. 0 reserves none, so that reading "
        "and preparing share them with it.",
    )
    prepare_tasks: int | None = Field(None, ge=1, description="Most preparing tasks at once. Default: Ray decides.")
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads an actor computes with. Default: cpus_per_actor; where that is 0, the CPUs of its "
        "machine (those its cgroup allows) divided by the actors that a full pool puts there.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is below min_actors ({self.min_actors})")
        gpus = self.gpus_per_actor
        if gpus != "auto" and not 0 <= gpus <= 1:
            raise ValueError(
                f"gpus_per_actor: got {gpus}; allowed: 0 to 1, since a model lies on one GPU whole; raise min_actors "
                "to use several"
            )
        return self


class LimitsSpec(_Section):
    """What a row may cost, and how many may fail."""

    max_pixels: int = Field(89_478_485, ge=1, description="Pixels of a picture, before decoding it.")
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="Encoded bytes of a picture.")
    fetch_timeout_s: float = Field(30.0, gt=0, description="Seconds to fetch a picture from the web, all in all.")
    max_fetches: int = Field(16, ge=1, le=256, description="Pictures that a preparing task fetches at once.")
    max_images: int = Field(64, ge=0, description="Pictures of a row.")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="Prompt tokens of a row, pictures included. Default: what the model can hold."
    )
    max_errors: int | None = Field(None, ge=0, description="Failed rows above this end the job (exit 3).")
    max_error_rate: float | None = Field(
        None, ge=0.0, le=1.0, description="A share of failed rows above this ends the job (exit 3)."
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="Tries of what fails for a passing reason, such as a storage error, within a run."
    )
    row_deadline_s: float | None = Field(
        None,
        gt=0,
        description="Seconds a row may take to be prepared, and then to be answered once it runs; a row that takes "
        "longer is an error. Native code that hangs is ended with its process after twice that. Default: none.",
    )
    max_restarts: int = Field(
        30,
        ge=0,
        description="Restarts of an actor that dies, and tries of a block, before the job fails. A row that kills its "
        "process costs 1 + ⌈log₈ batching.block_rows⌉ of them (3 by default, 2 at least) until it is found and becomes "
        "an error, so that 30 allow 10 such rows for each actor.",
    )
    grace_s: float = Field(
        20.0, ge=0, description="Seconds from SIGTERM or Ctrl-C in which rows in flight are finished and committed."
    )
    no_progress_s: float = Field(
        1800.0, gt=0, description="Seconds without any progress, waiting for machines included, that end the job."
    )


class OutputSpec(_Section):
    """Where the answers go."""

    path: str = Field(description="Folder or URI of the output.")
    mode: Literal["error", "resume", "append", "overwrite"] = Field(
        "error",
        description="What to do where there is output already. `error`: refuse. `resume`: do what is missing of an "
        "unfinished run; a finished one stays as it is. `append`: the same, and rows that are new in the input are "
        "added to a finished run. `overwrite`: replace it. Resume and append want the same fingerprint, and start "
        "a run where there is none.",
    )
    retry_failed: bool = Field(
        False, description="With resume or append: do failed rows again; the new result replaces the error."
    )
    part_rows: int | None = Field(
        None,
        ge=1,
        description="Rows of one Parquet part; rows that are in no part when a job dies are answered again. Default: "
        "256, or of a small input a twentieth, both in whole blocks.",
    )


class JobSpec(_Section):
    """One batch inference job."""

    input: InputSpec
    output: OutputSpec
    prompt: PromptSpec = PromptSpec()
    model: ModelSpec = ModelSpec()
    generation: GenerationSpec = GenerationSpec()
    batching: BatchingSpec = BatchingSpec()
    workers: WorkersSpec = WorkersSpec()
    limits: LimitsSpec = LimitsSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.output.retry_failed and self.output.mode not in ("resume", "append"):
            raise ValueError(
                f"output.retry_failed goes with output.mode resume or append, and the mode is {self.output.mode!r}"
            )
        gpus = self.workers.gpus_per_actor
        if gpus != "auto" and self.model.device == ("cpu" if gpus else "cuda"):
            raise ValueError(
                f"model.device is {self.model.device} and workers.gpus_per_actor is {gpus:g}: "
                + ("the GPU would be reserved and not used" if gpus else "the actor would have no GPU to compute on")
                + "; leave one of them at auto"
            )
        if self.limits.max_images == 0 and self.input.format == "images":
            raise ValueError("limits.max_images is 0 but input.format is images")
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "spec") -> JobSpec:
        """Validates a mapping.

        Raises:
            SpecError: with one line for every problem.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(problems(error, cls), source) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
        """Reads a YAML file and applies `section.key=value` overrides (values are YAML).

        Raises:
            SpecError: the file does not exist or is not YAML, an override is malformed, or any field is wrong.
        """
        data = _load_yaml(Path(path))
        for override in overrides:
            _apply_override(data, override)
        return cls.from_dict(data, str(path))

    @property
    def has_questions(self) -> bool:
        """Whether a row may be asked several questions; the output then has `question_index`."""
        return self.prompt.questions is not None or self.prompt.questions_column is not None

    def rows_of_a_part(self, num_rows: int) -> int:
        """`output.part_rows`, settled for an input of so many rows."""
        if self.output.part_rows is not None:
            return self.output.part_rows
        if self.has_questions:  # a row of the input may be many of the output
            return _MOST_PART_ROWS
        block_rows = self.batching.block_rows
        blocks = min(num_rows // (_FEWEST_PARTS * block_rows), _MOST_PART_ROWS // block_rows)
        return max(blocks, 1) * block_rows

    def answer_fields(self) -> dict[str, dict[str, Any]]:
        """The fields that can change an answer, by section; see `fingerprint.py` for what else can.

        The model's path is not among them, since its files' content is in the fingerprint.
        """
        dump = self.model_dump(mode="json")
        return {
            "input": {"id_column": dump["input"]["id_column"]},
            "prompt": dump["prompt"],
            "model": {key: dump["model"][key] for key in ("dtype", "num_crops")},
            "generation": dump["generation"],
        }


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(["no such file; write one or start from `python -m ray_job schema`"], str(path)) from None
    except OSError as error:
        raise SpecError([f"cannot be read: {error.strerror}"], str(path)) from None
    except UnicodeDecodeError as error:
        raise SpecError([f"is not UTF-8 text: {error}"], str(path)) from None
    except yaml.YAMLError as error:
        raise SpecError([f"is not YAML: {error}"], str(path)) from None
    if not isinstance(data, dict):
        raise SpecError(["must be a mapping with the sections " + ", ".join(JobSpec.model_fields)], str(path))
    return data


def _apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise SpecError([f"{override!r} is not of the form section.key=value"], "--set")
    section: Any = data
    for key in keys[:-1]:
        section = section.setdefault(key, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise SpecError([f"{name}: {'.'.join(keys[:-1])} is not a section"], "--set")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError([f"{name}: {text!r} is not a YAML value"], "--set") from None
    if keys[:-1] == ["generation"] and keys[-1] in LENGTH_NAMES:  # else the file's would contradict it
        for other in LENGTH_NAMES:
            section.pop(other, None)
    section[keys[-1]] = value


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Why a mapping is not valid for `model`, a line for each field: value, what is allowed, nearest name."""
    return [_problem(detail, model) for detail in error.errors()]


def _problem(detail: Mapping[str, Any], model: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"] if not str(part).startswith(("function-", "tagged-"))]
    field = ".".join(location) or ("spec" if model is JobSpec else "")
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{field}: got {detail['input']!r}; unknown key; {hint}allowed: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{field}: missing; it is required"
    if detail["type"] == "value_error":
        return f"{field}: {detail['ctx']['error']}".removeprefix(": ")
    if detail["type"] == "literal_error":
        return _literal_problem(field, detail)
    allowed = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{field}: got {detail['input']!r}; allowed: {allowed}"


def _literal_problem(field: str, detail: Mapping[str, Any]) -> str:
    choices = detail["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    near = difflib.get_close_matches(str(detail["input"]), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{field}: got {detail['input']!r}; allowed: {', '.join(choices)}{hint}"


def _known_keys(model: type[BaseModel], section: Sequence[str]) -> list[str]:
    for key in section:
        annotation = model.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
