"""Pictures' features for running rows: each distinct picture encoded once, several together, some in each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ray_job.engine.memory import is_out_of_memory
from ray_job.engine.packed_model import PackedModel
from ray_job.engine.running import RunningRow
from ray_job.engine.stats import Meter
from ray_job.engine.vision_cache import VisionCache
from ray_job.rows import Picture


class PictureEncoder:
    """Gives rows their features.

    Args:
        model: encodes.
        cache: features that are there already.
        max_crops: most crops encoded in a step, so that decoding goes on between; one picture is always encoded.
        meter: counts.
    """

    def __init__(self, model: PackedModel, cache: VisionCache, max_crops: int, meter: Meter) -> None:
        self.max_crops = max_crops
        self._model = model
        self._cache = cache
        self._meter = meter

    def serve(self, rows: Iterable[RunningRow]) -> dict[RunningRow, Exception]:
        """Encodes what the rows need next and hands it out; returns rows whose pictures cannot be encoded, and why."""
        pending = [row for row in rows if not row.is_ready]
        if not pending:
            return {}
        with self._meter.time("vision_s"):
            fresh = self._encode(self._chosen(pending))
        failures = {}
        for row in pending:
            try:
                self._deliver(row, fresh)
            except Exception as error:
                failures[row] = error
            row.is_ready = not row.missing_pictures()
        return failures

    def clear(self) -> None:
        """Forgets all features but those that rows hold."""
        self._cache.clear()

    def _chosen(self, rows: Iterable[RunningRow]) -> dict[bytes, Picture]:
        """The next pictures to encode, by digest, in the order in which rows need them."""
        chosen: dict[bytes, Picture] = {}
        room = self.max_crops
        for row in rows:
            for picture in row.missing_pictures().values():
                if picture.digest in chosen or self._cache.get(picture.digest) is not None:
                    continue
                room -= self._model.num_crops(picture)
                if room < 0 and chosen:
                    return chosen
                chosen[picture.digest] = picture
        return chosen

    def _encode(self, pictures: Mapping[bytes, Picture]) -> dict[bytes, Tensor | Exception]:
        """Features, or why there are none, of each picture."""
        try:
            found = self._model.encode_pictures(list(pictures.values()), self.max_crops) if pictures else []
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(pictures) == 1:
                return dict.fromkeys(pictures, error)
            found = None
        if found is None:  # one of them is at fault
            alone = [self._encode({digest: picture}) for digest, picture in pictures.items()]
            return {digest: features for each in alone for digest, features in each.items()}
        crops = sum(map(self._model.num_crops, pictures.values()))
        self._meter.add(pictures_encoded=len(pictures), crops=crops)
        return {digest: self._cache.put(digest, features) for digest, features in zip(pictures, found, strict=True)}

    def _deliver(self, row: RunningRow, fresh: dict[bytes, Tensor | Exception]) -> None:
        for number, picture in row.missing_pictures().items():
            features = fresh[picture.digest] if picture.digest in fresh else self._cache.get(picture.digest)
            if isinstance(features, Exception):
                raise features
            if features is not None:
                row.take_features(number, features)
                self._meter.add(pictures_wanted=1)
