"""The page: what each section shows, and the template that shows it."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from onewave._jinja import import_jinja
from onewave._matplotlib import import_pyplot
from onewave.bench.report.families import SCALING_KEY, FamilyResults, by_family
from onewave.bench.report.figures import (
    Plot,
    floor_plot,
    plan_plot,
    roofline,
    scaling_plots,
    share_plot,
    time_plot,
)
from onewave.bench.report.header import describe_run, device_of, tiles
from onewave.bench.report.palette import INKS, Palette
from onewave.bench.report.series import find_series
from onewave.bench.report.tables import (
    Table,
    figures_table,
    left_out,
    plans_table,
    summary_table,
    times_table,
)
from onewave.bench.result import WorkloadResult

PAGE = "index.html"


class Section(NamedTuple):
    """Of a family of workloads."""

    key: str
    title: str
    what: str
    plots: list[Plot]
    times: Table
    figures: Table


def check_packages() -> None:
    """Before anything is measured. Raises MissingJinja or MissingMatplotlib."""
    import_jinja("--report")
    import_pyplot("--report")


def write_report(folder: Path, header: dict[str, Any], results: Sequence[WorkloadResult]) -> Path:
    """Writes the page and returns its path. `header`: as write_json() takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    path.write_text(render(header, results), encoding="utf-8")
    return path


def render(header: dict[str, Any], results: Sequence[WorkloadResult]) -> str:
    """HTML that loads nothing."""
    jinja = import_jinja("--report")
    environment = jinja.Environment(
        loader=jinja.PackageLoader("onewave.bench.report", "."),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    palette = Palette(entry.system for result in results for entry in result.results)
    families = by_family(results)
    sections = [_section(family, palette) for family in families]
    script = _read("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return str(
        environment.get_template("page.html").render(
            style=_read("style.css"),
            script=script,
            script_hash=f"sha256-{digest}",
            inks=INKS,
            palette=palette,
            device=device_of(header),
            ceilings=results[0].ceilings if results else None,
            facts=describe_run(header, results),
            num_runs=header.get("num_runs"),
            tiles=tiles(results),
            summary=summary_table(results),
            sections=[section for section in sections if section.key != SCALING_KEY],
            floor=floor_plot(families, palette),
            roofline=roofline(results, palette),
            scaling=scaling_plots(find_series(results), palette),
            scaling_tables=[section for section in sections if section.key == SCALING_KEY],
            plans=plan_plot(results, palette),
            plans_table=plans_table(results, palette),
            left_out=left_out(results),
        )
    )


def _read(name: str) -> str:
    return files("onewave.bench.report").joinpath(name).read_text(encoding="utf-8")


def _section(family: FamilyResults, palette: Palette) -> Section:
    key, title, what, _ = family.family
    results = family.results
    plots = []
    if key != SCALING_KEY and any(result.timed for result in results):
        plots = [time_plot(key, title, results, palette), share_plot(key, title, results, palette)]
    times = times_table(results, palette, f"{title}: us by workload and system")
    return Section(key, title, what, plots, times, figures_table(results, f"{title}: all figures"))
