"""The actor that previews are answered by: it stays between them, so that only the first one loads the model.

Where this process uses Ray, or RAY_ADDRESS names a cluster, it is a Ray actor there; else it lives in this process. It
is released when another model is asked for, and when a job starts: the job's own actors need its device.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeAlias

import pyarrow as pa

from ray_job.models.threads import restore_threads
from ray_job.spec import BatchingSpec, JobSpec, ModelSpec, WorkersSpec

_Key: TypeAlias = tuple[ModelSpec, BatchingSpec, WorkersSpec, bool]


class WarmActor:
    """At most one `generate.GenerateActor`, made when it is first needed."""

    def __init__(self) -> None:
        self.actor: Any = None  # or a handle of one on Ray; None: not loaded
        self._key: _Key | None = None
        self._lock = threading.RLock()  # held while a preview is answered
        self._session = ExitStack()  # what a preview made or changed: the connection to Ray, torch's threads

    def generate(self, spec: JobSpec, prepared: pa.Table, schema: pa.Schema) -> pa.Table:
        """Answers prepared rows.

        Args:
            spec: its model, batching and workers decide whether the actor there is will do.
            prepared: rows of `rows.prepared_schema`.
            schema: of the output.

        Raises:
            RayJobError: the model does not load, the cluster lacks what it needs, or the actor died.
        """
        is_remote = _uses_ray()
        key = (spec.model, spec.batching, spec.workers, is_remote)
        with self._lock:
            if key != self._key:
                self.release()
            if is_remote:
                return self._generate_on_ray(spec, key, prepared, schema)
            if self.actor is None:
                from ray_job.stages.generate import GenerateActor

                restore_threads(self._session)
                self.actor, self._key = GenerateActor(spec, schema), key
            return self.actor.generate(prepared, schema)

    def release(self) -> None:
        """Lets the model go, once no preview on another thread uses it."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        actor, was_remote = self.actor, self._key is not None and self._key[-1]
        self.actor = self._key = None
        if actor is not None and was_remote:
            import ray

            if ray.is_initialized():
                ray.kill(actor)
        elif actor is not None:
            actor.close()
        self._session.close()

    def _generate_on_ray(self, spec: JobSpec, key: _Key, prepared: pa.Table, schema: pa.Schema) -> pa.Table:
        import ray
        from ray.exceptions import ActorDiedError

        from ray_job.cluster.capacity import say_what_is_held
        from ray_job.cluster.session import ray_session
        from ray_job.cluster.workers import settle_workers
        from ray_job.stages.generate import GenerateActor

        if not ray.is_initialized():
            self.actor = None  # it was of a Ray that is gone
            self._session.enter_context(ray_session())
        with ray_session():
            was_there = self.actor is not None
            if self.actor is None:
                workers = replace(settle_workers(spec), min_actors=1, max_actors=1)
                say_what_is_held({"CPU": workers.cpus_per_actor, "GPU": workers.gpus_per_actor})
                actor = ray.remote(GenerateActor).options(**workers.resources)
                self.actor = actor.remote(spec, schema, place=workers.place)
                self._key = key
            try:
                return ray.get(self.actor.generate.remote(prepared, schema))
            except ActorDiedError:
                self.actor = self._key = None
                if not was_there:
                    raise
        return self._generate_on_ray(spec, key, prepared, schema)  # its machine may be gone; a new actor, once


_WARM = WarmActor()


def warm_actor() -> WarmActor:
    """This process's own."""
    return _WARM


def _uses_ray() -> bool:
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
