"""The whole exception tree, and the exit code each branch ends the command with.

    RayJobError                 1   anything fatal not named below
    ├── SpecError               2   the job description is wrong; every problem at once
    ├── InputError              2   an input cannot be read at all: no such path, broken Parquet footer, no such column
    ├── ModelError              1   configuration or weights do not load
    ├── TooManyRowErrors        3   more rows failed than the spec allows
    ├── AccountingError         4   rows in ≠ answered + failed
    ├── FingerprintMismatch     5   the output belongs to another job
    ├── Interrupted            75   stopped by a signal; resuming finishes the job (sysexits' EX_TEMPFAIL)
    └── ClusterLost            75   the Ray under the job died; resuming finishes the job

    RowError                        one row's failure. It is data: it ends in that row's `error` column
                                    and never leaves the stage that caught it.

No message holds credentials: they are taken out here, whoever raises (`redaction`). Fatal errors say what happened,
where, and what to do. A `RowError` is never fatal and a fatal error is
never turned into a row's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

from ray_job.redaction.logs import logger_of
from ray_job.redaction.text import without_secrets

_LOG = logger_of(__name__)
_SHOWN_CHARS = 300


class RayJobError(Exception):
    """Base of everything that ends a job."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_secrets(each) if isinstance(each, str) else each for each in args))


class SpecError(RayJobError):
    """The job description is wrong. `problems` holds one line per mistake."""

    exit_code = 2

    def __init__(self, problems: Sequence[str], source: str = "spec") -> None:
        self.problems = [without_secrets(problem) for problem in problems]
        self.source = source
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {line}" for line in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[list[str], str]]:
        return type(self), (self.problems, self.source)


class InputError(RayJobError):
    """An input cannot be read at all."""

    exit_code = 2


class ModelError(RayJobError):
    """A model's configuration or weights do not load."""


class TooManyRowErrors(RayJobError):  # noqa: N818 - it names what happened
    """More rows failed than `limits.max_errors` or `limits.max_error_rate` allow."""

    exit_code = 3


class AccountingError(RayJobError):
    """Rows read and rows written do not add up."""

    exit_code = 4


class FingerprintMismatch(RayJobError):  # noqa: N818
    """The output folder belongs to a job whose answers would differ."""

    exit_code = 5


class Interrupted(RayJobError):  # noqa: N818
    """Stopped by a signal before the end; the committed parts stay valid."""

    exit_code = 75


class ClusterLost(RayJobError):  # noqa: N818
    """A process of Ray's that the driver cannot do without died; the committed parts stay valid."""

    exit_code = 75


class Stage(StrEnum):
    """Where in the path a row failed."""

    READ = "read"
    PREPARE = "prepare"
    GENERATE = "generate"


class ErrorCode(StrEnum):
    """What went wrong with a row; the stable name a user filters on."""

    ROW_MALFORMED = "row_malformed"  # a JSONL line or message list that does not parse
    IMAGE_MISSING = "image_missing"  # null, no such file
    IMAGE_EMPTY = "image_empty"  # zero bytes
    IMAGE_UNREADABLE = "image_unreadable"  # not a picture Pillow knows, or corrupt
    IMAGE_TRUNCATED = "image_truncated"  # ends before its header promises
    IMAGE_TOO_LARGE = "image_too_large"  # over a limit: max_pixels, max_image_bytes or max_document_bytes
    IMAGE_TOO_NARROW = "image_too_narrow"  # one side rounds to zero when resized
    IMAGE_FORBIDDEN = "image_forbidden"  # a URL, or a path outside its root
    DOCUMENT_UNREADABLE = "document_unreadable"  # no PDF or TIFF, damaged, or too large
    DOCUMENT_ENCRYPTED = "document_encrypted"  # locked, and no password opens it
    DOCUMENT_EMPTY = "document_empty"  # no page, or none of those asked for
    PAGE_UNREADABLE = "page_unreadable"  # no such page, or it cannot be drawn
    VIDEO_UNREADABLE = "video_unreadable"  # no container that FFmpeg knows, damaged where it says what it holds
    VIDEO_EMPTY = "video_empty"  # no byte, no video stream, no frame
    VIDEO_TRUNCATED = "video_truncated"  # ends before its header promises
    FRAME_UNREADABLE = "frame_unreadable"  # a frame of a video that is damaged, or beyond its end
    TOO_MANY_IMAGES = "too_many_images"
    PROMPT_MISSING = "prompt_missing"  # a null or absent column the prompt needs
    PROMPT_TAGS = "prompt_tags"  # picture tags and pictures do not match
    PROMPT_TOO_LONG = "prompt_too_long"
    TOO_MANY_QUESTIONS = "too_many_questions"
    PARAMS_INVALID = "params_invalid"  # a per-row generation override that is not allowed
    STORAGE = "storage"  # the file system failed; trying again may help
    OUT_OF_MEMORY = "out_of_memory"
    GENERATION_FAILED = "generation_failed"
    DEADLINE = "deadline"  # it took longer than limits.row_deadline_s, documents.deadline_s or video.deadline_s
    WORKER_KILLED = "worker_killed"  # the process died of it, again and again
    INTERNAL = "internal"  # a fault of this package that the row brought to light


_RETRYABLE = frozenset({ErrorCode.STORAGE, ErrorCode.OUT_OF_MEMORY})


class RowError(Exception):
    """One row's failure: a code to filter on and a message that says what to do."""

    def __init__(self, code: ErrorCode, message: str, stage: Stage = Stage.PREPARE) -> None:
        self.code = code
        self.message = without_secrets(message)
        super().__init__(self.message)
        self.stage = stage

    @property
    def is_retryable(self) -> bool:
        """Whether the same row may succeed when it is tried again unchanged."""
        return self.code in _RETRYABLE

    @classmethod
    def overdue(cls, deadline_s: float, stage: Stage) -> Self:
        """Of a row that takes too long."""
        return cls(ErrorCode.DEADLINE, f"the row took longer than limits.row_deadline_s, {deadline_s:g} s", stage)

    @classmethod
    def of(cls, error: BaseException, stage: Stage, row_id: Any) -> RowError:
        """What working on a row raised, as the row's error: the last guard, behind which no row ends a job.

        Raises:
            RayJobError, KeyboardInterrupt, SystemExit, GeneratorExit: they are no row's, and are raised again.
        """
        if isinstance(error, RowError):
            return error
        if isinstance(error, RayJobError | KeyboardInterrupt | SystemExit | GeneratorExit):
            raise error
        if isinstance(error, MemoryError):
            return cls(ErrorCode.OUT_OF_MEMORY, f"no memory for the row in stage {stage}", stage)
        text = f"{type(error).__name__}: {_text(error)}"
        _log_once(f"stage {stage}, row {_text(row_id)}: {text}", error)
        return cls(ErrorCode.INTERNAL, f"a fault of ray_job, please report it: {text}", stage)

    def __reduce__(self) -> tuple[type[RowError], tuple[ErrorCode, str, Stage]]:
        return type(self), (self.code, self.message, self.stage)


def is_retryable(error: Exception) -> bool:
    """Whether the same row may succeed when it is tried again unchanged: for `Retrying`."""
    return isinstance(error, RowError) and error.is_retryable


def listed(problems: Sequence[str], most: int) -> str:
    """Problems a line each; beyond the first `most` only how many there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "\n".join(f"  - {problem}" for problem in (*problems[:most], *more))


def first_line(error: BaseException) -> str:
    """What an error says in one line; its type where it says nothing."""
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])


_logged: set[tuple[type[BaseException], str, int]] = set()


def _log_once(text: str, error: BaseException) -> None:
    """With its traceback, the first of all that are raised at one place: a million rows may hold the same."""
    place = (type(error), *_place(error))
    if place not in _logged:
        _logged.add(place)
        _LOG.error("%s; others like it are not logged", text, exc_info=error)


def _place(error: BaseException) -> tuple[str, int]:
    """File and line that raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return ("", 0) if traceback is None else (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)


def _text(value: object) -> str:
    """A value to show, whatever it is: some cannot even be shown."""
    try:
        return str(value)[:_SHOWN_CHARS]
    except Exception:
        return f"<{type(value).__name__}>"
