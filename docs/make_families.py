"""Write docs/families.md from the checks of tests/unit/family_checks.py, run on tiny random models.

Run from the repository's root: ``.venv/bin/python docs/make_families.py``
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "unit"))


def main() -> None:
    """Write the page; end with an error that names the checks that failed, if any did."""
    from family_checks import page

    text = page()
    (ROOT / "docs" / "families.md").write_text(text, encoding="utf-8")
    failed = [line for line in text.splitlines() if "✗" in line]
    if failed:
        sys.exit("\n".join(["Some checks failed:", *failed]))


if __name__ == "__main__":
    main()
