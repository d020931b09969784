"""Builds the site: gathers the pages, has Zensical build them, and checks what came of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import tomllib

from website.api import Reference
from website.checks import complaints, reads_differently
from website.pages import gather, in_navigation

HERE = Path(__file__).parent
ROOT = HERE.parent
CONFIG = ROOT / "zensical.toml"
API = "docs/api/"
SHIM = "iframe-worker.js"


def main() -> int:
    settings = tomllib.loads(CONFIG.read_text("utf-8"))["project"]
    out = ROOT / settings["docs_dir"]
    site = ROOT / settings["site_dir"]
    pages = in_navigation(settings["nav"])
    texts = [page for page in pages if not page.startswith(API)]
    modules = [page.removeprefix(API).removesuffix(".md") for page in pages if page.startswith(API)]

    for folder in (out, site):
        shutil.rmtree(folder, ignore_errors=True)
    gather(ROOT, texts, out)
    reference = Reference(modules, ROOT)
    (out / API).mkdir(parents=True)
    for module in modules:
        for name, text in reference.pages(module).items():
            (out / API / f"{name}.md").write_text(text, "utf-8")
    index = out / "docs" / "api.md"
    index.write_text(reference.linked(index.read_text("utf-8")), "utf-8")
    (out / "website").mkdir()
    for name in ("site.css", SHIM):
        shutil.copy(HERE / name, out / "website")

    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", CONFIG],
        env=os.environ | {"NO_COLOR": "1"},
        cwd=ROOT,
    )
    if built.returncode:
        return built.returncode
    for page in site.rglob("*.html"):
        page.write_text(at_home(page.read_text("utf-8"), page, site), "utf-8")
    (site / "sitemap.xml").unlink()  # has whole addresses, as canonical links do

    wrong = complaints(site)
    for page in texts:
        html = (site / page.replace("README.md", "index.md")).with_suffix(".html")
        found = reads_differently((out / page).read_text("utf-8"), html.read_text("utf-8"))
        wrong += [f"{page} reads differently on a code host: {each}" for each in found]
    print("\n".join(wrong) or f"Open {site / 'index.html'}")
    return int(bool(wrong))


def at_home(html: str, page: Path, site: Path) -> str:
    """A page that can be read anywhere, from a disk, too: it knows no address and fetches nothing from elsewhere."""
    here = os.path.relpath(site / "website" / SHIM, page.parent).replace(os.sep, "/")
    html = re.sub(r"https://[\w./-]+/iframe-worker/shim", here, html)
    return re.sub(r'<link rel="?canonical"?[^>]*>', "", html)


if __name__ == "__main__":
    sys.exit(main())
