"""What a job is: a frozen, validated description that YAML, Python and the command line share.

Every field is checked before Ray starts or a weight is read, and every problem is reported at once. Unknown keys are
refused with the nearest known name. Nothing here knows Ray, torch or any file's content.
"""

from ray_job.spec.batching import BatchingSpec
from ray_job.spec.documents import DocumentsSpec
from ray_job.spec.generation import LENGTH_NAMES, GenerationParams, GenerationSpec, with_one_length
from ray_job.spec.input import InputSpec
from ray_job.spec.job import JobSpec
from ray_job.spec.limits import LimitsSpec
from ray_job.spec.model import ModelSpec
from ray_job.spec.output import OutputSpec
from ray_job.spec.problems import problems
from ray_job.spec.prompt import MAX_QUESTIONS, PromptSpec
from ray_job.spec.structured_outputs import StructuredOutputs
from ray_job.spec.video import VideoSpec
from ray_job.spec.workers import WorkersSpec

__all__ = [
    "LENGTH_NAMES",
    "MAX_QUESTIONS",
    "BatchingSpec",
    "DocumentsSpec",
    "GenerationParams",
    "GenerationSpec",
    "InputSpec",
    "JobSpec",
    "LimitsSpec",
    "ModelSpec",
    "OutputSpec",
    "PromptSpec",
    "StructuredOutputs",
    "VideoSpec",
    "WorkersSpec",
    "problems",
    "with_one_length",
]
