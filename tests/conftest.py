"""Fixtures for all tests: the golden tiny model, a small Ray, an S3 server."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

# As a local Ray that a job starts: threads that spin for each other starve the processes beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GOLDEN = Path(__file__).parent / "models" / "phi3_vision" / "golden"


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes by their argument's name: processes that share the tests must agree, and gzip's hold the time."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Modules and collected tests are never garbage: whole collections, such as an engine's, need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def official() -> Path:
    """Folder with the published small files of Phi-3-vision-128k-instruct; not part of this repository."""
    default = Path(__file__).parents[1].parent / "shared" / "oracle" / "phi3-vision-files"
    folder = Path(os.environ.get("PHI3_VISION_FILES", default))
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the official Phi-3-vision files are absent; name their folder in PHI3_VISION_FILES")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden tiny model as a loadable folder: its tower's shape merged into config.json."""
    folder = tmp_path_factory.mktemp("tiny")
    for file in (GOLDEN / "tiny-mha").iterdir():
        shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    config["img_processor"]["vision_config"] = json.loads((folder / "oracle_clip_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other are many times slower than one on a machine with other work."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for a module; every job in it finds it running and leaves it so."""
    with small_ray():
        yield


@contextmanager
def small_ray(**options: Any) -> Iterator[None]:
    """A Ray of this process's own on two cores; `options` are `ray.init`'s."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    sizes = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, **sizes | options)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="session")
def moto_env(moto: str) -> dict[str, str]:
    """The environment that leads to it."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": moto,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def s3_store(moto: str, moto_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> fs.S3FileSystem:
    """That server, where buckets can be made; this process's environment leads to it."""
    for name, value in moto_env.items():
        monkeypatch.setenv(name, value)
    patience = {"request_timeout": 60, "connect_timeout": 60}  # the server's first answer takes seconds
    return fs.S3FileSystem(endpoint_override=moto, region="us-east-1", allow_bucket_creation=True, **patience)
