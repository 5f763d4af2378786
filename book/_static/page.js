"use strict";
// While a page is printed: open folded parts, light colours, equations that fit. Let the keyboard reach what scrolls.
// Search from disk without a summary of each page: a browser does not let a page read another file.
(() => {
  const SCROLLING = "main :is(pre, mjx-container[display], .gm-equation, .gm-table, .pst-scrollable-table-container)";
  const PAPER = 620; // pixels for an equation on A4, next to its number
  const root = document.documentElement;
  let closed = [];
  let theme = null;

  const shrinkEquations = () => {
    for (const box of document.querySelectorAll("div.math, .gm-equation")) {
      const [drawn, size] = [box.querySelector("mjx-math"), parseFloat(getComputedStyle(box).fontSize)];
      const width = drawn ? (drawn.getBoundingClientRect().width * 16) / size : 0;
      if (width > PAPER) box.style.setProperty("--gm-on-paper", `${PAPER / width}em`);
    }
  };

  window.addEventListener("beforeprint", () => {
    if (theme !== null) return;
    shrinkEquations();
    closed = [...document.querySelectorAll("main details:not([open])")];
    for (const part of closed) part.open = true;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
    closed = [];
    if (theme !== null) root.dataset.theme = theme;
    theme = null;
  });

  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  // A box that scrolls gets the focus, so that the arrow keys move it.
  const markScrolling = () => {
    for (const box of document.querySelectorAll(SCROLLING)) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    }
  };
  window.addEventListener("load", () => {
    markScrolling();
    window.MathJax?.startup?.promise?.then(markScrolling);
    let waiting = 0;
    window.addEventListener("resize", () => {
      window.clearTimeout(waiting);
      waiting = window.setTimeout(markScrolling, 200);
    });
  });
})();
