"""Check a built report: `python tests/check_book.py book/_build/html`.

It lists every page that

- shows a traceback,
- loads a script, style sheet, image, font or frame from another host,
- has a picture without alternative text, or
- links to a local file or anchor that does not exist.

Style sheets and scripts are checked for imports and content delivery networks. Links to other sites are allowed.
Exit status: 0 nothing was found; 1 something was found.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {  # tag -> attributes from which a browser loads something without a click
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


class Page(HTMLParser):
    """What one page loads, where it links to, and its anchors."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.loads, self.links, self.no_alt = [], [], []
        self.styles, self.scripts = [], []
        self.anchors = set()
        self._inside = None  # a style or script element
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
            loads_nothing = set(a.get("rel", "").lower().split()) <= LINKS_THAT_LOAD_NOTHING
            (self.links if loads_nothing else self.loads).append(a["href"])
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
    """What is wrong with a link in the page at `path`, or None. Links to other sites are not checked."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return f"has a link that is not an address: {link}"
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
    """List everything that is wrong with the report in the folder `root`, one line each."""
    root = root.resolve()
    texts = {p: p.read_text("utf-8") for p in sorted(root.rglob("*.html")) if "_static" not in p.parts}
    pages = {path: Page(text) for path, text in texts.items()}
    found = []
    for path, page in pages.items():
        found_here = []
        if 'class="output traceback' in texts[path]:
            found_here.append("shows a traceback")
        found_here += [f"loads {x} from another host" for x in page.loads if REMOTE.match(x)]
        found_here += [x for css in page.styles for x in style_problems(css)]
        found_here += [x for script in page.scripts for x in script_problems(script)]
        found_here += [f"has a picture without alternative text: {src}" for src in page.no_alt]
        local = [x for x in page.loads if not REMOTE.match(x) and not x.startswith("data:")]
        found_here += filter(None, (link_problem(root, path, x, pages) for x in page.links + local))
        found += [f"{path.relative_to(root)}: {x}" for x in dict.fromkeys(found_here)]
    for path in sorted(root.rglob("*.css")) + sorted(root.rglob("*.js")):
        name = path.relative_to(root).as_posix()
        if name == "searchindex.js":
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
    print("\n".join(wrong) if wrong else "the report is sound: no traceback, no other host, no broken link")
    sys.exit(1 if wrong else 0)
