"""Distributed batch inference for vision-language models on Ray: Phi-3-Vision first.

from ray_job import JobSpec, run_job
report = run_job(JobSpec.from_yaml("job.yaml"))

The names in `__all__` are the public interface; everything else may change between releases.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ray_job.errors import (
    AccountingError,
    FingerprintMismatch,
    InputError,
    Interrupted,
    ModelError,
    RayJobError,
    SpecError,
    TooManyRowErrors,
)
from ray_job.spec import JobSpec

if TYPE_CHECKING:
    from ray_job.cluster.submit import submit_job
    from ray_job.job import run_job
    from ray_job.output.summary import Report
    from ray_job.plan import Plan, plan_job
    from ray_job.views.gallery.preview import preview
    from ray_job.views.gallery.show import show

__all__ = [
    "AccountingError",
    "FingerprintMismatch",
    "InputError",
    "Interrupted",
    "JobSpec",
    "ModelError",
    "Plan",
    "RayJobError",
    "Report",
    "SpecError",
    "TooManyRowErrors",
    "plan_job",
    "preview",
    "run_job",
    "show",
    "submit_job",
]

_MODULES = {
    "Plan": "ray_job.plan",
    "Report": "ray_job.output.summary",
    "plan_job": "ray_job.plan",
    "preview": "ray_job.views.gallery.preview",
    "run_job": "ray_job.job",
    "show": "ray_job.views.gallery.show",
    "submit_job": "ray_job.cluster.submit",
}


def __getattr__(name: str) -> Any:
    """Imports what needs Arrow or Ray only when it is asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'ray_job' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
