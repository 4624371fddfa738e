"""vLLM's engine behind this package's `Engine` (`batching.engine: vllm`). Start with `loading.py`.

It stands among the models since vLLM knows them by name: which checkpoint it serves, and how its pictures are handed
over, is said here. Only `engine.py`, `loading.py`, `phi3_vision.py` and `worker.py` import vLLM, and nothing imports
them but a process that computes with it.
"""
