"""What a job is: a frozen, validated description that YAML, Python and the command line share.

Every field is checked before Ray starts or a weight is read, and every problem is reported at once. Unknown keys are
refused with the nearest known name. Nothing here knows Ray, torch or any file's content.
"""

from ray_job.spec.batching import BatchingSpec as BatchingSpec
from ray_job.spec.generation import LENGTH_NAMES as LENGTH_NAMES, GenerationParams as GenerationParams, GenerationSpec as GenerationSpec, with_one_length as with_one_length
from ray_job.spec.input import InputSpec as InputSpec
from ray_job.spec.job import JobSpec as JobSpec
from ray_job.spec.limits import LimitsSpec as LimitsSpec
from ray_job.spec.model import ModelSpec as ModelSpec
from ray_job.spec.output import OutputSpec as OutputSpec
from ray_job.spec.problems import problems as problems
from ray_job.spec.prompt import MAX_QUESTIONS as MAX_QUESTIONS, PromptSpec as PromptSpec
from ray_job.spec.workers import WorkersSpec as WorkersSpec
