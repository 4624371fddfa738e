"""A job as a Kubernetes manifest for KubeRay: a RayJob, or a RayCronJob (KubeRay 1.6 or newer), with its own cluster.

Retries are safe because every attempt continues the same output: the entrypoint resumes, or appends where a schedule
runs it again and again. The spec lies in a ConfigMap beside it. Knows nothing of Ray.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ray_job.errors import SpecError
from ray_job.output.manifest import public_spec
from ray_job.spec import JobSpec
from ray_job.storage.places import parse_uri

RAY_VERSION = "2.60.0"
_FOLDER = "/etc/ray_job"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = 47  # KubeRay's own names are made from it
_CRON_FIELDS = 5
_STOP_WAIT_S = 15  # beyond limits.grace_s


@dataclass(frozen=True, slots=True)
class Claim:
    """A persistent volume claim and where it is mounted, on every node."""

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Claim:
        """From NAME:/PATH.

        Raises:
            SpecError: it is not of that form.
        """
        name, colon, path = text.partition(":")
        if not (_NAME.fullmatch(name) and colon and path.startswith("/")):
            raise SpecError([f"got {text!r}; allowed: NAME:/PATH"], "--claim")
        return cls(name, path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class KubeOptions:
    """What a manifest needs beside the spec."""

    name: str
    image: str  # with this package, and the Ray version of RAY_VERSION
    namespace: str | None = None
    gpus: int = 1  # of a worker's machine; 0: no GPU
    cpus: int = 8
    memory: str = "32Gi"
    deadline_s: int = 24 * 3600
    retries: int = 3
    ttl_s: int = 600
    queue: str | None = None  # of Kueue
    schedule: str | None = None  # of a RayCronJob: five cron fields
    time_zone: str | None = None  # of the schedule, such as Europe/Berlin; KubeRay 1.7
    claims: tuple[Claim, ...] = ()
    secret: str | None = None  # whose keys become environment variables, such as AWS_ACCESS_KEY_ID


def manifest(kind: Literal["rayjob", "raycronjob"], spec: JobSpec, options: KubeOptions) -> str:
    """The YAML for `kubectl apply -f -`.

    Raises:
        SpecError: something would not work there, every problem at once.
    """
    problems = [*_path_problems(spec, options.claims), *_option_problems(kind, options), *_gpu_problems(spec, options)]
    if problems:
        raise SpecError(problems, "manifest")
    metadata: dict[str, Any] = {"name": options.name}
    if options.namespace is not None:
        metadata["namespace"] = options.namespace
    job = _job(spec, options, mode="append" if kind == "raycronjob" else "resume")
    if kind == "raycronjob":
        zone = {"timeZone": options.time_zone} if options.time_zone else {}
        body = {
            "kind": "RayCronJob",
            "metadata": metadata,
            "spec": {"schedule": options.schedule, **zone, "jobTemplate": job},
        }
    else:
        labels = {"labels": {"kueue.x-k8s.io/queue-name": options.queue}} if options.queue else {}
        body = {"kind": "RayJob", "metadata": {**metadata, **labels}, "spec": job}
    data = yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"job.yaml": data}}
    documents = [config, {"apiVersion": "ray.io/v1", **body}]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _gpu_problems(spec: JobSpec, options: KubeOptions) -> list[str]:
    gpus = spec.workers.gpus_per_actor
    if gpus == "auto" or gpus <= max(1, options.gpus):
        return []
    return [f"--gpus: got {options.gpus}; workers.gpus_per_actor asks for {gpus:g} on one machine; raise it"]


def _job(spec: JobSpec, options: KubeOptions, mode: str) -> dict[str, Any]:
    """A RayJobSpec."""
    stop_wait_s = int(spec.limits.grace_s) + _STOP_WAIT_S
    return {
        "entrypoint": f"python -m ray_job run {_FOLDER}/job.yaml --mode {mode}",
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s)}}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.ttl_s,
        "activeDeadlineSeconds": options.deadline_s,
        "backoffLimit": options.retries,
        # A second `ray job submit` on the same cluster is no retry; a new cluster is (backoffLimit).
        "submitterConfig": {"backoffLimit": 0},
        "rayClusterSpec": _cluster(spec, options),
    }


def _cluster(spec: JobSpec, options: KubeOptions) -> dict[str, Any]:
    """A RayClusterSpec: a head that does no work, and workers as many as the spec has actors for."""
    workers = spec.workers
    share = 1.0 if workers.gpus_per_actor == "auto" else workers.gpus_per_actor
    per_machine = max(1, int(options.gpus / share)) if options.gpus and share else 1
    min_machines, max_machines = (
        -(-count // per_machine) for count in (workers.min_actors, workers.max_actors or workers.min_actors)
    )
    if options.queue is not None:
        min_machines = max_machines  # Kueue admits a job whole and refuses one that grows by itself
    spec_volume = {"name": "spec", "configMap": {"name": options.name}}
    spec_mount = {"name": "spec", "mountPath": _FOLDER, "readOnly": True}
    head = _pod(options, "ray-head", {"cpu": "2", "memory": "8Gi"}, [spec_volume], [spec_mount])
    resources: dict[str, str] = {"cpu": str(options.cpus), "memory": options.memory}
    if options.gpus:
        resources["nvidia.com/gpu"] = str(options.gpus)
    # Ray counts the CPUs and GPUs of a worker from its limits; the head has none to give.
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": max_machines > min_machines,
        "headGroupSpec": {"serviceType": "ClusterIP", "rayStartParams": {"num-cpus": "0"}, "template": head},
        "workerGroupSpecs": [
            {
                "groupName": "gpu" if options.gpus else "cpu",
                "replicas": min_machines,
                "minReplicas": min_machines,
                "maxReplicas": max_machines,
                "rayStartParams": {},
                "template": _pod(options, "ray-worker", resources, [], []),
            }
        ],
    }


def _pod(
    options: KubeOptions,
    name: str,
    resources: dict[str, str],
    volumes: Sequence[dict[str, Any]],
    mounts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """A PodTemplateSpec with the claims mounted; requests equal limits, so that no neighbour takes its memory."""
    claims = {claim.name: claim for claim in options.claims}
    container: dict[str, Any] = {
        "name": name,
        "image": options.image,
        "resources": {"requests": resources, "limits": dict(resources)},
    }
    if options.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": options.secret}}]
    mounted = [*mounts, *({"name": claim.name, "mountPath": claim.path} for claim in claims.values())]
    if mounted:
        container["volumeMounts"] = mounted
    pod: dict[str, Any] = {"containers": [container]}
    held = [*volumes, *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims)]
    if held:
        pod["volumes"] = held
    return {"spec": pod}


def _path_problems(spec: JobSpec, claims: Sequence[Claim]) -> list[str]:
    """Paths that a pod does not have, or loses when it ends; credentials that the ConfigMap would show."""
    problems = []
    places = [("input.path", path) for path in spec.input.path]
    places += [("input.image_root", path) for path in (spec.input.image_root,) if path is not None]
    for name, path in (*places, ("output.path", spec.output.path)):
        if parse_uri(path) is None and not any(f"{path}/".startswith(f"{claim.path}/") for claim in claims):
            problems.append(f"{name}: {path} is on no volume of the cluster; use a URI, or mount one with --claim")
    for name, path in (("model.path", spec.model.path), ("model.adapter", spec.model.adapter or "")):
        if path.startswith((".", "~")):
            problems.append(f"{name}: {path} is relative; use a path in the image or on a claim, or a URI")
    dump = spec.model_dump(mode="json")
    if public_spec(spec) != dump:
        problems.append("a URI carries credentials or options, which a ConfigMap shows; put them into --secret")
    return problems


def _option_problems(kind: str, options: KubeOptions) -> list[str]:
    problems = []
    if not _NAME.fullmatch(options.name) or len(options.name) > _MAX_NAME:
        problems.append(
            f"--name: got {options.name!r}; allowed: up to {_MAX_NAME} lower-case letters, digits and '-', a letter "
            "first"
        )
    if kind == "raycronjob" and len((options.schedule or "").split()) != _CRON_FIELDS:
        problems.append(f"--schedule: got {options.schedule!r}; five fields as in '0 3 * * *'")
    if kind == "rayjob" and (options.schedule or options.time_zone):
        problems.append("--schedule and --time-zone go with raycronjob")
    if kind == "raycronjob" and options.queue is not None:
        problems.append("--queue: KubeRay does not label the jobs of a RayCronJob, so Kueue would not see them")
    return problems


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as people write them, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
