"""How the demo's model was trained: `python -m ray_job.demo.training.train --out DIR`."""
