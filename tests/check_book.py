"""Check a built report: `python tests/check_book.py book/_build/html`.

Names every page that (a) shows a traceback, (b) loads a script, style sheet, image, font or frame from
another host, (c) has a picture without alternative text, or (d) links to a local file or anchor that is not
there. Style sheets and scripts of the report are read too: for what they import, and for names of content
delivery networks. Plain links that a reader may click are fine. Exits with status 1 when anything was found.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {  # tag -> the attributes from which a browser loads something by itself
    "script": ["src"], "img": ["src", "srcset"], "iframe": ["src", "srcdoc"], "embed": ["src"],
    "object": ["data"], "source": ["src", "srcset"], "video": ["src", "poster"], "audio": ["src"],
    "track": ["src"], "image": ["href"], "use": ["href"], "input": ["src"],
}  # fmt: skip
LINKS_THAT_LOAD_NOTHING = {"canonical", "alternate", "author", "license", "index", "search", "next", "prev"}
REMOTE = re.compile(r"\s*(https?:|wss?:|ftp:|//)", re.IGNORECASE)
STYLE_LOADS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")
SCRIPT_LOADS = re.compile(
    r"""(?:importScripts|import|fetch|Worker|EventSource|WebSocket)\s*\(\s*["'`]((?:https?:|wss?:)?//[^"'`]+)"""
    r"""|\bfrom\s*["']((?:https?:)?//[^"']+)"""
)
CDN = re.compile(r"unpkg\.com|jsdelivr\.net|cdnjs\.\w+\.com|skypack\.dev|esm\.sh|(?:googleapis|gstatic)\.com")
# MathJax names a CDN for its speech engine, which no page starts: the menu that could is off in _config.yml.
NAMES_A_CDN_BUT_DOES_NOT_ASK = {"_static/mathjax/tex-chtml.js"}


class Page(HTMLParser):
    """What one page loads, links to, and can be linked at."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.loads, self.links, self.anchors, self.no_alt = [], [], set(), []
        self.styles, self.scripts, self._inside = [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        a = {k: v or "" for k, v in attributes}
        self._inside = tag if tag in ("style", "script") else None
        self.anchors |= {a[k] for k in ("id", "name") if a.get(k)}
        for key in LOADS.get(tag, []):
            value = a.get(key) or a.get(f"xlink:{key}")
            if value and key == "srcset":
                self.loads += [part.split()[0] for part in re.split(r",\s+", value) if part.split()]
            elif value and key == "srcdoc":
                self.loads += Page(value).loads
            elif value:
                self.loads.append(value)
        if tag == "link" and a.get("href"):
            quiet = set(a.get("rel", "").lower().split()) <= LINKS_THAT_LOAD_NOTHING
            (self.links if quiet else self.loads).append(a["href"])
        if tag in ("a", "area") and "href" in a:
            self.links.append(a["href"])
        if tag == "img" and not a.get("alt", "").strip() and a.get("aria-hidden") != "true":
            self.no_alt.append(a.get("src", "")[:60])
        if "style" in a:
            self.styles.append(a["style"])

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "style":
            self.styles.append(data)
        elif self._inside == "script":
            self.scripts.append(data)


def style_problems(css: str) -> list[str]:
    targets = ["".join(found) for found in STYLE_LOADS.findall(css)]
    return [f"loads {t} from another host" for t in targets if REMOTE.match(t)]


def script_problems(script: str) -> list[str]:
    found = [f"loads {''.join(m)} from another host" for m in SCRIPT_LOADS.findall(script)]
    return found + [f"names the CDN {name}" for name in sorted(set(CDN.findall(script)))]


def link_problem(root: Path, path: Path, link: str, pages: dict[Path, Page]) -> str | None:
    """Why a link out of the page at `path` is broken, or None. Addresses with a scheme are not followed."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return f"has a link that is no address: {link}"
    if parts.scheme or parts.netloc:
        return None
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return f"links to {link}, which is not there"
    if not target.is_relative_to(root):
        return f"links to {link}, which is outside the report"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return f"links to {link}, but there is no such anchor"
    return None


def problems(root: Path) -> list[str]:
    """Everything wrong with the report in folder `root`, one line each."""
    root = root.resolve()
    texts = {p: p.read_text("utf-8") for p in sorted(root.rglob("*.html")) if "_static" not in p.parts}
    pages = {path: Page(text) for path, text in texts.items()}
    found = []
    for path, page in pages.items():
        here = []
        if 'class="output traceback' in texts[path]:
            here.append("shows a traceback")
        here += [f"loads {x} from another host" for x in page.loads if REMOTE.match(x)]
        here += [x for css in page.styles for x in style_problems(css)]
        here += [x for script in page.scripts for x in script_problems(script)]
        here += [f"has a picture without alternative text: {src}" for src in page.no_alt]
        local = [x for x in page.loads if not REMOTE.match(x) and not x.startswith("data:")]
        here += filter(None, (link_problem(root, path, x, pages) for x in page.links + local))
        found += [f"{path.relative_to(root)}: {x}" for x in dict.fromkeys(here)]
    for path in sorted(root.rglob("*.css")) + sorted(root.rglob("*.js")):
        name = path.relative_to(root).as_posix()
        if name == "searchindex.js" or name in NAMES_A_CDN_BUT_DOES_NOT_ASK:
            continue
        check = style_problems if path.suffix == ".css" else script_problems
        found += [f"{name}: {x}" for x in dict.fromkeys(check(path.read_text("utf-8")))]
    if not pages:
        found.append(f"{root} holds no page: build the report first")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/check_book.py book/_build/html")
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) if wrong else "the report is whole: no traceback, no other host, no broken link")
    sys.exit(1 if wrong else 0)
