// What test_browser_pages.py asks a page. Each function lists what is wrong.

const name = (element) => {
  const classes = String(element.className?.baseVal ?? element.className).slice(0, 40);
  const words = element.textContent.trim().replace(/\s+/g, " ").slice(0, 50);
  return `<${element.tagName.toLowerCase()} class="${classes}"> ${words}`;
};

// Open folded parts and tabs: what is in them must fit too. Without the fade: half of it is no colour to judge.
const openAll = () => {
  for (const part of document.querySelectorAll("main details")) part.open = true;
  const style = document.createElement("style");
  style.textContent =
    "main :is(.sd-tab-content, .gm-tab) { display: block !important; } " +
    "*, ::before, ::after { animation: none !important; transition: none !important; }";
  document.head.append(style);
};

// The left and right edge of what can be seen of a box without scrolling sideways.
const visibleEdges = (element) => {
  let [left, right] = [0, document.documentElement.clientWidth];
  for (let box = element.parentElement; box && box !== document.body; box = box.parentElement) {
    if (getComputedStyle(box).overflowX === "visible") continue;
    const edges = box.getBoundingClientRect();
    left = Math.max(left, edges.left);
    right = Math.min(right, edges.right);
  }
  return [left, right];
};

// What makes the page wider than its window.
const tooWide = () => {
  openAll();
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width + 1) return [];
  const found = [...document.querySelectorAll("body *")].filter((element) => {
    const edges = element.getBoundingClientRect();
    return edges.width && edges.right > width + 1 && visibleEdges(element)[1] >= width;
  });
  return ["the page scrolls sideways", ...found.slice(0, 8).map(name)];
};

// Tables of which the first two columns, or the only verdict of a row, cannot be seen without scrolling.
const hiddenCells = () => {
  openAll();
  const found = [];
  for (const table of document.querySelectorAll("main table")) {
    const cells = [...table.rows].flatMap((row) => {
      const verdicts = row.querySelectorAll(".gm-sign");
      return [row.cells[0], row.cells[1], ...(verdicts.length === 1 ? verdicts : [])];
    });
    const cut = cells.find((cell) => {
      if (!cell?.checkVisibility() || cell.colSpan > 2 || cell.closest(".gm-hidden")) return false;
      const [left, right] = visibleEdges(cell);
      const edges = cell.getBoundingClientRect();
      return edges.width && (edges.right > right + 1 || edges.left < left - 1);
    });
    const title = (table.caption ?? table.rows[0])?.textContent.trim().slice(0, 60);
    if (cut) found.push(`${name(cut)}, in the table "${title}"`);
  }
  return found;
};

// Code that scrolls sideways, and icons that are not drawn.
const unreadable = () => {
  const found = [];
  for (const code of document.querySelectorAll("main pre")) {
    if (code.checkVisibility() && code.scrollWidth > code.clientWidth + 1) found.push(`code scrolls: ${name(code)}`);
  }
  for (const icon of document.querySelectorAll("[class*='fa-']")) {
    const hasSign = icon.tagName === "svg" || getComputedStyle(icon, "::before").content.length > 2;
    const isDrawn = hasSign && icon.getBoundingClientRect().width;
    if (icon.checkVisibility() && !isDrawn) found.push(`no icon: ${name(icon)}`);
  }
  return found;
};

// What paper cuts off, and what stays folded.
const hiddenByHand = "svg *, mjx-assistive-mml, .sr-only, .visually-hidden";
const cutOnPaper = () => {
  dispatchEvent(new Event("beforeprint"));
  const width = document.documentElement.clientWidth;
  const found = [];
  for (const part of document.querySelectorAll("main details")) {
    const inside = [...part.children].filter((child) => child.tagName !== "SUMMARY");
    const isShown = inside.some((child) => child.getBoundingClientRect().height);
    if (part.checkVisibility() && inside.length && !isShown) found.push(`folded: ${name(part)}`);
  }
  const overflows = (how, inner, outer) => how !== "visible" && outer > 1 && inner > outer + 2;
  for (const element of document.querySelectorAll("article *")) {
    if (!element.checkVisibility() || element.closest(hiddenByHand)) continue;
    const { overflowX, overflowY, position } = getComputedStyle(element);
    const edges = element.getBoundingClientRect();
    if (edges.width > 1 && edges.right > width + 1) found.push(`outside the paper: ${name(element)}`);
    if (position === "absolute") continue; // words for a screen reader
    if (
      overflows(overflowX, element.scrollWidth, element.clientWidth) ||
      overflows(overflowY, element.scrollHeight, element.clientHeight)
    ) {
      found.push(`scrolls: ${name(element)}`);
    }
  }
  return found.slice(0, 12);
};

// Serious and critical violations of the rules of axe-core: of all, of some, or of all but those after "not".
const inaccessible = async ([first, ...others]) => {
  const options = { resultTypes: ["violations"], preload: false };
  if (first === "not") options.rules = Object.fromEntries(others.map((rule) => [rule, { enabled: false }]));
  else if (first) options.runOnly = { type: "rule", values: [first, ...others] };
  const { violations } = await axe.run(document, options);
  return violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, help, nodes }) => {
      const where = nodes.slice(0, 4).map((node) => `${node.target.join(" ")} ${node.html.slice(0, 100)}`);
      return `${id}: ${help}: ${nodes.length} times: ${where.join(" | ")}`;
    });
};
