"""How long the front page of a run with 10,000 units takes to open from disk, and what its files weigh.

    python benchmarks/page.py [--units 10000] [--repeats 5]

A synthetic run (20 layers, a description for each unit) is written to a temporary folder, its pages are made, and
Chromium opens them from disk with a cold cache each time: until the `load` event, and until the first 25 rows of the
table stand. A quiet machine matters; the fastest and the middle of the repeats are printed.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LAYERS = 20
ROWS = "document.querySelectorAll('#unit-table tbody tr').length > 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = write_run(Path(folder) / "run", arguments.units)
        print(f"| write_report, {arguments.units:,} units | {seconds:.1f} s |")
        for name in ("index.html", "pages/assets/units.js", "pages/assets/page.css", "pages/assets/page.js"):
            print(f"| {name} | {(run / name).stat().st_size / 1e3:,.0f} kB |")
        for name in ("index.html", "pages/stage19.relu.html"):
            report(name, open_often(run / name, arguments.repeats))


def write_run(path: Path, units: int) -> tuple[Path, float]:
    """A run and its pages; the seconds that the pages took."""
    from pellucid.report import write_report
    from synthetic_run import make_run

    names = [f"stage{i}.relu" for i in range(LAYERS)]
    run = make_run(path, units=(units // LAYERS,) * LAYERS, images=2000, layer_names=names)
    table = run.table("units")
    words = [f"striped things on the left, number {i}" for i in np.arange(len(table["unit"]))]
    run.save_table("units", {**table, "description": words})
    start = time.perf_counter()
    write_report(run)
    return run.path, time.perf_counter() - start


def open_often(page: Path, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each opening, in a browser context of its own."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on this machine")
    taken: dict[str, list[float]] = {"load": [], "ready": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(repeats + 1):  # the first one warms the browser itself up
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            tab = context.new_page()
            tab.goto(page.as_uri(), wait_until="load")
            taken["load"].append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            tab.wait_for_function(f"{ROWS} || document.querySelectorAll('.card').length > 0")
            taken["ready"].append(tab.evaluate("performance.getEntriesByType('paint')[0].startTime"))
            context.close()
        browser.close()
    return {name: values[1:] for name, values in taken.items()}


def report(name: str, taken: dict[str, list[float]]) -> None:
    for what, values in (("first paint", taken["ready"]), ("loaded, table filled", taken["load"])):
        print(f"| {name}: {what} | median {statistics.median(values):.0f} ms, fastest {min(values):.0f} ms |")


if __name__ == "__main__":
    main()
