"""The library without torch, in processes that prepare rows and compute nothing with it.

Its tokenizers and its processors of PIL pictures work where torch is not installed, but where it is they import it,
which costs each process several times what they need themselves (`bench/RESULTS.md`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

_QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # it advises to install torch


@contextmanager
def without_torch() -> Iterator[None]:
    """While open, the library is imported as if there were no torch, and stays so in this process.

    Does nothing where either is imported already.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    modules = cast(dict[str, object], sys.modules)
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"
    modules["torch"] = None  # Python's way to say that there is none
    try:
        import transformers.utils.import_utils

        transformers.utils.import_utils.is_torch_available()  # it remembers its first answer
        yield
    finally:
        if modules.get("torch", ...) is None:
            del modules["torch"]
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before
