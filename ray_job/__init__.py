"""Distributed batch inference for vision-language models on Ray: Phi-3-Vision first.

from ray_job import JobSpec, run_job
report = run_job(JobSpec.from_yaml("job.yaml"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ray_job.spec import JobSpec

if TYPE_CHECKING:
    from ray_job.gallery.preview import preview
    from ray_job.gallery.show import show
    from ray_job.job import run_job
    from ray_job.plan import plan_job

__all__ = ["JobSpec", "plan_job", "preview", "run_job", "show"]

_PLACES = {
    "plan_job": "ray_job.plan",
    "preview": "ray_job.gallery.preview",
    "run_job": "ray_job.job",
    "show": "ray_job.gallery.show",
}


def __getattr__(name: str) -> Any:
    """Loads what needs Arrow or Ray only when it is asked for."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ray_job' has no attribute {name!r}")
