"""Pages of scanned documents a second, broken ones among them: prepared alone, and answered by a whole job.

    python -m ray_job bench documents --pages 200

Every tenth document is damaged: cut short, a page of HTML, or locked for ever in one form nested in the next.
Figures are in `bench/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from ray_job.bench.engine import commit
from ray_job.spec import JobSpec

_DPI = 150
_PAGES_A_DOCUMENT = 10
_NESTED_FORMS = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m ray_job bench documents", description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=200, metavar="N", help="of the good documents (%(default)s)")
    parser.add_argument("--model", default="builtin:demo", help="a model's folder, builtin:demo or builtin:noop")
    parser.add_argument("--num-crops", type=int, default=16, metavar="N", help="of a page (%(default)s)")
    parser.add_argument("--deadline-s", type=float, default=5.0, metavar="S", help="of a page (%(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(folder / "in", arguments.pages)
        spec = JobSpec.from_dict(
            {
                "input": {"path": str(folder / "in")},
                "documents": {"deadline_s": arguments.deadline_s},
                "prompt": {"template": "What does this page say?"},
                "model": {"path": arguments.model, "num_crops": arguments.num_crops},
                "generation": {"max_new_tokens": 16},
                "output": {"path": str(folder / "out")},
            }
        )
        result = {**_prepare_alone(spec), **_whole_job(spec)}
    for key, value in result.items():
        print(f"{key:<22}{value}")
    print(json.dumps({"cpus": os.cpu_count(), "commit": commit(), "pages": arguments.pages, **result}))
    return 0


def _prepare_alone(spec: JobSpec) -> dict[str, Any]:
    """Pages a second in one process, and the memory of it and of the process that draws, at the first and last page."""
    from ray_job.inputs.documents.process import shared_process
    from ray_job.inputs.source import iter_tables
    from ray_job.rows import POSITION, SAMPLES
    from ray_job.stages.open_job import open_job

    started_s = time.monotonic()
    _, source, preparer = open_job(spec)
    counted_s = time.monotonic() - started_s
    codes: Counter[str] = Counter()
    memory: list[tuple[float, float]] = []
    started_s = time.monotonic()
    for table in iter_tables(source, spec.batching.block_rows):
        prepared = preparer(table.add_column(0, POSITION, pa.array(range(table.num_rows), pa.int64())))
        codes.update(sample["error"]["code"] if sample["error"] else "ok" for (sample,) in _samples(prepared, SAMPLES))
        child = shared_process().pid
        memory.append((_resident_mib(os.getpid()), _resident_mib(child) if child is not None else 0.0))
    seconds = time.monotonic() - started_s
    return {
        "rows": source.num_rows,
        "codes": dict(codes),
        "counted_s": round(counted_s, 2),
        "prepare_s": round(seconds, 2),
        "prepare_pages_per_s": round(codes["ok"] / seconds, 2),
        "memory_mib": [[round(mib) for mib in each] for each in (memory[0], memory[len(memory) // 2], memory[-1])],
    }


def _samples(prepared: pa.Table, column: str) -> list[list[dict[str, Any]]]:
    samples: list[list[dict[str, Any]]] = prepared.column(column).to_pylist()
    return samples


def _whole_job(spec: JobSpec) -> dict[str, Any]:
    from ray_job.cluster.session import ray_session
    from ray_job.job import run_job

    with ray_session():
        started_s = time.monotonic()
        report = run_job(spec, stream=io.StringIO())
        seconds = time.monotonic() - started_s
    totals = report.totals
    return {
        "answered": totals.answered,
        "failed": totals.error_codes,
        "job_s": round(seconds, 2),
        "job_pages_per_s": round(totals.answered / seconds, 2),
    }


def write_documents(folder: Path, num_pages: int, seed: int = 0) -> None:
    """Scans of so many pages, ten in a document, and a damaged one for every ten of them."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    for number, start in enumerate(range(0, num_pages, _PAGES_A_DOCUMENT)):
        count = min(_PAGES_A_DOCUMENT, num_pages - start)
        first, *others = [_scan(rng) for _ in range(count)]
        file = folder / f"{number:05}.pdf"
        first.save(file, "PDF", resolution=_DPI, save_all=True, append_images=others, quality=80)
        if number % 10 == 0:
            (folder / f"{number:05}-cut.pdf").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            (folder / f"{number:05}-html.pdf").write_text("<html>404</html>")
            (folder / f"{number:05}-hangs.pdf").write_bytes(_nested_forms())


def _scan(rng: random.Random) -> Image.Image:
    """An A4 page of words."""
    page = Image.new("RGB", (round(8.27 * _DPI), round(11.69 * _DPI)), (250, 248, 240))
    draw = ImageDraw.Draw(page)
    for top in range(100, page.height - 100, 24):
        draw.text((80, top), " ".join(f"{rng.randrange(16**5):05x}" for _ in range(16)), fill=(20, 20, 30))
    return page


def _nested_forms() -> bytes:
    """A page of forms that each draw the next one twice."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        "/Resources << /XObject << /X 5 0 R >> >> >>",
        "<< /Length 5 >>\nstream\n/X Do\nendstream",
    ]
    for number in range(5, 5 + _NESTED_FORMS):
        objects.append(
            f"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X {number + 1} 0 R >> >> "
            "/Length 11 >>\nstream\n/X Do /X Do\nendstream"
        )
    objects.append("<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 11 >>\nstream\n0 0 9 9 re f\nendstream")
    body = "".join(f"{number} 0 obj\n{text}\nendobj\n" for number, text in enumerate(objects, start=1))
    return f"%PDF-1.7\n{body}trailer\n<< /Root 1 0 R /Size {len(objects) + 1} >>\n%%EOF\n".encode()


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
