"""`python -m ray_job join OUT --to DIR`: what was answered about documents' pages, put together again by document.

    DIR/a/report.md                           the answers in page order, for each document
    DIR/documents.parquet/part-00000.parquet  a row for each document, with the place of each page in its text

The parts are read twice, in the order of the documents; at once in memory is a batch of documents, and for each
document of the output its name and size, some 300 bytes.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_job.arrow.column_types import filtered
from ray_job.errors import SpecError
from ray_job.output.compaction import read_part
from ray_job.output.joined_text import SPAN_TYPE, PageAnswer, joined
from ray_job.output.ledger import Ledger, Part
from ray_job.output.manifest import Manifest, State
from ray_job.rows import Status
from ray_job.storage.places import Location
from ray_job.storage.whole_files import part_files, remove, write_whole

TABLE = "documents.parquet"
SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("num_pages", pa.int32()),  # of the document, whether asked about or not; null where it could not be opened
        ("text", pa.large_string()),
        ("pages", pa.list_(SPAN_TYPE)),
    ]
)
_BATCH_BYTES = 64 * 2**20
_COLUMNS = ("document", "page", "last_page", "num_pages", "generated_text", "status", "error")


@dataclass(slots=True)
class _Document:
    """What must be known of a document before its answers are read."""

    first_key: int
    num_bytes: int = 0
    parts: list[int] = field(default_factory=list)  # indices


@dataclass(frozen=True, slots=True)
class Joined:
    """What a join wrote."""

    documents: int
    answered: int  # records: a page, or a few of them, or one question about them
    failed: int
    is_whole: bool  # whether the run had come to its end
    target: str

    def table(self) -> str:
        """For people."""
        lines = [f"documents  {self.documents}", f"answers    {self.answered}", f"failed     {self.failed}"]
        if not self.is_whole:
            lines.append("the run is not finished: pages are missing; finish it with --mode resume and join again")
        return "\n".join([*lines, f"written    {self.target}"])


def join(root: Location, target: Location, batch_bytes: int = _BATCH_BYTES) -> Joined:
    """Writes each document's answers; what an earlier join wrote under the same names is replaced.

    Args:
        root: the output.
        target: a folder, made where there is none.
        batch_bytes: of answers held at once; a document with more is held whole.

    Raises:
        SpecError: there is no output, or its rows do not say of which document and page they are.
        RayJobError: the storage fails, or a part is damaged.
    """
    manifest, ledger = Manifest.of_output(root), Ledger.scan(root)
    documents = _documents(root, ledger)
    names = markdown_names(documents)
    answered = failed = num_written = 0
    for number, batch in enumerate(_batches(documents, batch_bytes)):
        rows = []
        for name, (num_pages, answers) in _answers(ledger, documents, batch).items():
            text, spans = joined(answers)
            write_whole(target, names[name], text.encode(errors="replace"))
            rows.append({"document": name, "num_pages": num_pages, "text": text, "pages": spans})
            failed += sum(span["error"] is not None for span in spans)
            answered += sum(span["error"] is None for span in spans)
        _write_table(target, number, rows)
        num_written = number + 1
    if not num_written:
        _write_table(target, 0, [])
    stale = [f"{TABLE}/{info.base_name}" for info in part_files(target, TABLE)][max(1, num_written) :]
    remove(target, stale)
    return Joined(len(documents), answered, failed, manifest.state == State.COMPLETED, str(target))


def _documents(root: Location, ledger: Ledger) -> dict[str, _Document]:
    """The documents of an output in the order of the input."""
    documents: dict[str, _Document] = {}
    for index, part in enumerate(ledger.parts):
        if not {"document", "page"} <= set(_columns(part)):
            text = "its rows do not say of which document and page they are; keep the columns `document` and `page`"
            raise SpecError([f"{root}: {text}, a text and a whole number (input.keep_columns)"])
        table = _counted(ledger, index, ["document", "generated_text"])
        lengths = pc.fill_null(pc.binary_length(table.column("generated_text")), 0).to_pylist()
        keys = part.account.keys[ledger.counts_of(index)].tolist()
        for name, num_bytes, key in zip(table.column("document").to_pylist(), lengths, keys, strict=True):
            document = documents.setdefault(_shown(name), _Document(key))
            document.first_key = min(document.first_key, key)
            document.num_bytes += num_bytes
            if index not in document.parts[-1:]:
                document.parts.append(index)
    return dict(sorted(documents.items(), key=lambda item: item[1].first_key))


def _batches(documents: dict[str, _Document], batch_bytes: int) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for name, document in documents.items():
        if batch and held + document.num_bytes > batch_bytes:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += document.num_bytes
    if batch:
        yield batch


def _answers(
    ledger: Ledger, documents: dict[str, _Document], batch: Collection[str]
) -> dict[str, tuple[int | None, list[PageAnswer]]]:
    """By document, how many pages it has, and what was answered about them."""
    found: dict[str, tuple[int | None, list[PageAnswer]]] = {name: (None, []) for name in batch}
    for index in sorted({index for name in batch for index in documents[name].parts}):
        part = ledger.parts[index]
        columns = _columns(part)
        keys = part.account.keys[ledger.counts_of(index)].tolist()
        for row, key in zip(_counted(ledger, index, columns).to_pylist(), keys, strict=True):
            name = _shown(row["document"])
            if name in found:
                num_pages, answers = found[name]
                found[name] = (num_pages or row.get("num_pages"), answers)
                answers.append(_answer(key, row))
    return found


def _columns(part: Part) -> list[str]:
    """Those of a part that a join reads, where they have the types that documents give them."""
    integers = ("page", "last_page", "num_pages")
    found = [part.schema.field(name) for name in _COLUMNS if name in part.schema.names]
    is_right = dict.fromkeys(integers, pa.types.is_integer) | {"document": pa.types.is_string}
    return [field.name for field in found if field.name not in is_right or is_right[field.name](field.type)]


def _answer(key: int, row: dict[str, Any]) -> PageAnswer:
    error = row["error"]
    text = f"{error['code']}: {error['message']}" if isinstance(error, dict) else None
    if text is None and row["status"] != str(Status.OK):
        text = "no reason was recorded"
    return PageAnswer(key, row["page"], row.get("last_page"), row["generated_text"], row["status"], text)


def _counted(ledger: Ledger, index: int, columns: list[str]) -> pa.Table:
    """The records of a part that count."""
    part: Part = ledger.parts[index]
    return filtered(read_part(part, columns), pa.array(ledger.counts_of(index)))


def _write_table(target: Location, number: int, rows: list[dict[str, Any]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    write_whole(target, f"{TABLE}/part-{number:05}.parquet", sink.getvalue())


def markdown_names(documents: Iterable[str]) -> dict[str, str]:
    """For each document the path of its Markdown below the target: its own name, and no two the same."""
    safe = {name: _safe(name) for name in documents}
    stems = Counter(posixpath.splitext(path)[0] for path in safe.values())
    folders = {TABLE, *(folder for path in safe.values() for folder in _folders(path))}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name, path in safe.items():
        stem = posixpath.splitext(path)[0]
        candidates = [f"{stem}.md"] if stems[stem] == 1 else []
        candidates += [f"{path}.md", *(f"{path}-{number}.md" for number in range(2, len(safe) + 3))]
        names[name] = next(each for each in candidates if each not in taken and each not in folders)
        taken.add(names[name])
    return names


def _folders(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _safe(name: str) -> str:
    """A relative path that cannot leave the folder it is put in."""
    kept = "".join(char if char.isprintable() else "_" for char in name.replace("\\", "/"))
    return "/".join("_" if part.strip() in ("", ".", "..") else part for part in kept.split("/"))


def _shown(name: object) -> str:
    """What a document is called: rows whose column is null belong to one without a name."""
    return "unnamed" if name is None or name == "" else str(name)
