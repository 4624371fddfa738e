"""`python -m ray_job.bench.recipe_job JOB.yaml`: the job as the published recipe does it.

One actor, batches of 8 in file order, pictures decoded beside the model: read_parquet → map_batches → write_parquet.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ray_job.bench.baselines import BATCH_ROWS, recipe
from ray_job.bench.peers.rows import answer_text, sample_of
from ray_job.models.loading import model_folder
from ray_job.models.phi3_vision.processor import Phi3VisionProcessor
from ray_job.models.phi3_vision.weights import load
from ray_job.spec import JobSpec
from ray_job.stages.open_job import open_job


class Recipe:
    """The actor."""

    def __init__(self, spec: JobSpec) -> None:
        spec, _, self._preparer = open_job(spec)
        self._processor = Phi3VisionProcessor.from_pretrained(model_folder(spec.model), spec.model.num_crops)
        # In the very dtype, as a recipe would have it; `load_model` computes in float32 where that is faster.
        self._model = load(model_folder(spec.model), dtype=getattr(torch, spec.model.dtype))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        samples = [sample_of(self._preparer, row) for row in rows]
        answers = recipe(self._model, samples, self._processor.num_crops)
        return {
            "row_id": batch["id"],
            "generated_text": [answer_text(self._processor, answers[sample.key]) for sample in samples],
        }


def main() -> None:
    """Does the job of the spec named on the command line."""
    import ray.data

    spec = JobSpec.from_yaml(sys.argv[1])
    rows = ray.data.read_parquet(list(spec.input.path))
    answered = rows.map_batches(
        Recipe,
        fn_constructor_args=(spec,),
        batch_size=BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    answered.write_parquet(spec.output.path)


if __name__ == "__main__":
    main()
