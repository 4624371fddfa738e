"""WebDataset samples: members of a tar shard that stand side by side and have one name before the first dot.

    a/0001.jpg, a/0001.json, a/0001.seg.png    one sample with the key `a/0001` and the fields jpg, json, seg.png

Whatever is wrong with a sample is its row's error. Where a shard is cut or damaged, the sample at that place fails,
since nothing says that it is whole, and what would follow is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.inputs.formats.webdataset.tar_members import BrokenTarError, Member, TarReader
from ray_job.inputs.source import malformed

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_META = re.compile(r"__[^/]*__(/|$)")


@dataclass
class Sample:
    """One row of a shard."""

    key: str  # "": none is known
    offset: int
    fields: dict[str, bytes | None] = field(default_factory=dict)  # by extension; None: not asked for
    error: RowError | None = None

    @property
    def name(self) -> str:
        """What is told of it behind the shard's name, as in an id."""
        return f"/{self.key}" if self.key else f"#{self.offset}"

    def fail(self, error: RowError) -> None:
        """Notes what is wrong with it; the first is told."""
        self.error = self.error or error


@dataclass
class Loose:
    """Members that belong to no sample."""

    num_members: int = 0
    example: str = ""

    def add(self, member: Member) -> None:
        """Counts one."""
        self.num_members += 1
        self.example = self.example or member.name


def iter_samples(
    reader: TarReader,
    members: Iterable[Member],
    is_wanted: Callable[[str], bool],
    max_bytes: int,
    loose: Loose | None = None,
) -> Iterator[Sample]:
    """The samples that members make up, in order.

    Args:
        reader: of their shard.
        members: in order.
        is_wanted: whether the content of a field is read, by its extension.
        max_bytes: of a field that is read; a longer one fails its sample.
        loose: counts what belongs to none.
    """
    sample: Sample | None = None
    last = 0
    try:
        for member in members:
            last = member.offset
            if member.is_folder:
                continue
            found = None if _META.match(member.name) else _NAME.fullmatch(member.name.removeprefix("./"))
            if found is None:
                (loose or Loose()).add(member)
                continue
            key, extension = found[1].encode(errors="backslashreplace").decode(), found[2].lower()
            if sample is not None and sample.key != key:
                yield sample
                sample = None
            sample = sample or Sample(key, member.offset)
            _add(sample, extension, member, reader, is_wanted(extension), max_bytes)
    except BrokenTarError as error:
        sample = sample or Sample("", last)
        text = f"the shard is damaged or cut short at byte {error.offset}: {error}"
        sample.error = malformed(f"{text}. What may have followed is not read; write the shard again")
    if sample is not None:
        yield sample


def _add(sample: Sample, extension: str, member: Member, reader: TarReader, is_wanted: bool, max_bytes: int) -> None:
    if extension in sample.fields:
        sample.fail(malformed(f"two members {member.name!r}"))
    sample.fields[extension] = None
    if not member.is_file:
        sample.fail(malformed(f"member {member.name!r} is a link or a device, not a file"))
    elif is_wanted and member.size > max_bytes:
        text = f"member {member.name!r} has {member.size} bytes; {max_bytes} are read, as limits.max_image_bytes allows"
        sample.fail(RowError(ErrorCode.IMAGE_TOO_LARGE, text, Stage.READ))
    elif is_wanted:
        data = reader.read(member.data_offset, member.size)
        if len(data) < member.size:
            raise BrokenTarError(member.data_offset + len(data), f"it ends within {member.name!r}")
        sample.fields[extension] = data
