"""Documents opened and drawn in a process of their own: right when they are good, and an error in time when not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from ray_job.errors import ErrorCode, RowError
from ray_job.inputs.documents.document import OpenDocument
from ray_job.inputs.documents.opening import open_document
from ray_job.inputs.documents.process import DocumentProcess
from ray_job.inputs.isolation.wire import BLOCK_BYTES, BlockFile
from ray_job.spec import DocumentsSpec

from . import files


@pytest.fixture(scope="module")
def process() -> Iterator[DocumentProcess]:
    one = DocumentProcess()
    yield one
    one.close()


def asked(
    process: DocumentProcess,
    data: bytes,
    what: Callable[[OpenDocument], object],
    passwords: tuple[str | None, ...] = (None,),
    **limits: float,
) -> object:
    with open_document(process, pa.BufferReader(data), passwords, DocumentsSpec.model_validate(limits)) as document:
        return what(document)


def drawn(process: DocumentProcess, data: bytes, page: int = 1, size: tuple[int, int] = (100, 200)) -> np.ndarray:
    pixels = asked(process, data, lambda document: document.draw(page, *size))
    assert isinstance(pixels, bytes)
    return np.frombuffer(pixels, np.uint8).reshape(size[1], size[0], 3)


def is_dark(pixels: np.ndarray) -> np.ndarray:
    return pixels.max(axis=2) < 128


def test_a_page_is_drawn_on_white_at_the_size_asked_for(process: DocumentProcess) -> None:
    dark = is_dark(drawn(process, files.square_pdf()))
    expected = np.zeros((200, 100), dtype=bool)
    expected[150:, :50] = True  # the lower left 100 of 200 × 400 points
    assert np.array_equal(dark, expected)


def test_a_pages_rotation_is_honoured(process: DocumentProcess) -> None:
    data = files.square_pdf(rotate=90)  # clockwise: what was the lower left is the upper left
    assert asked(process, data, lambda document: document.size(1)) == (400, 200)
    dark = is_dark(drawn(process, data, size=(200, 100)))
    expected = np.zeros((100, 200), dtype=bool)
    expected[:50, :50] = True
    assert np.array_equal(dark, expected)


def test_colours_are_red_green_and_blue_in_this_order(process: DocumentProcess) -> None:
    pixels = drawn(process, files.one_page(b"1 0 0 rg 0 0 595 842 re f"))
    assert (pixels == (255, 0, 0)).all()


def test_filled_forms_are_drawn(process: DocumentProcess) -> None:
    dark = is_dark(drawn(process, files.form_pdf(), size=(595, 842)))
    inside = dark[142:242, 50:400]  # of the field
    assert inside.sum() > 1000
    assert dark.sum() == inside.sum()


def test_annotations_are_drawn(process: DocumentProcess) -> None:
    assert np.array_equal(drawn(process, files.note_pdf()), drawn(process, files.square_pdf()))


def test_a_pages_own_text(process: DocumentProcess) -> None:
    data = files.text_pdf(["first (page)", "second"])
    assert asked(process, data, lambda document: [document.text(1), document.text(2)]) == ["first (page)", "second"]
    assert asked(process, files.square_pdf(), lambda document: document.text(1)) == ""


def test_a_tiffs_pages_are_its_pictures_without_thumbnails_and_masks(process: DocumentProcess) -> None:
    first, thumbnail, second = (Image.new("L", size) for size in ((40, 30), (4, 3), (20, 10)))
    buffer = BytesIO()
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(buffer, "TIFF", save_all=True, append_images=[thumbnail, second])
    assert asked(process, buffer.getvalue(), lambda d: (d.num_pages, d.size(2), d.frame(2))) == (2, (20, 10), 2)
    assert asked(process, files.tiff((4, 3)), lambda d: (d.num_pages, d.is_pdf, d.text(1))) == (1, False, "")


BAD = {
    "html": (files.HTML, ErrorCode.DOCUMENT_UNREADABLE),
    "garbage": (b"%PDF-1.4" + bytes(range(256)) * 9, ErrorCode.DOCUMENT_UNREADABLE),
    "cut": (files.text_pdf(["a"] * 50)[:3000], ErrorCode.DOCUMENT_UNREADABLE),
    "cut tiff": (files.tiff((400, 300), (20, 10))[:100], ErrorCode.DOCUMENT_UNREADABLE),
    "no pages": (files.empty_pdf(), ErrorCode.DOCUMENT_EMPTY),
    "locked": (files.locked_pdf(), ErrorCode.DOCUMENT_ENCRYPTED),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_opened_has_its_code(process: DocumentProcess, name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(RowError) as caught:
        asked(process, data, lambda document: document.num_pages)
    assert caught.value.code == code
    assert "0x" not in caught.value.message


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WebP")])
def test_a_picture_among_documents_is_called_by_its_name(process: DocumentProcess, kind: str, name: str) -> None:
    buffer = BytesIO()
    Image.new("L", (40, 30)).save(buffer, kind)
    with pytest.raises(RowError, match=f"no PDF or TIFF, but {name}"):
        asked(process, buffer.getvalue(), lambda document: document.num_pages)


def test_a_password_opens_an_encrypted_document_and_is_in_no_message(process: DocumentProcess) -> None:
    data = files.encrypted_pdf("open sesame")
    assert asked(process, data, lambda d: d.text(1), ("wrong", "open sesame")) == "secret"
    for passwords, hint in (((None,), "documents.password_env"), (("tiger9",), "no password that was given")):
        with pytest.raises(RowError, match=hint) as caught:
            asked(process, data, lambda d: d.num_pages, passwords)
        assert caught.value.code == ErrorCode.DOCUMENT_ENCRYPTED
        assert "tiger9" not in caught.value.message


def test_claims_of_pages_that_are_not_there(process: DocumentProcess) -> None:
    assert asked(process, files.liar_pdf(2 * 10**9), lambda document: document.num_pages) == 1
    liar = files.liar_pdf(900)
    assert asked(process, liar, lambda document: document.text(1)) == "only"
    for data, page in ((liar, 77), (files.loop_pdf(), 2), (files.text_pdf(["a"]), 5), (files.tiff((4, 3)), 2)):
        with pytest.raises(RowError) as caught:
            asked(process, data, lambda document, page=page: document.size(page))
        assert caught.value.code == ErrorCode.PAGE_UNREADABLE
        assert str(page) in caught.value.message


def test_a_page_of_a_million_points_costs_no_more_than_any_other(process: DocumentProcess) -> None:
    data = files.one_page(b"0 0 500000 1000000 re f", box="0 0 1000000 1000000")
    assert asked(process, data, lambda document: document.size(1)) == (1e6, 1e6)
    dark = is_dark(drawn(process, data, size=(100, 100)))
    assert dark[:, :49].all()
    assert not dark[:, 51:].any()


def test_what_hangs_is_ended_by_the_deadline_and_the_next_is_drawn(process: DocumentProcess) -> None:
    with pytest.raises(RowError, match=r"documents\.deadline_s, 0\.5 s") as caught:
        asked(process, files.nested_pdf(), lambda document: document.draw(1, 100, 100), deadline_s=0.5)
    assert caught.value.code == ErrorCode.DEADLINE
    assert asked(process, files.text_pdf(["after"]), lambda document: document.text(1)) == "after"


def test_a_bomb_ends_by_the_limit_on_memory(process: DocumentProcess) -> None:
    bomb = files.bomb_pdf(640 * 2**20)
    assert len(bomb) < 4000
    with pytest.raises(RowError, match="page 1") as caught:
        asked(process, bomb, lambda document: document.draw(1, 100, 100), max_memory_mib=256)
    assert caught.value.code == ErrorCode.PAGE_UNREADABLE
    assert asked(process, files.text_pdf(["after"]), lambda document: document.text(1)) == "after"


def test_a_document_that_kills_where_it_is_opened(process: DocumentProcess) -> None:
    with pytest.raises(RowError, match="died") as caught:
        asked(process, files.index_bomb_pdf(640 * 2**20), lambda document: document.num_pages, max_memory_mib=256)
    assert caught.value.code == ErrorCode.DOCUMENT_UNREADABLE


def test_a_page_that_hangs_ends_when_all_others_are_dead() -> None:
    command = [sys.executable, "-m", "tests.inputs.documents.hanging"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        drawing = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    drawing.wait(timeout=60)
    assert not drawing.is_running()


def test_what_draws_has_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    process = DocumentProcess()
    asked(process, files.square_pdf(), lambda document: document.num_pages)
    assert process.pid is not None
    assert "very secret" not in str(psutil.Process(process.pid).environ())
    process.close()


def test_a_process_that_was_killed_is_replaced_and_the_document_goes_on() -> None:
    process = DocumentProcess()
    with open_document(process, pa.BufferReader(files.text_pdf(["one", "two"])), [None], DocumentsSpec()) as document:
        assert document.text(1) == "one"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGABRT)  # as a crash does
        assert document.text(2) == "two"
    process.close()


def test_a_document_with_the_same_key_stays_open(process: DocumentProcess) -> None:
    reads: list[int] = []

    data = files.text_pdf(["one", "two"])
    for page, text in ((1, "one"), (2, "two")):
        file = pa.PythonFile(_Counting(data, reads), "r")
        with process.document(file, None, DocumentsSpec(), key="same") as document:
            assert document.text(page) == text
        if page == 1:
            num_reads = len(reads)
    assert len(reads) == num_reads, "the second page came from what was read before"


class _Counting(BytesIO):
    def __init__(self, data: bytes, reads: list[int]) -> None:
        super().__init__(data)
        self._reads = reads

    def read(self, size: int | None = -1) -> bytes:
        self._reads.append(size or 0)
        return super().read(size)


def test_block_files_read_what_files_do() -> None:
    data = np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 17)
    asked_for: list[tuple[int, int]] = []

    def fetch(offset: int, num_bytes: int) -> bytes:
        asked_for.append((offset, num_bytes))
        return data[offset : offset + num_bytes]

    file, plain = BlockFile(len(data), fetch), BytesIO(data)
    steps = ((0, 5, 100), (2, -40, 99), (0, BLOCK_BYTES - 3, 2 * BLOCK_BYTES), (1, 4, 9), (0, 9**9, 5))
    for whence, offset, size in steps:
        assert file.seek(offset, whence) == plain.seek(offset, whence)
        assert file.read(size) == plain.read(size)
    assert asked_for == sorted(set(asked_for), key=asked_for.index), "no block twice"
