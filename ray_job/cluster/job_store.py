"""What a job's processes tell each other: a small key-value store in Ray's control process, and the job's stop flag."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import Self

from ray_job.stages.poison import IN_FLIGHT, describe_in_flight

_ASK_INTERVAL_S = 0.5
_STOP = "stop"


class JobStore:
    """Small values that all of a job's processes see and that outlive each of them, in Ray's own store.

    A call costs about a millisecond. Use it in a `with`: it is wiped at the end.
    """

    def __init__(self) -> None:
        self._prefix = f"ray_job/{uuid.uuid4().hex}/"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        from ray.exceptions import RayError
        from ray.experimental import internal_kv

        with suppress(RayError):  # the head may be what died
            if isinstance(error, RayError):
                keys = internal_kv._internal_kv_list(self._prefix + IN_FLIGHT)
                records = [record for key in keys if (record := internal_kv._internal_kv_get(key)) is not None]
                error.add_note(describe_in_flight(records))
            internal_kv._internal_kv_del(self._prefix, del_by_prefix=True)

    @property
    def worker(self) -> str:
        """The actor this process serves; the same after a restart."""
        import ray

        return ray.get_runtime_context().get_actor_id() or ""

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Sets a value; whether there was one already, which stays unless it is overwritten."""
        from ray.experimental import internal_kv

        return bool(internal_kv._internal_kv_put(self._prefix + key, value, overwrite))

    def get(self, key: str) -> bytes | None:
        """A value, if there is one."""
        from ray.experimental import internal_kv

        value: bytes | None = internal_kv._internal_kv_get(self._prefix + key)
        return value

    def delete(self, key: str) -> None:
        """Takes a value away, if there is one."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self._prefix + key)


class StopFlag:
    """Unset until the driver sets it. Workers ask before they take on rows, each process at most twice a second."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._is_set = False
        self._asked_s = 0.0

    def set(self) -> None:
        """Within a second no worker takes on more rows."""
        self._store.put(_STOP, b"1")

    def is_set(self) -> bool:
        """Whether rows may no longer be taken on."""
        if not self._is_set and time.monotonic() - self._asked_s > _ASK_INTERVAL_S:
            self._is_set = self._store.get(_STOP) is not None
            self._asked_s = time.monotonic()
        return self._is_set
