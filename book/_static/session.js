/* The playground's recordings: play the images and the curves of recorded runs.

   Works on every `.gm-session`, which gmreport.replays writes. The curves and their texts are in the page already;
   this moves a line through them, and draws the images from one picture that holds all frames. In a `.gm-sessions`
   it shows one recording at a time. */
(function () {
  "use strict";

  var PAUSE = 350; // milliseconds between two frames

  function make(tag, attributes, text) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      node.setAttribute(name, attributes[name]);
    });
    if (text) node.textContent = text;
    return node;
  }

  function start(box) {
    var data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
    var last = data.ks.length - 1, timer = null;
    var title = box.querySelector("h3") ? box.querySelector("h3").textContent : "recording";

    var button = make("button", { type: "button", class: "gm-go" }, "▶ Play");
    var slider = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": "outer iteration k: " + title });
    var shown = make("output", { "aria-hidden": "true" });
    var bar = make("div", { class: "gm-session-bar" });
    bar.append(button, slider, shown);
    box.querySelector(".gm-session-runs").before(bar);
    slider.value = last;

    var runs = Array.from(box.querySelectorAll(".gm-session-run")).map(function (element, r) {
      var run = data.runs[r], canvas = make("canvas", { role: "img", width: run.size[0], height: run.size[1] });
      var image = new Image();
      image.onload = show;
      image.src = "data:image/png;base64," + run.png;
      element.querySelector(".gm-stills").before(canvas);
      var lines = Array.from(element.querySelectorAll(".gm-box svg")).map(function (svg) {
        var line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        line.setAttribute("class", "gm-session-now");
        line.setAttribute("y2", "40");
        svg.append(line);
        return line;
      });
      return { run: run, canvas: canvas, image: image, lines: lines, outputs: element.querySelectorAll(".gm-along output") };
    });

    function show() {
      var i = Number(slider.value), k = "k = " + data.ks[i];
      shown.textContent = k;
      slider.setAttribute("aria-valuetext", k + " of " + data.ks[last]);
      runs.forEach(function (one) {
        var width = one.run.size[0], height = one.run.size[1], pen = one.canvas.getContext("2d");
        if (one.image.complete) {
          pen.clearRect(0, 0, width, height);
          pen.drawImage(one.image, 0, i * height, width, height, 0, 0, width, height);
        }
        one.canvas.setAttribute("aria-label", "The images at " + k + ".");
        one.lines.forEach(function (line) {
          line.setAttribute("x1", 100 * one.run.at[i]);
          line.setAttribute("x2", 100 * one.run.at[i]);
        });
        one.outputs.forEach(function (output, n) { output.innerHTML = one.run.text[n][i]; });
      });
    }
    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "▶ Play";
    }
    function play() {
      if (timer !== null) return stop();
      if (Number(slider.value) === last) slider.value = 0;
      button.textContent = "⏸ Pause";
      show();
      // A reader who wants little motion gets slow steps; nothing moves without a press of the button.
      timer = setInterval(function () {
        slider.value = Number(slider.value) + 1;
        show();
        if (Number(slider.value) === last) stop();
      }, matchMedia("(prefers-reduced-motion: reduce)").matches ? 4 * PAUSE : PAUSE);
    }
    button.addEventListener("click", play);
    slider.addEventListener("input", function () {
      stop();
      show();
    });
    box.gm = { stop: stop };
    box.classList.add("gm-ready");
    show();
  }

  /* Show one recording of several, by the links above them. The address names it, so it can be passed on. */
  function choose(all) {
    var links = Array.from(all.querySelectorAll("nav a"));
    var boxes = Array.from(all.querySelectorAll(".gm-session"));
    function show(id) {
      links.forEach(function (link) {
        if (link.hash === "#" + id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
      boxes.forEach(function (box) {
        box.classList.toggle("gm-off", box.id !== id);
        if (box.id !== id) box.gm.stop();
      });
    }
    function follow() {
      var named = boxes.find(function (box) { return "#" + box.id === location.hash; });
      if (named) show(named.id);
    }
    links.forEach(function (link) {
      link.addEventListener("click", function (event) {
        event.preventDefault(); // do not scroll: the recording is right below
        history.replaceState(null, "", link.hash);
        show(link.hash.slice(1));
      });
    });
    addEventListener("hashchange", follow);
    all.classList.add("gm-ready");
    if (boxes.length) show(boxes[0].id);
    follow();
  }

  function startAll() {
    document.querySelectorAll(".gm-session:not(.gm-ready)").forEach(start);
    document.querySelectorAll(".gm-sessions:not(.gm-ready)").forEach(choose);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
