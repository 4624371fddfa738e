"""`cluster.yaml` is what Ray's own schema accepts, and keeps the promises its comments make."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def test_ray_accepts_the_cluster_and_would_refuse_a_wrong_one(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))
    config["available_node_types"]["gpu_spot"]["resources"] = {"CPU": 8, "GPU": 0.5}
    with pytest.raises(Exception, match=r"0\.5"):
        validate_config(prepare_config(config))


def test_the_head_does_no_work_and_workers_are_spot_and_on_demand(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    gpus = {name: kind for name, kind in types.items() if kind["resources"].get("GPU")}
    spot = {name for name, kind in gpus.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"gpu_spot"}
    (steady,) = (kind for name, kind in gpus.items() if name not in spot)
    assert steady["min_workers"] >= 1
    assert config["max_workers"] == sum(kind["max_workers"] for kind in gpus.values())


def test_every_machine_starts_with_a_token(config: dict[str, Any]) -> None:
    starts = [
        line
        for line in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"])
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])


def test_no_dashboard_of_ours_is_open_to_the_world() -> None:
    files = [FILE, ROOT / "README.md", *ROOT.glob("ray_job/**/*.py"), *ROOT.glob("tests/**/*.py")]
    hosts = {host for file in files for host in re.findall(r"dashboard[-_]host[= ]+['\"]?([\w.]+)", file.read_text())}
    assert hosts == {"127.0.0.1"}
