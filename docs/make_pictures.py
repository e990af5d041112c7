"""Refresh what the documentation shows of the package at work: outputs pasted into the pages, and pictures of the report.

1. Every Markdown page (README.md and docs/*.md) is searched for places marked ``<!-- output: COMMAND -->`` … ``<!-- /output -->``, where
   COMMAND is a ``residue`` command line.
2. The commands are really run, in order and each once, in one temporary folder with a copy of ``examples/``. Output to standard
   output goes between the marks as a ``text`` block. A command that fails ends the whole refresh before any page is touched.
3. Places marked ``<!-- tables -->`` … ``<!-- /tables -->`` get the list of a run folder's tables, from the schema that the store checks.
4. The reports of the example prompts' run, of the suite's run and of a graph are opened in Chromium (Playwright drives it): ``report.png``, ``suite.png`` and
   ``graph.png`` are their first screens, the others are parts of the first report's first item. Pictures over 400 kB are refused.

Run: python docs/make_pictures.py [--no-pictures]
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLES_MARK = re.compile(r"<!-- tables -->\n.*?<!-- /tables -->", re.DOTALL)
MARK = re.compile(r"<!-- output: (?P<command>[^\n]+?) -->\n(?P<old>.*?)<!-- /output -->", re.DOTALL)
LARGEST = 400_000
"""Bytes of a picture."""

COLUMNS = 150
"""Width of the terminal that the pasted outputs come from."""

EXAMPLES = "residue diagnose --file examples/prompts.jsonl"
"""The run that most pictures are taken of; what ``make demo`` runs."""

SUITE = "residue shells run --model demo"
"""All shells on items of their benchmarks: some minutes."""

GRAPH = 'residue graph "The capital of France is" -t " Paris" --against " Rome" --corrupted "The capital of Italy is" --nodes 300 -o capital'
"""An attribution graph of the neurons that make a difference."""

FIRST_SCREENS = {"report.png": EXAMPLES, "suite.png": SUITE, "graph.png": GRAPH}
"""Pictures of a report's first screen: file → run."""

PARTS = {
    "traces.png": "section[aria-labelledby='item-1-traces'] figure",
    "heads.png": "section[aria-labelledby='item-1-heads'] figure",
}
"""Pictures of single parts of the examples' report: file → selector."""


def run(command: str, folder: Path) -> str:
    """Standard output of a ``residue`` command line run in ``folder``; a failing command ends the refresh."""
    words = shlex.split(command)
    if words[:1] != ["residue"]:
        raise SystemExit(f"Only residue commands can be marked, not: {command}")
    main = "import sys; from symbolic_residue.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", main, *words[1:]],
        cwd=folder,
        env=os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command}\nended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def refresh(text: str, outputs: dict[str, str]) -> str:
    """A page's text with every marked place filled from ``outputs`` (command → its output)."""
    return MARK.sub(lambda m: f"<!-- output: {m['command']} -->\n```text\n{outputs[m['command']]}\n```\n<!-- /output -->", text)


def schema_table() -> str:
    """The tables of a run folder with their columns and types, as a Markdown table."""
    from symbolic_residue.store import MAY_BE_MISSING, TABLES

    kinds = {"String": "", "Int64": ":i", "Float64": ":f", "Boolean": ":b"}
    lines = ["| table | columns after `item` |", "|---|---|"]
    for name, columns in TABLES.items():
        shown = [
            f"{column}{kinds[str(dtype)]}{'?' if column in MAY_BE_MISSING[name] else ''}"
            for column, dtype in columns.items()
            if column != "item"
        ]
        lines.append(f"| `{name}` | {', '.join(shown)} |")
    return "\n".join(lines)


def take_pictures(reports: dict[str, Path], folder: Path) -> list[Path]:
    """Screenshots of reports (command → its report): first screens, and the parts named in ``PARTS``; the files written."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("RESIDUE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 960})
        for name, command in FIRST_SCREENS.items():
            page.goto(reports[command].as_uri())
            page.screenshot(path=folder / name)
        page.goto(reports[EXAMPLES].as_uri())
        for name, selector in PARTS.items():
            page.locator(selector).first.screenshot(path=folder / name)
        browser.close()
    files = [folder / name for name in (*FIRST_SCREENS, *PARTS)]
    for file in files:
        if file.stat().st_size > LARGEST:
            raise SystemExit(f"{file} has {file.stat().st_size:,} bytes, more than {LARGEST:,}.")
    return files


def report_of(output: str, command: str, folder: Path) -> Path:
    """The report that a command's output names."""
    found = re.search(r"^report: (.+)$", output, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{command} names no report.")
    return folder / found[1]


def main() -> None:
    """Run the marked commands, fill the pages, take the pictures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--no-pictures", action="store_true", help="only the outputs in the pages")
    wanted = options.parse_args()
    commands = dict.fromkeys(m["command"] for page in PAGES for m in MARK.finditer(page.read_text("utf-8")))
    commands = list(dict.fromkeys([*FIRST_SCREENS.values(), *commands]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(ROOT / "examples", folder / "examples")
        outputs = {command: run(command, folder) for command in commands}
        if not wanted.no_pictures:
            reports = {command: report_of(outputs[command], command, folder) for command in FIRST_SCREENS.values()}
            for file in take_pictures(reports, PICTURES):
                sys.stdout.write(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes\n")
    for page in PAGES:
        text = page.read_text("utf-8")
        filled = refresh(text, outputs)
        filled = TABLES_MARK.sub(lambda _: f"<!-- tables -->\n{schema_table()}\n<!-- /tables -->", filled)
        if filled != text:
            page.write_text(filled, "utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}: outputs refreshed\n")


if __name__ == "__main__":
    main()
