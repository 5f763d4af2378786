/* "How to measure the distance": drag gS in the plane and see d1 next to another distance.

   Works on every `figure.gm-contours`, which gmreport.contours writes. The formulas are those of gmlib/how.py for one
   row with two entries. The object `figure.gm` has them too, so that a test can compare them. */
(function () {
  "use strict";

  // ---- gmlib.how for one row with two entries: distances A, B -> number, and their gradients with respect to A.
  var EPS = 1e-8; // lower bound on a norm, as in how.d1
  function norm(v) {
    return Math.hypot(v[0], v[1]);
  }
  var DISTANCES = {
    d1: function (A, B) {
      return 1 - (A[0] * B[0] + A[1] * B[1]) / (Math.max(norm(A), EPS) * Math.max(norm(B), EPS));
    },
    d2: function (A, B) {
      return Math.hypot(A[0] - B[0], A[1] - B[1]);
    },
    d3: function (A, B) {
      return Math.pow(A[0] - B[0], 2) + Math.pow(A[1] - B[1], 2);
    },
    d4: function (A, B) {
      return DISTANCES.d3(A, B) / 2;
    },
  };
  var SLOPES = {
    d1: function (A, B) {
      var a = norm(A), b = Math.max(norm(B), EPS), dot = A[0] * B[0] + A[1] * B[1];
      if (a < EPS) return [-B[0] / (EPS * b), -B[1] / (EPS * b)];
      return [0, 1].map(function (i) {
        return (A[i] * dot) / (a * a * a * b) - B[i] / (a * b);
      });
    },
    d2: function (A, B) {
      var d = DISTANCES.d2(A, B);
      return d === 0 ? [0, 0] : [(A[0] - B[0]) / d, (A[1] - B[1]) / d];
    },
    d3: function (A, B) {
      return [2 * (A[0] - B[0]), 2 * (A[1] - B[1])];
    },
    d4: function (A, B) {
      return [A[0] - B[0], A[1] - B[1]];
    },
  };
  function distance(weights, A, B) {
    return Object.keys(weights).reduce(function (sum, name) {
      return sum + weights[name] * DISTANCES[name](A, B);
    }, 0);
  }
  function slope(weights, A, B) {
    return Object.keys(weights).reduce(function (sum, name) {
      var g = SLOPES[name](A, B), w = weights[name];
      return [sum[0] + w * g[0], sum[1] + w * g[1]];
    }, [0, 0]);
  }
  /* Follow the slope downwards in short steps of equal length, until the distance no longer falls. */
  function path(weights, start, B) {
    var points = [start], A = start, length = 0.02, value = distance(weights, A, B);
    while (points.length < 2000 && length > 1e-4) {
      var g = slope(weights, A, B), size = norm(g);
      if (size < 1e-6) break;
      var next = [A[0] - (length * g[0]) / size, A[1] - (length * g[1]) / size];
      var reached = distance(weights, next, B);
      if (reached < value) {
        points.push((A = next));
        value = reached;
      } else {
        length /= 2;
      }
    }
    return points;
  }

  // ---- small helpers
  function make(tag, attributes, children) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      node.setAttribute(name, attributes[name]);
    });
    (children || []).forEach(function (child) {
      node.append(child);
    });
    return node;
  }
  function degrees(A, B) {
    if (norm(A) < EPS) return NaN;
    var turn = Math.atan2(A[0] * B[1] - A[1] * B[0], A[0] * B[0] + A[1] * B[1]);
    return Math.abs((turn * 180) / Math.PI);
  }
  function place(A, B) {
    var angle = degrees(A, B);
    return (isNaN(angle) ? "no angle" : angle.toFixed(0) + "°") + ", length " + (norm(A) / norm(B)).toFixed(2);
  }
  function plain(number) {
    return String(Number(number.toPrecision(2)));
  }
  /* Terms with "+" between them, each in the colour of what it measures. */
  function sum(node, names, texts) {
    node.replaceChildren();
    names.forEach(function (name, i) {
      if (i) node.append(" + ");
      node.append(make("span", { class: name === "d1" ? "gm-angle" : "gm-length" }, [texts[i]]));
    });
  }
  function colours(node) {
    var style = getComputedStyle(node);
    return function (name) {
      return style.getPropertyValue("--gm-" + name).trim();
    };
  }
  function rgb(hex) {
    return [1, 3, 5].map(function (i) {
      return parseInt(hex.slice(i, i + 2), 16);
    });
  }

  // ---- one plane: a canvas with contours of one distance, gT, gS, its slope and the path down
  var BANDS = 12, LEFT = -0.9, RIGHT = 1.5, TOP = 1.2; // the part of the plane that is shown; it is square
  var SIDE = RIGHT - LEFT;

  function Plane(figure, state, weightsOf, label) {
    var self = this;
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.handle = make("span", { class: "gm-plane-handle" });
    this.name = make("strong");
    this.value = make("span", { class: "gm-plane-value" });
    this.parts = make("span");
    this.end = make("span", { class: "gm-plane-end" });
    this.box = make("div", { class: "gm-plane" }, [
      make("p", {}, [label, this.name]),
      make("div", { class: "gm-plane-view" }, [this.canvas, this.handle]),
      make("p", {}, [this.value, this.parts, this.end]),
    ]);
    this.key = "";

    this.toPixels = function (A) {
      var size = self.canvas.clientWidth;
      return [((A[0] - LEFT) / SIDE) * size, ((TOP - A[1]) / SIDE) * size];
    };
    this.toPlane = function (event) {
      var box = self.canvas.getBoundingClientRect();
      return [
        LEFT + ((event.clientX - box.left) / box.width) * SIDE,
        TOP - ((event.clientY - box.top) / box.height) * SIDE,
      ];
    };

    /* The contours change with the distance, the size and the theme only; so they are kept. */
    function contours(weights, pixels, colour) {
      var key = JSON.stringify([weights, pixels, colour("near"), colour("far")]);
      if (key === self.key) return self.kept;
      var heights = new Float32Array(pixels * pixels), highest = 0, i = 0, x, y;
      for (y = 0; y < pixels; y++) {
        for (x = 0; x < pixels; x++, i++) {
          var at = [LEFT + ((x + 0.5) / pixels) * SIDE, TOP - ((y + 0.5) / pixels) * SIDE];
          heights[i] = distance(weights, at, state.gT);
          highest = Math.max(highest, heights[i]);
        }
      }
      var near = rgb(colour("near")), far = rgb(colour("far"));
      var image = new ImageData(pixels, pixels);
      for (i = 0; i < heights.length; i++) {
        var share = Math.min(Math.floor((heights[i] / highest) * BANDS), BANDS - 1) / (BANDS - 1);
        for (var c = 0; c < 3; c++) image.data[4 * i + c] = near[c] + share * (far[c] - near[c]);
        image.data[4 * i + 3] = 255;
      }
      self.kept = make("canvas", { width: pixels, height: pixels });
      self.kept.getContext("2d").putImageData(image, 0, 0);
      self.key = key;
      return self.kept;
    }

    this.draw = function () {
      var weights = weightsOf(), gS = state.gS, gT = state.gT, colour = colours(figure);
      var size = self.canvas.clientWidth;
      if (!size) return; // not shown now, as in print
      var pixels = Math.round(size * Math.min(window.devicePixelRatio || 1, 2));
      if (self.canvas.width !== pixels) self.canvas.width = self.canvas.height = pixels;
      var pen = self.canvas.getContext("2d");
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.drawImage(contours(weights, pixels, colour), 0, 0);
      pen.scale(pixels / size, pixels / size);
      pen.lineCap = pen.lineJoin = "round";

      function line(points, shade, width, dashes) {
        pen.beginPath();
        points.map(self.toPixels).forEach(function (p, i) {
          pen[i ? "lineTo" : "moveTo"](p[0], p[1]);
        });
        pen.setLineDash(dashes || []);
        pen.lineWidth = width;
        pen.strokeStyle = shade;
        pen.stroke();
      }
      function dot(A, radius, fill, edge) {
        var p = self.toPixels(A);
        pen.beginPath();
        pen.arc(p[0], p[1], radius, 0, 2 * Math.PI);
        pen.setLineDash([]);
        if (fill) {
          pen.fillStyle = fill;
          pen.fill();
        }
        if (edge) {
          pen.strokeStyle = edge;
          pen.lineWidth = 2;
          pen.stroke();
        }
      }
      function arrow(from, to, shade, width) {
        var a = self.toPixels(from), b = self.toPixels(to), turn = Math.atan2(b[1] - a[1], b[0] - a[0]);
        var head = Math.min(4 + 2 * width, Math.hypot(b[0] - a[0], b[1] - a[1]));
        line([from, to], shade, width);
        pen.beginPath();
        pen.moveTo(b[0], b[1]);
        [0.45, -0.45].forEach(function (side) {
          pen.lineTo(b[0] - head * Math.cos(turn + side), b[1] - head * Math.sin(turn + side));
        });
        pen.closePath();
        pen.fillStyle = shade;
        pen.fill();
      }
      function word(text, A, shade, dx, dy) {
        var p = self.toPixels(A);
        pen.font = "italic 600 14px system-ui, sans-serif";
        pen.lineWidth = 3;
        pen.setLineDash([]);
        pen.strokeStyle = colour("near");
        pen.strokeText(text, p[0] + dx, p[1] + dy);
        pen.fillStyle = shade;
        pen.fillText(text, p[0] + dx, p[1] + dy);
      }

      // The circle of all gradients as long as gT.
      dot([0, 0], (norm(gT) / SIDE) * size, null, null);
      pen.setLineDash([3, 4]);
      pen.lineWidth = 1;
      pen.strokeStyle = colour("T");
      pen.stroke();
      arrow([0, 0], gT, colour("T"), 2.5);
      word("gT", gT, colour("T"), -6, 20);

      var down = path(weights, gS, gT), end = down[down.length - 1];
      line([[0, 0], gS], colour("S"), 2.5);
      line(down, colour("S"), 2, [2, 5]);
      dot(end, 5, colour("near"), colour("S"));
      var g = slope(weights, gS, gT), steep = norm(g);
      if (steep > 1e-6 && down.length > 2) {
        var long = 0.5 * Math.tanh(0.5 * steep); // longer where it is steeper, but never across the plane
        arrow(gS, [gS[0] - (long * g[0]) / steep, gS[1] - (long * g[1]) / steep], colour("step"), 4);
      }
      dot(gS, 6, colour("S"), colour("near"));
      word("gS", gS, colour("S"), -8, -12);
      if (state.along !== null) dot(down[Math.round(state.along * (down.length - 1))], 8, colour("step"), colour("near"));

      var p = self.toPixels(gS);
      self.handle.style.transform = "translate(" + p[0] + "px," + p[1] + "px)";
      var value = distance(weights, gS, gT), names = Object.keys(weights);
      sum(self.name, names, names.map(function (name) {
        return (weights[name] === 1 ? "" : plain(weights[name]) + " ") + name;
      }));
      self.value.textContent = "distance " + value.toFixed(2);
      self.parts.textContent = "";
      if (names.length > 1) {
        sum(self.parts, names, names.map(function (name) {
          return (weights[name] * DISTANCES[name](gS, gT)).toFixed(2);
        }));
        self.parts.prepend(" = ");
      }
      self.end.textContent = down.length > 1 ? "path ends at " + place(end, gT) : "no slope: gS stays here";
      return { value: value, end: end };
    };
  }

  // ---- the figure
  function start(figure) {
    var given = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    var state = { gT: given.gT, gS: Object.values(given.starts)[0], angle: 1, name: "d2", weight: 1, along: null };
    function second() {
      var weights = {};
      if (state.angle) weights.d1 = state.angle;
      weights[state.name] = state.weight;
      return weights;
    }
    var planes = [
      new Plane(figure, state, function () { return { d1: 1 }; }, "the angle alone"),
      new Plane(figure, state, second, "your choice"),
    ];
    var handle = planes[0].handle; // the one that the keyboard moves
    Object.entries({
      role: "slider", tabindex: "0", "aria-label": "gradient gS: the arrow keys move it in the plane",
      "aria-roledescription": "point in a plane", "aria-valuemin": LEFT, "aria-valuemax": RIGHT,
    }).forEach(function (entry) { handle.setAttribute(entry[0], entry[1]); });

    var buttons = [];
    function chips(legend, names, choose, isOn) {
      var group = make("div", { class: "gm-plane-chips", role: "group", "aria-label": legend }, [make("span", {}, [legend])]);
      names.forEach(function (name) {
        var button = make("button", { type: "button" }, [name]);
        button.addEventListener("click", function () { choose(name); });
        buttons.push([button, function () { return isOn(name); }]);
        group.append(button);
      });
      return group;
    }
    function set(weights) {
      var names = Object.keys(weights), last = names[names.length - 1];
      state.angle = names.length > 1 ? weights.d1 : 0;
      state.name = last;
      state.weight = weights[last];
      redraw();
    }
    var distances = chips("distance", Object.keys(given.distances), function (name) {
      set(given.distances[name]);
    }, function (name) { return JSON.stringify(given.distances[name]) === JSON.stringify(second()); });
    var starts = chips("put gS", Object.keys(given.starts), function (name) {
      move(given.starts[name]);
    }, function (name) { return String(given.starts[name]) === String(state.gS); });
    var shown = make("output"), weight = make("input", { type: "range", min: "-2", max: "2", step: "0.05" });
    weight.addEventListener("input", function () {
      state.weight = Number(Math.pow(10, weight.value).toPrecision(2));
      redraw();
    });
    var play = make("button", { type: "button", class: "gm-plane-play" }, ["▶ Follow the slope"]);
    play.addEventListener("click", follow);
    figure.querySelector("div.gm-plane-live").append(
      make("div", { class: "gm-planes" }, planes.map(function (plane) { return plane.box; })),
      make("div", { class: "gm-plane-controls" }, [
        distances,
        make("label", {}, [make("span", {}, ["weight w = ", shown]), weight]),
        starts,
        play,
      ])
    );

    function redraw() {
      var found = planes.map(function (plane) { return plane.draw(); });
      buttons.forEach(function (pair) { pair[0].setAttribute("aria-pressed", pair[1]()); });
      shown.textContent = plain(state.weight) + " for " + state.name;
      weight.value = Math.log10(state.weight);
      weight.setAttribute("aria-label", "weight w of " + state.name);
      weight.setAttribute("aria-valuetext", plain(state.weight));
      handle.setAttribute("aria-valuenow", state.gS[0].toFixed(2));
      if (found[0]) {
        handle.setAttribute("aria-valuetext", place(state.gS, state.gT) + "; " + planes.map(function (plane, i) {
          return plane.name.textContent + " " + found[i].value.toFixed(2);
        }).join(", "));
      }
    }
    function move(A) {
      state.along = null;
      state.gS = [Math.min(Math.max(A[0], LEFT), RIGHT), Math.min(Math.max(A[1], TOP - SIDE), TOP)];
      redraw();
    }
    function follow() {
      var begin = null;
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
        state.along = 1;
        return redraw();
      }
      state.along = 0;
      requestAnimationFrame(function frame(now) {
        if (state.along === null) return; // gS was moved
        if (begin === null) begin = now;
        state.along = Math.min((now - begin) / 2000, 1);
        redraw();
        if (state.along < 1) requestAnimationFrame(frame);
      });
    }

    planes.forEach(function (plane) {
      // A finger on gS moves it; anywhere else it scrolls the page, and a tap puts gS there.
      plane.handle.addEventListener("pointerdown", function (event) {
        event.preventDefault();
        plane.handle.setPointerCapture(event.pointerId);
        handle.focus({ preventScroll: true });
      });
      plane.handle.addEventListener("pointermove", function (event) {
        if (plane.handle.hasPointerCapture(event.pointerId)) move(plane.toPlane(event));
      });
      plane.canvas.addEventListener("pointerdown", function (event) {
        if (event.pointerType !== "mouse") return;
        event.preventDefault();
        move(plane.toPlane(event));
        plane.handle.setPointerCapture(event.pointerId);
        handle.focus({ preventScroll: true });
      });
      plane.canvas.addEventListener("click", function (event) { move(plane.toPlane(event)); });
    });
    handle.addEventListener("keydown", function (event) {
      var way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!way) return;
      event.preventDefault();
      var step = event.shiftKey ? 0.2 : 0.04;
      move([state.gS[0] + step * way[0], state.gS[1] + step * way[1]]);
    });

    figure.gm = {
      distance: function (weights, gS) { return distance(weights, gS, state.gT); },
      slope: function (weights, gS) { return slope(weights, gS, state.gT); },
      end: function (weights, gS) { return path(weights, gS, state.gT).pop(); },
      state: state,
    };
    figure.classList.add("gm-ready");
    new ResizeObserver(redraw).observe(planes[0].canvas);
    var themes = new MutationObserver(redraw);
    themes.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    themes.observe(document.body, { attributeFilter: ["data-jp-theme-light"] }); // in Jupyter
    redraw();
  }

  function startAll() {
    document.querySelectorAll("figure.gm-contours:not(.gm-ready)").forEach(start);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
