"""A Parquet row group as pieces of bounded size, however many rows and bytes it has.

What is held at once is one page of each column (as it is stored and as it is read), and one piece. Writers decide how
large a page is: Arrow's puts up to 1024 values into one, whatever their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

PIECE_BYTES = 8 * 2**20
_FEW_ROWS = 4
_LARGE_ROW_BYTES = 64 * 2**10
_NUMBER_BYTES = 8
_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


def iter_pieces(file: pq.ParquetFile, group: int, names: Sequence[str], max_rows: int) -> Iterator[pa.RecordBatch]:
    """The row group's rows in order, in pieces of at most `max_rows` rows and about PIECE_BYTES.

    A piece is larger only by the rows that were decoded together last: one, or a few where rows are small on average.
    """
    num_rows = rows_at_once(file.metadata.row_group(group), names, max_rows)
    held: list[pa.RecordBatch] = []
    held_rows = held_bytes = 0
    for batch in file.iter_batches(batch_size=num_rows, row_groups=[group], columns=names, use_threads=False):
        if held and held_rows + batch.num_rows > max_rows:
            yield _joined(held)
            held, held_rows, held_bytes = [], 0, 0
        held.append(batch)
        held_rows += batch.num_rows
        held_bytes += batch.nbytes
        if held_rows == max_rows or held_bytes >= PIECE_BYTES:
            yield _joined(held)
            held, held_rows, held_bytes = [], 0, 0
    if held:
        yield _joined(held)


def rows_at_once(group: pq.RowGroupMetaData, names: Sequence[str], max_rows: int) -> int:
    """How many rows to decode together: `max_rows` where they cannot be more than a piece, else one or a few."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in names]
    num_rows = max(1, group.num_rows)
    # With a dictionary each value may be as long as all of it: the chunk's size does not say how much it becomes.
    per_row: int = sum(c.total_uncompressed_size * -(-c.num_values // num_rows) for c in chunks if _is_repeating(c))
    sizes = [(_decoded_bytes(c), _is_even(c)) for c in chunks if not _is_repeating(c)]
    most = sum(size * max_rows // num_rows if is_even else size for size, is_even in sizes)
    if most + per_row * max_rows <= PIECE_BYTES:
        return max_rows
    few = 1 if sum(size for size, _ in sizes) // num_rows >= _LARGE_ROW_BYTES else _FEW_ROWS
    per_row = sum(_dictionary_bytes(c) * -(-c.num_values // num_rows) for c in chunks if _is_repeating(c))
    return max(1, min(few, max_rows, PIECE_BYTES // max(1, per_row)))


def _is_repeating(chunk: pq.ColumnChunkMetaData) -> bool:
    return bool(chunk.has_dictionary_page) and chunk.physical_type in _BYTES


def _dictionary_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """About how long a value can be: what is long is a picture, and hardly compressed."""
    stored: int = chunk.data_page_offset - chunk.dictionary_page_offset
    return min(int(chunk.total_uncompressed_size), 4 * stored) if stored > 0 else int(chunk.total_uncompressed_size)


def _is_even(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether each row takes as much as any other: plain numbers."""
    return chunk.physical_type not in _BYTES and "." not in chunk.path_in_schema


def _decoded_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    if chunk.physical_type in _BYTES:
        return int(chunk.total_uncompressed_size)
    return int(chunk.num_values * _NUMBER_BYTES)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def iter_bounded(batch: pa.RecordBatch, max_rows: int) -> Iterator[pa.RecordBatch]:
    """A batch that is in memory in pieces of at most `max_rows` rows and about PIECE_BYTES.

    Pieces of a large batch are copies: whoever holds one does not hold the batch.
    """
    if batch.num_rows <= max_rows and batch.nbytes <= PIECE_BYTES:
        yield batch
        return
    start = 0
    while start < batch.num_rows:
        num_rows = min(max_rows, batch.num_rows - start)
        while num_rows > 1 and batch.slice(start, num_rows).nbytes > PIECE_BYTES:
            num_rows //= 2
        piece = batch.slice(start, num_rows)
        yield piece if batch.nbytes <= PIECE_BYTES else _copied(piece)
        start += num_rows


def _copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()
