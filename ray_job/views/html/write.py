"""Writes the page beside the run it is about, or where it is wanted."""

from __future__ import annotations

import posixpath

from ray_job.output.manifest import REPORT_PAGE
from ray_job.storage.places import Location, locate
from ray_job.storage.whole_files import write_whole
from ray_job.views.html.facts import collect
from ray_job.views.html.page import render


def write_report(output: str, to: str | None = None) -> Location:
    """Makes the page of a job's output and returns where it is.

    Args:
        output: the output's folder or URI; its run may be running, dead or finished.
        to: a file or URI; by default `_report.html` in the output.

    Raises:
        SpecError: the folder is no job's output.
        RayJobError: the storage fails.
    """
    page = render(collect(output))
    place = _beside(locate(output)) if to is None else locate(to)
    write_whole(place.parent, posixpath.basename(place.path), page.encode(errors="replace"))
    return place


def _beside(root: Location) -> Location:
    return root.at(posixpath.join(root.path, REPORT_PAGE))
