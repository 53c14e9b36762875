"""A Chromium to open the report in: Playwright's, or the system's. `python tests/browser.py` says which, or fails."""

import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The program's path; None where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        own = p.chromium.executable_path
    if Path(own).exists():
        return own
    return next((found for n in NAMES if (found := shutil.which(n))), None)


if __name__ == "__main__":
    print(chromium() or "no Chromium")
    sys.exit(chromium() is None)
