"""The page: sections in a template, written whole or not at all."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from innerloop.errors import RunError
from innerloop.lab.report.drawing import run_dashes
from innerloop.lab.report.runs import Run, read_runs
from innerloop.lab.report.sections import SECTIONS
from innerloop.storage.files import write_whole

NAME = "report.html"


def write_report(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write one self-contained HTML page of one run, or of several side by side.

    - `runs`: folders of runs, as `innerloop train` makes them; unfinished ones show what they have
    - `out`: the file to write, which ends in `.html`; missing folders are made. Unless given, it is
      `report.html` in the folder of a single run, and in the present folder for several.

    Returns the file's path. Raises `RunError` for a folder without a run, a damaged file of a run,
    and a file that cannot be written.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise RunError(
            "a report needs a run",
            got="no folder",
            expected="the folder of at least one run",
            write="innerloop report RUN",
        )
    single = folders[0] if len(folders) == 1 else Path()
    target = Path(out) if out is not None else single / NAME
    if target.suffix.lower() not in (".html", ".htm"):
        raise _unwritable(target, "not the name of a page")
    page = render(read_runs(folders))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(target, lambda file: file.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error


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
    filled = [(section, list(section.blocks(runs))) for section in SECTIONS]
    return templates.get_template("page.html").render(
        title=_title(runs),
        runs=runs,
        sections=[(section, blocks) for section, blocks in filled if blocks],
        dashes=run_dashes,
        version=version("innerloop"),
    )


def _title(runs: list[Run]) -> str:
    experiments = " and ".join(dict.fromkeys(run.experiment for run in runs))
    return (
        f"{experiments}: {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs of {experiments}"
    )


def _unwritable(target: Path, reason: str) -> RunError:
    return RunError(
        "the report cannot be written",
        got=f"{target}: {reason}",
        expected="a file ending in .html, in a folder that this user may write to",
        write="--out report.html",
    )
