"""Documents for the tests, written by hand byte for byte, hostile ones among them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def pdf(objects: Sequence[bytes], *, trailer: bytes = b"") -> bytes:
    """A PDF of these objects, numbered from 1; the first is the catalog."""
    out = BytesIO()
    out.write(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R %s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start))
    return out.getvalue()


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s>>\nstream\n%s\nendstream" % (len(content), entries, content)


CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def page(contents: bytes = b"", *, box: str = "0 0 595 842", more: str = "", font: int = 3) -> bytes:
    return b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Resources << /Font << /F %d 0 R >> >> %s %s>>" % (
        box.encode(),
        font,
        contents,
        more.encode(),
    )


def text_pdf(texts: Sequence[str], *, box: str = "0 0 595 842", more: str = "") -> bytes:
    """A page for each text, 24 points high near its top."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(len(texts)))
    objects = [CATALOG, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(texts)), FONT]
    for index, text in enumerate(texts):
        content = b"BT /F 24 Tf 50 700 Td (%s) Tj ET" % text.replace("(", r"\(").replace(")", r"\)").encode("latin-1")
        objects += [page(b"/Contents %d 0 R" % (5 + 2 * index), box=box, more=more), stream(content)]
    return pdf(objects)


def one_page(content: bytes, *, entries: bytes = b"", box: str = "0 0 595 842", more: str = "") -> bytes:
    """One page with this content stream."""
    tree = b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>"
    return pdf([CATALOG, tree, FONT, page(b"/Contents 5 0 R", box=box, more=more), stream(content, entries)])


def square_pdf(*, rotate: int = 0) -> bytes:
    """A black square of 100 points in the lower left corner of a page of 200 × 400."""
    return one_page(b"0 0 100 100 re f", box="0 0 200 400", more=f"/Rotate {rotate}")


def form_pdf() -> bytes:
    """A text field filled with X's, without an appearance of its own."""
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (XXXXXXXX) /DA (/F 40 Tf 0 g) /Rect [50 600 400 700] "
        b"/P 4 0 R /F 4 >>"
    )
    catalog = (
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [5 0 R] /NeedAppearances true /DA (/F 40 Tf 0 g) "
        b"/DR << /Font << /F 3 0 R >> >> >> >>"
    )
    tree = b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>"
    return pdf([catalog, tree, FONT, page(more="/Annots [5 0 R]"), field])


def note_pdf() -> bytes:
    """A blank page with a black square of 100 points in the lower left corner, which is an annotation."""
    note = b"<< /Type /Annot /Subtype /Square /Rect [0 0 100 100] /F 4 /AP << /N 6 0 R >> >>"
    shown = stream(b"0 0 100 100 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 100 100] ")
    tree = b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>"
    return pdf([CATALOG, tree, FONT, page(box="0 0 200 400", more="/Annots [5 0 R]"), note, shown])


def empty_pdf() -> bytes:
    return pdf([CATALOG, b"<< /Type /Pages /Kids [] /Count 0 >>"])


def liar_pdf(count: int) -> bytes:
    """One page, and a claim of more."""
    return text_pdf(["only"]).replace(b"/Count 1 ", b"/Count %d " % count)


def loop_pdf() -> bytes:
    """A page tree that holds itself."""
    tree = b"<< /Type /Pages /Kids [4 0 R 2 0 R] /Count 2 >>"
    return pdf([CATALOG, tree, FONT, page()])


def locked_pdf() -> bytes:
    """Encrypted with a password that nobody has."""
    entries = b"/Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4" % (b"61" * 32, b"62" * 32)
    body = text_pdf(["secret"])
    return body.replace(b"/Root 1 0 R ", b"/Root 1 0 R /Encrypt << %s >> /ID [<00><00>] " % entries)


def bomb_pdf(num_bytes: int = 2**30) -> bytes:
    """A content stream that two rounds of inflating make a gibibyte of."""
    return one_page(_twice_deflated(b" ", num_bytes), entries=b"/Filter [/FlateDecode /FlateDecode]")


def _twice_deflated(byte: bytes, num_bytes: int) -> bytes:
    """So many of one byte: a block of a mebibyte, deflated once and repeated, deflated again."""
    packer = zlib.compressobj(9)
    block = packer.compress(byte * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return zlib.compress(block + block[2:] * (num_bytes // 2**20 - 1) + b"\x03\0", 9)


def nested_pdf(depth: int = 30) -> bytes:
    """Forms that each draw the next one twice: 2**depth in all."""
    objects = [CATALOG, b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>", FONT]
    objects += [
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 5 0 R "
        b"/Resources << /XObject << /X 6 0 R >> >> >>",
        stream(b"/X Do"),
    ]
    for level in range(depth):
        resources = b"/Resources << /XObject << /X %d 0 R >> >> " % (7 + level)
        form = b"/Type /XObject /Subtype /Form /BBox [0 0 200 200] " + resources
        objects.append(stream(b"/X Do /X Do", form))
    objects.append(stream(b"0 0 9 9 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 200 200] "))
    return pdf(objects)


def tiff(*sizes: tuple[int, int], colours: Sequence[str] = ("red", "green", "blue", "black")) -> bytes:
    """A TIFF with a page of each size."""
    pages = [Image.new("RGB", size, colours[index % len(colours)]) for index, size in enumerate(sizes)]
    buffer = BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def encrypted_pdf(password: str, texts: Sequence[str] = ("secret",)) -> bytes:
    """Encrypted with a user's password, by the standard handler's revision 2 (RC4, 40 bits)."""
    import hashlib
    import struct

    pad = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
    padded = (password.encode() + pad)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    ident = b"0123456789abcdef"
    key = hashlib.md5(padded + owner + struct.pack("<i", -4) + ident).digest()[:5]
    user = _rc4(key, pad)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(len(texts)))
    objects = [CATALOG, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(texts)), FONT]
    for index, text in enumerate(texts):
        number = 5 + 2 * index
        content = b"BT /F 24 Tf 50 700 Td (%s) Tj ET" % text.encode("latin-1")
        own = hashlib.md5(key + struct.pack("<I", number)[:3] + b"\0\0").digest()[:10]
        objects += [page(b"/Contents %d 0 R" % number), stream(_rc4(own, content))]
    entries = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >> /ID [<%s><%s>] " % (
        owner.hex().encode(),
        user.hex().encode(),
        ident.hex().encode(),
        ident.hex().encode(),
    )
    return pdf(objects, trailer=entries)


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def index_bomb_pdf(num_bytes: int) -> bytes:
    """A document whose table of objects is a stream that inflates to so many bytes."""
    body = b"%PDF-1.7\n1 0 obj\n" + CATALOG + b"\nendobj\n"
    entries = b"/Type /XRef /Size 3 /W [1 2 1] /Root 1 0 R /Filter [/FlateDecode /FlateDecode] "
    table = b"2 0 obj\n" + stream(_twice_deflated(b"\0", num_bytes), entries) + b"\nendobj\n"
    return body + table + b"startxref\n%d\n%%%%EOF\n" % len(body)
