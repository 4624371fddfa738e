"""What a process of vLLM's own runs, where a model is split over several: named to it as `worker_extension_cls`.

vLLM imports this module in each of them before it builds the model, so that they know the models of this package, and
end with the actor however that ends: a worker that waits for a dead neighbour would otherwise hold its GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

from ray_job.models.vllm import phi3_vision

EXTENSION = f"{__name__}.Extension"
_EXIT_CODE = 70


class Extension:
    """Adds nothing to vLLM's worker."""


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:  # vLLM computes in the actor's own process
        return

    def wait() -> None:
        parent.join()
        os._exit(_EXIT_CODE)

    threading.Thread(target=wait, name="parent watch", daemon=True).start()


phi3_vision.register()
_end_with_parent()
