"""A job on a cluster elsewhere: handed to Ray's Jobs API, followed to its end, ended with its own exit code.

Only the spec travels, as one file of a few hundred bytes; the cluster's machines have the package and see the spec's
paths. A job id makes retries the same run: while it runs they attach to it; afterwards they resume where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import yaml

from ray_job.errors import Interrupted, RayJobError, SpecError, first_line
from ray_job.redaction.text import public_uri
from ray_job.spec import JobSpec
from ray_job.storage.places import parse_uri

ENTRYPOINT = "python -m ray_job run job.yaml"
DETACHED = 130  # what shells give for Ctrl-C
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in Ray's own order
_JOB_ID = re.compile(r"[A-Za-z0-9][\w.-]*")
_ID, _SPEC, _OUTPUT = "ray_job_id", "ray_job_spec", "ray_job_output"  # keys of a submission's metadata
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_ASK_INTERVAL_S = 1.0
_LOST_S = 120.0  # how long a head may be silent
_STARTING = "No available agent"  # what a head says that has just been started
_NO_AGENT_HINT = (
    " Where another Ray runs on that machine it holds the agent's port: `ray start --dashboard-agent-listen-port=…` "
    "takes another; dashboard_agent.log there says more"
)
_ENDING_S = 15  # beyond the grace: from the last commit to the driver's end


@dataclass
class Submission:
    """A job known to a cluster by its submission id."""

    id: str
    address: str
    is_new: bool  # made now; else it was already running
    is_retriable: bool  # it has a job id
    _client: Any = field(repr=False)
    _num_chars: int = field(default=0, repr=False)  # of the log, shown so far

    def follow(self, stream: TextIO | None = None) -> int:
        """Shows the job's log until it ends, and returns its exit code; Ctrl-C leaves it running and returns 130.

        Raises:
            RayJobError: the cluster no longer answers.
        """
        stream = stream or sys.stdout
        try:
            print(
                f"{self.id}: {'submitted' if self.is_new else 'running already'} at {self.address}",
                file=stream,
                flush=True,
            )
            return self._follow(stream)
        except KeyboardInterrupt:
            print(f"\ndetached: {self.id} keeps running. {self._what_next()}", file=stream, flush=True)
            return DETACHED

    def _follow(self, stream: TextIO) -> int:
        info = self._ask()
        while not info.status.is_terminal():
            self._show_log(stream)
            time.sleep(_ASK_INTERVAL_S)
            info = self._ask()
        self._show_log(stream)
        code = _exit_code(info)
        print(f"{self.id}: {_ending(info, code, self.is_retriable)}", file=stream, flush=True)
        return code

    def _ask(self) -> Any:
        """Ray's `JobDetails`, asked again while the head does not answer."""
        started_s = time.monotonic()
        while True:
            try:
                return self._client.get_job_info(self.id)
            except (RuntimeError, OSError) as error:
                if time.monotonic() - started_s > _LOST_S:
                    raise RayJobError(
                        f"{self.address} no longer answers ({error}); {self.id} may still run. {self._what_next()}"
                    ) from None
                time.sleep(_ASK_INTERVAL_S)

    def _show_log(self, stream: TextIO) -> None:
        """Shows what is new until the log ends or the connection breaks; the caller asks how the job stands."""
        import aiohttp

        try:
            asyncio.run(self._tail(stream))
        except (RuntimeError, OSError, aiohttp.ClientError):
            return

    async def _tail(self, stream: TextIO) -> None:
        skip = self._num_chars  # a connection begins with the log's first character
        async for text in self._client.tail_job_logs(self.id):
            new, skip = text[skip:], max(0, skip - len(text))
            stream.write(new)
            stream.flush()
            self._num_chars += len(new)

    def _what_next(self) -> str:
        again = "the same command follows it again" if self.is_retriable else f"ray job logs {self.id} --follow"
        return f"To follow: {again}. To stop: ray job stop {self.id} --address {self.address}"


def submit_job(spec: JobSpec, address: str | None = None, job_id: str | None = None) -> Submission:
    """Hands a job to a cluster, or finds it there.

    Args:
        spec: the job; relative paths mean the same places as here.
        address: of the dashboard, such as http://head:8265; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS.
        job_id: makes retries the same run. While a submission with it runs, that one is returned; after it another
            is made, in resume mode.

    Raises:
        SpecError: no address; a job id that is not one, or is another output's, or runs with another spec;
            `overwrite` together with a job id.
        RayJobError: the cluster does not answer, or does not know the caller.
    """
    spec = _with_absolute_paths(spec)
    if job_id is not None:
        spec = _retriable(spec, job_id)
    found = _find_address(address)
    client = _connect(found)
    from ray.exceptions import RayError

    try:
        submission_id, is_new = _submit(client, spec, job_id)
    except (RuntimeError, OSError, RayError) as error:
        hint = _NO_AGENT_HINT if _STARTING in str(error) else ""
        raise RayJobError(f"{found} did not take the job: {first_line(error)}{hint}") from None
    return Submission(submission_id, found, is_new, job_id is not None, client)


def _submit(client: Any, spec: JobSpec, job_id: str | None) -> tuple[str, bool]:
    """The submission's id, and whether it was made now."""
    digest, output = _digest(spec), public_uri(spec.output.path)
    started_s, next_number = time.monotonic(), 1
    while True:
        attempts = _attempts(client, job_id)
        if attempts and (running := _running(attempts, job_id, digest, output)) is not None:
            return running, False
        newest = max((_number(info.submission_id, job_id) for info in attempts), default=0)
        number = max(newest + 1, next_number)
        submission_id = job_id if number == 1 else f"{job_id}-{number}"
        try:
            return _send(client, spec, submission_id, {_ID: job_id or "", _SPEC: digest, _OUTPUT: output}), True
        except RuntimeError as error:
            if _STARTING in str(error) and time.monotonic() - started_s < _LOST_S:
                time.sleep(_ASK_INTERVAL_S)
                continue
            if "already exists" not in str(error):
                raise
            if {info.submission_id for info in _attempts(client, job_id)} == {info.submission_id for info in attempts}:
                if number == 1:
                    raise SpecError(
                        [f"{submission_id!r} is taken by another job of this cluster"], "--job-id"
                    ) from None
                next_number = number + 1  # another job has that very id
            # Else somebody has just made this attempt: attach to it.


def _running(attempts: Sequence[Any], job_id: str | None, digest: str, output: str) -> str | None:
    """The id of the attempt that runs; None where all have ended.

    Raises:
        SpecError: the newest attempt has another output, or the one that runs another spec.
    """
    newest = max(attempts, key=lambda info: _number(info.submission_id, job_id))
    if newest.metadata.get(_OUTPUT) != output:
        raise SpecError(
            [f"{job_id!r} is the id of another job, with output {newest.metadata.get(_OUTPUT)}"], "--job-id"
        )
    running = [info for info in attempts if not info.status.is_terminal()]
    if not running:
        return None
    info = max(running, key=lambda info: _number(info.submission_id, job_id))
    if info.metadata.get(_SPEC) != digest:
        raise SpecError([f"{info.submission_id} runs with another spec; wait for it or stop it"], "--job-id")
    return str(info.submission_id)


def _ids(attempts: Sequence[Any]) -> set[str]:
    return {str(info.submission_id) for info in attempts}


def _number(submission_id: str, job_id: str | None) -> int:
    """Which attempt it is: ID is the first, ID-2 the second. Some of them may have been deleted since."""
    suffix = submission_id.removeprefix(f"{job_id}-")
    return int(suffix) if suffix != submission_id and suffix.isdecimal() else 1


def _send(client: Any, spec: JobSpec, submission_id: str | None, metadata: Mapping[str, str]) -> str:
    with tempfile.TemporaryDirectory(prefix="ray_job-") as folder:
        text = yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
        (Path(folder) / "job.yaml").write_text(text, encoding="utf-8")
        stop_wait_s = int(spec.limits.grace_s) + _ENDING_S  # Ray's own 3 s would kill a driver that is committing
        runtime_env = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s)}}
        return str(
            client.submit_job(
                entrypoint=ENTRYPOINT, submission_id=submission_id, runtime_env=runtime_env, metadata=dict(metadata)
            )
        )


def _attempts(client: Any, job_id: str | None) -> list[Any]:
    """All submissions with a job id that the cluster still knows."""
    if job_id is None:
        return []
    return [info for info in client.list_jobs() if (info.metadata or {}).get(_ID) == job_id]


def _exit_code(info: Any) -> int:
    """The driver's own. Ray has none of a job that was stopped, and calls that a success."""
    if str(info.status) == "STOPPED":
        return Interrupted.exit_code
    code = info.driver_exit_code
    return int(code) if code is not None and code >= 0 else RayJobError.exit_code


def _ending(info: Any, code: int, is_retriable: bool) -> str:
    again = "the same command" if is_retriable else "--mode resume"
    if code == 0:
        return "done"
    if code == Interrupted.exit_code:
        return f"stopped, or its Ray died; what is committed is whole, and {again} does the rest"
    if info.driver_exit_code is None:
        return f"failed before it began: {info.message}"
    if info.driver_exit_code < 0:
        return f"its driver was killed by signal {-info.driver_exit_code}; {again} does the rest"
    return f"failed with exit code {code}"


def _find_address(address: str | None) -> str:
    address = address or next((os.environ[name] for name in _ADDRESSES if os.environ.get(name)), None)
    if address is None:
        raise SpecError(["none; give the dashboard's, such as http://localhost:8265, or set RAY_ADDRESS"], "--address")
    if address.startswith("ray://"):
        raise SpecError(
            [f"{address} is a Ray Client's address; give the dashboard's, such as http://head:8265"], "--address"
        )
    return address


def _connect(address: str) -> Any:
    """Ray's client, on this address: its own constructor would let the environment override the command line."""
    if find_spec("aiohttp") is None:
        raise RayJobError("submitting needs Ray's jobs client: pip install 'ray_job[cluster]'")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    hidden = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RayJobError(
            f"{address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the "
            f"cluster's ({first_line(error)})"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayJobError(
            f"{address}: no Ray dashboard answers there ({first_line(error)}). It listens on the head only; bring it "
            "here with `ray dashboard cluster.yaml` or `kubectl port-forward`"
        ) from None
    finally:
        os.environ.update(hidden)


def _with_absolute_paths(spec: JobSpec) -> JobSpec:
    """The job's driver starts in a folder of its own; relative paths are those of the folder this was called in."""
    image_root = spec.input.image_root
    update = {"path": tuple(_absolute(path) for path in spec.input.path)}
    if image_root is not None:
        update["image_root"] = _absolute(image_root)  # type: ignore[assignment]
    folders = {"path": spec.model.path, "adapter": spec.model.adapter or ""}
    folders = {name: path for name, path in folders.items() if path.startswith((".", "~")) or os.path.isdir(path)}
    model = spec.model.model_copy(update={name: _absolute(path) for name, path in folders.items()})
    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update=update),
            "model": model,
            "output": spec.output.model_copy(update={"path": _absolute(spec.output.path)}),
        }
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if parse_uri(path) is None else path


def _retriable(spec: JobSpec, job_id: str) -> JobSpec:
    if not _JOB_ID.fullmatch(job_id):
        raise SpecError([f"got {job_id!r}; allowed: letters, digits, '.', '_' and '-'"], "--job-id")
    if spec.output.mode == "overwrite":
        raise SpecError(["resumes the same run, and output.mode overwrite begins anew; leave one out"], "--job-id")
    if spec.output.mode == "append":
        return spec
    return spec.model_copy(update={"output": spec.output.model_copy(update={"mode": "resume"})})


def _digest(spec: JobSpec) -> str:
    """Tells one job's spec from another's."""
    content = spec.model_dump(mode="json")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
