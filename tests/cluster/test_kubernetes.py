"""Kubernetes manifests: the fields that KubeRay and Kubernetes publish, and retries that lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_job import JobSpec
from ray_job.cli import main

# KubeRay's custom resource definitions are in no package. These are the fields of its API reference (v1.7) and of
# Kubernetes' pods as far as a manifest of ours may have them: name → type, or the fields of an object.
_CONTAINER = {
    "name": str,
    "image": str,
    "resources": {"requests": {str: str}, "limits": {str: str}},
    "envFrom": [{"secretRef": {"name": str}}],
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
_VOLUME = {"name": str, "configMap": {"name": str}, "persistentVolumeClaim": {"claimName": str}}
_GROUP = {"rayStartParams": {str: str}, "template": {"spec": {"containers": [_CONTAINER], "volumes": [_VOLUME]}}}
_CLUSTER: dict[str, Any] = {
    "rayVersion": str,
    "enableInTreeAutoscaling": bool,
    "authOptions": {"mode": str},
    "headGroupSpec": {**_GROUP, "serviceType": str},
    "workerGroupSpecs": [{**_GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}],
}
_RAY_JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "submitterConfig": {"backoffLimit": int},
    "rayClusterSpec": _CLUSTER,
}
_METADATA = {"name": str, "namespace": str, "labels": {str: str}}
_KINDS = {
    "RayJob": {"apiVersion": str, "kind": str, "metadata": _METADATA, "spec": _RAY_JOB},
    "RayCronJob": {
        "apiVersion": str,
        "kind": str,
        "metadata": _METADATA,
        "spec": {"schedule": str, "timeZone": str, "jobTemplate": _RAY_JOB},
    },
}


def check(value: Any, kind: Any, path: str) -> None:
    """Fails at a field that is unknown, or of another type."""
    if isinstance(kind, list):
        for item in value:
            check(item, kind[0], f"{path}[]")
    elif isinstance(kind, dict) and str in kind:
        assert all(type(name) is str and type(item) is str for name, item in value.items()), path
    elif isinstance(kind, dict):
        for name, item in value.items():
            assert name in kind, f"{path}.{name}"
            check(item, kind[name], f"{path}.{name}")
    else:
        assert type(value) is kind, path


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    spec = {
        "input": {"path": "s3://photos/2026"},
        "prompt": {"template": "What is it?\nSay it briefly."},
        "model": {"path": "/models/phi-3-vision"},
        "workers": {"min_actors": 2, "max_actors": 6, "gpus_per_actor": 0.5},
        "output": {"path": "/mnt/answers/photos"},
    }
    path = tmp_path / "photos.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the job."""
    assert main(["manifest", *arguments]) == 0
    config, job = yaml.safe_load_all(capsys.readouterr().out)
    return config, job


@pytest.mark.parametrize("kind", ["rayjob", "raycronjob"])
def test_a_manifest_has_the_published_fields(kind: str, spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {
        "rayjob": ["--queue", "gpus", "--namespace", "team"],
        "raycronjob": ["--schedule", "0 3 * * *", "--time-zone", "Europe/Berlin"],
    }[kind]
    arguments = [kind, str(spec_file), "--image", "registry/ray_job:1", "--claim", "answers:/mnt/answers", *extra]
    config, job = written(capsys, *arguments, "--secret", "bucket-keys")
    check(config, {"apiVersion": str, "kind": str, "metadata": _METADATA, "data": {str: str}}, "ConfigMap")
    assert (job["apiVersion"], job["kind"].lower()) == ("ray.io/v1", kind)
    check(job, _KINDS[job["kind"]], job["kind"])
    body = job["spec"] if kind == "rayjob" else job["spec"]["jobTemplate"]
    mode = {"rayjob": "resume", "raycronjob": "append"}[kind]
    assert body["entrypoint"].endswith(f"--mode {mode}"), "a retry goes on, it does not begin anew"
    (workers,) = body["rayClusterSpec"]["workerGroupSpecs"]
    # Two actors share a GPU, and a pod has one. Kueue wants a job of one size.
    assert (workers["minReplicas"], workers["maxReplicas"]) == {"rayjob": (3, 3), "raycronjob": (1, 3)}[kind]
    assert body["rayClusterSpec"]["enableInTreeAutoscaling"] == (kind == "raycronjob")
    head = body["rayClusterSpec"]["headGroupSpec"]
    for pod in (head["template"], workers["template"]):
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in mounts} == volumes
        assert "/mnt/answers" in {mount["mountPath"] for mount in mounts}
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert head["serviceType"] == "ClusterIP"
    assert (
        body["entrypoint"].split()[4]
        == f"{head['template']['spec']['containers'][0]['volumeMounts'][0]['mountPath']}/job.yaml"
    )
    carried = JobSpec.from_dict(yaml.safe_load(config["data"]["job.yaml"]))
    assert carried == JobSpec.from_yaml(spec_file)
    if kind == "rayjob":
        assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}


def test_a_wrong_field_would_be_seen(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, job = written(capsys, "rayjob", str(spec_file), "--image", "i", "--claim", "answers:/mnt/answers")
    for breakage in (
        lambda body: body.update(backOffLimit=1),
        lambda body: body["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda body: body["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(conteners=[]),
    ):
        broken = json.loads(json.dumps(job["spec"]))
        breakage(broken)
        with pytest.raises(AssertionError):
            check(broken, _RAY_JOB, "RayJob")


def test_what_would_not_work_there_is_said_at_once(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["raycronjob", str(spec_file), "--image", "i", "--name", "Photos", "--queue", "q"]
    places = ["--set", "input.path=photos/", "--set", "output.path=s3://key:secret@answers"]
    places += ["--set", "model.adapter=./tuned"]
    assert main(["manifest", *arguments, *places]) == 2
    said = capsys.readouterr().err
    assert "6 problems" in said
    assert "model.adapter: ./tuned is relative; use a path in the image" in said
    assert "input.path: photos/ is on no volume" in said
    assert "put them into --secret" in said
    assert "--name: got 'Photos'" in said
    assert "--schedule: got None; five fields" in said
    assert "--queue: KubeRay does not label the jobs of a RayCronJob" in said
    assert "secret@" not in said
