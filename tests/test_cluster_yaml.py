"""`cluster.yaml` is what Ray's own schema accepts, and keeps the promises its comments make."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parent.parent / "cluster.yaml"


def test_ray_accepts_the_cluster() -> None:
    validate_config(prepare_config(yaml.safe_load(FILE.read_text())))


def test_the_head_does_no_work_and_shows_no_dashboard_to_the_world() -> None:
    config = yaml.safe_load(FILE.read_text())
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
