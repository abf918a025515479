"""The page: sections in a template, written as a whole."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from innerloop.errors import RunError
from innerloop.lab.report.drawing import run_dashes
from innerloop.lab.report.runs import Run, read_runs
from innerloop.lab.report.sections import SECTIONS
from innerloop.storage.files import require_text_name, write_text, writing


def write_report(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write one self-contained HTML page of one run, or of several side by side.

    Args:
        runs: The folders of runs, as `innerloop train` makes them. An unfinished run shows what it
            has.
        out: The file to write, which ends in `.html`. Missing folders are made. By default, it is
            `report.html` in the folder of a single run, and in the current folder for several.

    Returns:
        The path of the file.

    Raises:
        RunError: If a folder holds no run, a file of a run is damaged, or the page cannot be
            written.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise RunError(
            "a report needs a run",
            got="no folder",
            expected="the folder of at least one run",
        )
    single = folders[0] if len(folders) == 1 else Path()
    target = single / "report.html" if out is None else Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise RunError(
            "the report cannot be written",
            got=f"{target}: not the name of a page",
            expected="a file ending in .html",
        )
    require_text_name(target)
    page = render(read_runs(folders))
    with writing("the report", target, write="--out ANOTHER/FOLDER/report.html"):
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_text(target, page)


def render(runs: list[Run]) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("innerloop.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    experiments = " and ".join(dict.fromkeys(run.experiment for run in runs))
    several = f"{len(runs)} runs of {experiments}"
    sections = [(heading, list(blocks(runs))) for heading, blocks in SECTIONS.items()]
    return templates.get_template("page.html").render(
        title=several if len(runs) > 1 else f"{experiments}: {runs[0].name}",
        runs=runs,
        sections=[(heading, blocks) for heading, blocks in sections if blocks],
        dashes=run_dashes,
        version=version("innerloop"),
    )
