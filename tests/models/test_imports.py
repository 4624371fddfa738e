"""What a worker imports to load and run a model: seconds of every start, and what a release elsewhere can break."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_RUN = """
import sys
from ray_job.engine.interface import run
from ray_job.models.engines import load_engine
from ray_job.models.loading import load_processor
from ray_job.prompts.parts import Message, Special, Text
from ray_job.rows import Sample
from ray_job.spec import GenerationParams, JobSpec

spec = JobSpec.model_validate({
    "input": {"path": "rows.parquet"}, "prompt": {"template": "What?"}, "output": {"path": "answers"},
    "model": {"device": "cpu"}, "batching": {"engine": sys.argv[1]},
})
processor = load_processor(spec.model)
ids = processor.encode(processor.chat_parts([Message("user", (Text("What is it?"),))]), [])
(result,) = run(load_engine(spec), [Sample(0, ids, [], GenerationParams(max_new_tokens=3))])
assert result.completion_tokens == 3 or result.finish_reason == "stop", result
print(sorted(set(sys.modules) & {"transformers", "ray", "huggingface_hub", "torch._dynamo", "sympy"}))
"""


@pytest.mark.parametrize("engine", ["continuous", "static"])
def test_loading_and_running_a_model_imports_neither_the_library_nor_a_compiler(engine: str) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, engine], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_library_is_imported_for_its_own_models_and_by_benchmarks_alone() -> None:
    depths = {"models": 2, "demo": 3}  # of a room in the package, else 1
    users = {
        (parts := file.relative_to(ROOT / "ray_job").parts)[: depths.get(parts[0], 1)]
        for file in (ROOT / "ray_job").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "transformers" for alias in node.names))
    }
    assert users == {("bench",), ("demo", "training", "llava_next"), ("models", "auto"), ("models", "vllm")}
