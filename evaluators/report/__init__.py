"""The study's results for people and for programs: terminal, HTML, Markdown, JSON and CSV from the same rows."""

import os
from collections.abc import Callable
from pathlib import Path

from evaluators.results import Results


def write_reports(results: Results, folder: str | os.PathLike, tell: Callable[[str], None] = lambda stage: None) -> dict[str, Path]:
    """report.html, report.md, results.json, results.csv and charts/*.svg in `folder`; the paths by kind. Each file appears whole or not at all.

    `tell` hears how far it is: many arms take half a minute, most of it for the charts.
    """
    from evaluators.report import charts, drawing, files, html, markdown, rows

    folder, drawn = Path(folder), charts.charts(results, charts.STILL)
    written = {"json": files.write(folder / "results.json", rows.to_json(results)), "csv": files.write(folder / "results.csv", rows.to_csv(results))}
    images = markdown.image_names(drawn)
    for number, (chart, name) in enumerate(zip(drawn, images, strict=True), 1):
        tell(f"drawing chart {number} of {len(drawn)}")
        written[name] = files.write(folder / name, drawing.still(chart))
    tell("writing the page")
    written["markdown"] = files.write(folder / "report.md", markdown.page(results, dict(zip(images, drawn, strict=True))))
    written["html"] = files.write(folder / "report.html", html.page(results))
    return written
