"""Distributed batch inference for vision-language models on Ray: Phi-3-Vision first.

from ray_job import JobSpec, run_job
report = run_job(JobSpec.from_yaml("job.yaml"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_job.spec import JobSpec

if TYPE_CHECKING:
    from ray_job.job import run_job
    from ray_job.plan import plan_job

__all__ = ["JobSpec", "plan_job", "run_job"]


def __getattr__(name: str) -> Any:
    """Loads what needs Arrow or Ray only when it is asked for."""
    if name == "run_job":
        from ray_job.job import run_job

        return run_job
    if name == "plan_job":
        from ray_job.plan import plan_job

        return plan_job
    raise AttributeError(f"module 'ray_job' has no attribute {name!r}")
