"""LLaVA-NeXT in small, a model of the library's own code, from the weights of the demo's model."""

from ray_job.demo.training.llava_next.architecture import LlavaNext as LlavaNext
