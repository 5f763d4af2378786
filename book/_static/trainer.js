/* Trains two small networks in the page, on ten random digits and on ten condensed ones, and lets them read a drawing.
   gmreport/trainer.py makes the page; gmlib trains the same networks from the same weights (workflow/trainer.py). */
(function () {
  "use strict";

  var NETS = ["random", "condensed"];
  var SIDE = 8; // pixels of an image
  var FINE = 32; // the grid of a drawing: 4x4 cells make a pixel, as in scikit-learn's digits
  var WIDEST = 28; // cells across, as most of them
  var BRUSH = 2.8; // half the width of a stroke, in cells
  var PACE = 100; // milliseconds between two points of the curve, so that it can be followed

  // ---- numbers

  /* mulberry32: numbers in [0, 1) that depend on the seed only. */
  function mulberry32(seed) {
    return function () {
      seed = (seed + 0x6d2b79f5) | 0;
      var t = Math.imul(seed ^ (seed >>> 15), seed | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /* "a" to "q" are 0 to 16 of ink; "A" to "Y" are 2 to 26 pixels without ink. */
  function unpack(text) {
    var long = text.replace(/[A-Y]/g, function (run) {
      return "a".repeat(run.charCodeAt(0) - 63);
    });
    return Uint8Array.from(long, function (c) {
      return c.charCodeAt(0) - 97;
    });
  }

  // ---- the network: linear layers with ReLU between them

  function freshLayers(sizes, random) {
    return sizes.slice(1).map(function (out, i) {
      var inn = sizes[i];
      var bound = 1 / Math.sqrt(inn);
      function draw() {
        return (2 * random() - 1) * bound;
      }
      return {
        inn: inn,
        out: out,
        W: Float32Array.from({ length: out * inn }, draw),
        b: Float32Array.from({ length: out }, draw),
        vW: new Float32Array(out * inn), // momentum
        vb: new Float32Array(out),
      };
    });
  }

  function copyLayers(layers) {
    return layers.map(function (l) {
      return { inn: l.inn, out: l.out, W: l.W.slice(), b: l.b.slice(), vW: l.vW.slice(), vb: l.vb.slice() };
    });
  }

  /* The inputs of every layer, and last the logits, for n images in one array. */
  function forward(layers, x, n) {
    var all = [x];
    layers.forEach(function (l, depth) {
      all.push(apply(l, all[depth], n, depth === layers.length - 1));
    });
    return all;
  }

  function apply(layer, a, n, isLast) {
    var inn = layer.inn; // a multiple of 4
    var out = layer.out;
    var W = layer.W;
    var b = layer.b;
    var z = new Float32Array(n * out);
    for (var i = 0; i < n; i++) {
      for (var o = 0; o < out; o++) {
        // Four sums that do not wait for each other are faster than one.
        var s0 = b[o];
        var s1 = 0;
        var s2 = 0;
        var s3 = 0;
        for (var w = o * inn, end = w + inn, at = i * inn; w < end; w += 4, at += 4) {
          s0 += W[w] * a[at];
          s1 += W[w + 1] * a[at + 1];
          s2 += W[w + 2] * a[at + 2];
          s3 += W[w + 3] * a[at + 3];
        }
        s0 += s1 + s2 + s3;
        z[i * out + o] = isLast || s0 > 0 ? s0 : 0;
      }
    }
    return z;
  }

  /* Probabilities of one image, from its logits. */
  function softmax(logits) {
    var top = Math.max.apply(null, logits);
    var e = Array.from(logits, function (v) {
      return Math.exp(v - top);
    });
    var sum = e.reduce(function (a, b) {
      return a + b;
    });
    return e.map(function (v) {
      return v / sum;
    });
  }

  /* One step of SGD with momentum and weight decay on the mean cross-entropy. Image i has the class i. */
  function step(layers, x, n, lr, momentum, decay) {
    var all = forward(layers, x, n);
    var C = layers[layers.length - 1].out;
    var g = new Float32Array(n * C); // the gradient of the outputs of a layer
    for (var i = 0; i < n; i++) {
      softmax(all[layers.length].subarray(i * C, (i + 1) * C)).forEach(function (p, c) {
        g[i * C + c] = (p - (c === i ? 1 : 0)) / n;
      });
    }
    for (var depth = layers.length - 1; depth >= 0; depth--) {
      g = descend(layers[depth], all[depth], g, n, lr, momentum, decay, depth > 0);
    }
  }

  /* Update a layer with the inputs a and the gradient g of its outputs. Returns the gradient of its inputs. */
  function descend(layer, a, g, n, lr, momentum, decay, afterReLU) {
    var inn = layer.inn;
    var out = layer.out;
    var W = layer.W;
    var vW = layer.vW;
    var back = new Float32Array(n * inn);
    var gW = new Float64Array(inn);
    for (var o = 0, w = 0; o < out; o++, w += inn) {
      var gb = 0;
      gW.fill(0);
      for (var i = 0; i < n; i++) {
        var d = g[i * out + o];
        if (d === 0) continue;
        gb += d;
        for (var j = 0, at = i * inn; j < inn; j++, at++) {
          gW[j] += d * a[at];
          back[at] += d * W[w + j];
        }
      }
      layer.vb[o] = momentum * layer.vb[o] + gb + decay * layer.b[o];
      layer.b[o] -= lr * layer.vb[o];
      for (j = 0; j < inn; j++) {
        var v = (vW[w + j] = momentum * vW[w + j] + gW[j] + decay * W[w + j]);
        W[w + j] -= lr * v;
      }
    }
    if (afterReLU) for (i = 0; i < back.length; i++) if (a[i] === 0) back[i] = 0;
    return back;
  }

  function largest(values) {
    var best = 0;
    for (var c = 1; c < values.length; c++) if (values[c] > values[best]) best = c;
    return best;
  }

  // ---- one trainer

  function begin(root) {
    var about = JSON.parse(root.querySelector("script").textContent);
    var train = unpack(about.train);
    var test = unpack(about.test);
    var size = SIDE * SIDE;
    var n = about.counts.length;
    var nTest = about.labels.length;
    var testImages = normalised(test);
    var last = about.steps[about.steps.length - 1];
    var condensed = new Float32Array(
      Uint8Array.from(atob(about.condensed), function (c) {
        return c.charCodeAt(0);
      }).buffer
    );
    var calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    var networks = null; // the trained ones, or those in training
    var attempts = new Map(); // seed -> the last accuracies
    var busy = false;

    function one(selector) {
      return root.querySelector(selector);
    }
    function of(net, where, what) {
      return root.querySelector(where + " .gm-" + net + " " + what);
    }
    function percent(a) {
      return a.toFixed(1) + "\u00a0%";
    }
    function sleep(ms) {
      return new Promise(function (resolve) {
        setTimeout(resolve, ms);
      });
    }

    /* Ink 0 to 16 as the library normalises it, with the same roundings to 32 bits. */
    function normalised(ink) {
      var f = Math.fround;
      return Float32Array.from(ink, function (v) {
        return f(f(f(v / 16) - f(about.mean)) / f(about.std));
      });
    }

    /* The draw of a seed: an image of each class, then the weights. */
    function draw(seed) {
      var random = mulberry32(seed);
      var images = new Float32Array(n * size);
      var first = 0;
      about.counts.forEach(function (count, c) {
        var at = (first + Math.floor(random() * count)) * size;
        images.set(normalised(train.subarray(at, at + size)), c * size);
        first += count;
      });
      return { images: images, layers: freshLayers(about.layers, random) };
    }

    function accuracy(layers) {
      var logits = forward(layers, testImages, nTest)[layers.length];
      var right = 0;
      for (var i = 0; i < nTest; i++) {
        if (largest(logits.subarray(i * n, (i + 1) * n)) === Number(about.labels[i])) right++;
      }
      return (100 * right) / nTest;
    }

    // ---- pictures

    function x(taken) {
      var c = about.chart;
      return c.left + ((c.right - c.left) * Math.log1p(taken)) / Math.log1p(last);
    }
    function y(a) {
      return about.chart.bottom - ((about.chart.bottom - about.chart.top) * a) / 100;
    }

    function drawCurves(curves) {
      NETS.forEach(function (net) {
        var values = curves[net];
        var end = values.length - 1;
        var d = values.map(function (a, i) {
          return (i ? "L" : "M") + x(about.steps[i]).toFixed(1) + " " + y(a).toFixed(1);
        });
        of(net, ".gm-chart", ".gm-train-line").setAttribute("d", d.join(""));
        var dot = of(net, ".gm-chart", "circle");
        dot.setAttribute("cx", x(about.steps[end]));
        dot.setAttribute("cy", y(values[end]));
        var name = of(net, ".gm-chart", ".gm-end");
        name.textContent = net + " " + percent(values[end]);
        name.setAttribute("y", y(values[end]) + (net === "random" ? 17 : -8));
        of(net, ".gm-sets", "b").textContent = percent(values[end]);
      });
    }

    /* Leave the finished curves behind as thin lines. */
    function keepCurves() {
      NETS.forEach(function (net) {
        var old = of(net, ".gm-chart", ".gm-train-line").cloneNode();
        old.removeAttribute("class");
        of(net, ".gm-chart", ".gm-earlier").appendChild(old);
      });
    }

    function showSet(net, images) {
      var canvas = document.createElement("canvas");
      canvas.width = n * (SIDE + 1) - 1;
      canvas.height = SIDE;
      for (var c = 0; c < n; c++) paint(canvas, images.subarray(c * size, (c + 1) * size), c * (SIDE + 1));
      of(net, ".gm-sets", "img").src = canvas.toDataURL();
    }

    /* Draw a normalised image on a canvas, a pixel for a pixel. */
    function paint(canvas, image, left) {
      var context = canvas.getContext("2d");
      var picture = context.createImageData(SIDE, SIDE);
      image.forEach(function (v, i) {
        picture.data.fill(Math.round(255 * (v * about.std + about.mean)), 4 * i, 4 * i + 3);
        picture.data[4 * i + 3] = 255;
      });
      context.putImageData(picture, left, 0);
    }

    function showAttempts() {
      var text = NETS.map(function (net) {
        var values = Array.from(attempts.values(), function (a) {
          return a[net];
        });
        var low = about.strip.low;
        var dots = of(net, ".gm-strip-chart", ".gm-dots");
        dots.textContent = "";
        values.forEach(function (a) {
          var dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
          var width = about.strip.right - about.strip.left;
          dot.setAttribute("cx", about.strip.left + (width * Math.max(0, a - low)) / (100 - low));
          dot.setAttribute("r", 4.5);
          dots.appendChild(dot);
        });
        var mean =
          values.reduce(function (a, b) {
            return a + b;
          }) / values.length;
        var range = Math.min.apply(null, values).toFixed(1) + " to " + Math.max.apply(null, values).toFixed(1);
        return net + " " + percent(mean) + (values.length > 1 ? " on average (" + range + ")" : "");
      });
      one(".gm-attempts").hidden = false;
      one(".gm-attempts").textContent =
        (attempts.size > 1 ? "The dots are your " + attempts.size + " seeds: " : "The dots are yours: ") +
        text.reverse().join(", ") + ".";
    }

    // ---- training

    async function attempt(seed, pace) {
      var drawn = draw(seed);
      var sets = { random: drawn.images, condensed: condensed };
      var curves = { random: [], condensed: [] };
      if (root.gmTrained) keepCurves();
      networks = { random: drawn.layers, condensed: copyLayers(drawn.layers) };
      showSet("random", drawn.images);
      for (var i = 0, taken = 0; i < about.steps.length; i++) {
        var began = performance.now();
        for (; taken < about.steps[i]; taken++) {
          var lr = about.lr / (taken < Math.floor(last / 2) ? 1 : 10);
          NETS.forEach(function (net) {
            step(networks[net], sets[net], n, lr, about.momentum, about.weight_decay);
          });
        }
        NETS.forEach(function (net) {
          curves[net].push(accuracy(networks[net]));
        });
        if (!calm.matches || taken === last) {
          drawCurves(curves);
          read();
        }
        await sleep(Math.max(0, (calm.matches ? 0 : pace) - (performance.now() - began)));
      }
      var ends = { random: curves.random[i - 1], condensed: curves.condensed[i - 1] };
      attempts.delete(seed);
      attempts.set(seed, ends);
      showAttempts();
      root.gmTrained = { seed: seed, accuracies: curves, networks: networks };
      return ends;
    }

    async function run(count, pace) {
      if (busy) return;
      busy = true;
      var input = one("input");
      var buttons = root.querySelectorAll(".gm-train, .gm-train-more");
      var seed = Math.min(4294967295, Math.max(1, Math.floor(Number(input.value)) || 1));
      root.dataset.state = "training";
      buttons.forEach(function (button) {
        button.setAttribute("aria-disabled", "true");
      });
      one(".gm-result").textContent = "Training with seed " + seed + " …";
      for (var i = 0; i < count; i++) {
        var ends = await attempt(seed + i, pace);
        input.value = seed + i + 1;
      }
      var words = ". Ten condensed digits: " + percent(ends.condensed) + " of the " + nTest +
        " test digits read correctly. Ten random digits: " + percent(ends.random) + ".";
      one(".gm-result").textContent = "Trained in your browser, seed " + (seed + count - 1) + words;
      one(".gm-chart").setAttribute("aria-label", "Accuracy against training steps, seed " + (seed + count - 1) + words);
      one(".gm-train").textContent = "Train again";
      buttons.forEach(function (button) {
        button.removeAttribute("aria-disabled");
      });
      root.dataset.state = "ready";
      busy = false;
      read(true);
    }

    // ---- drawing and reading

    var pad = one(".gm-pad");
    var strokes = []; // lists of points [x, y] in [0, 1]
    var shown = null; // the image to read, 64 normalised pixels
    var truth = ""; // the class of a test digit
    var pen = { row: 1, column: 3, down: false, visible: false };

    /* A drawing as 8x8 pixels: scaled to the full height and centred, then 4x4 cells for each pixel. */
    function downsample() {
      var points = strokes.flat();
      var lows = [0, 1].map(function (k) {
        return Math.min.apply(null, points.map(function (p) { return p[k]; }));
      });
      var highs = [0, 1].map(function (k) {
        return Math.max.apply(null, points.map(function (p) { return p[k]; }));
      });
      var room = [WIDEST - 2 * BRUSH, FINE - 2 * BRUSH];
      var scale = Math.min(
        room[0] / Math.max(0.2, highs[0] - lows[0]),
        room[1] / Math.max(0.2, highs[1] - lows[1])
      );
      var ink = new Uint8Array(size);
      var moved = strokes.map(function (stroke) {
        return stroke.map(function (p) {
          return [0, 1].map(function (k) {
            return FINE / 2 + (p[k] - (lows[k] + highs[k]) / 2) * scale;
          });
        });
      });
      for (var row = 0; row < FINE; row++) {
        for (var column = 0; column < FINE; column++) {
          var near = moved.some(function (stroke) {
            return stroke.some(function (p, i) {
              return distance(column + 0.5, row + 0.5, stroke[Math.max(0, i - 1)], p) <= BRUSH;
            });
          });
          if (near) ink[SIDE * Math.floor(row / 4) + Math.floor(column / 4)]++;
        }
      }
      return normalised(ink);
    }

    /* From a point to the line between p and q. */
    function distance(px, py, p, q) {
      var dx = q[0] - p[0];
      var dy = q[1] - p[1];
      var long = dx * dx + dy * dy;
      var t = long ? Math.max(0, Math.min(1, ((px - p[0]) * dx + (py - p[1]) * dy) / long)) : 0;
      return Math.hypot(px - p[0] - t * dx, py - p[1] - t * dy);
    }

    function drawPad() {
      var context = pad.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, pad.width, pad.height);
      if (truth) {
        context.imageSmoothingEnabled = false;
        context.drawImage(one(".gm-seen"), 0, 0, pad.width, pad.height);
      }
      if (!truth && !strokes.length && !pen.visible) {
        context.fillStyle = "#bbb";
        context.font = "20px sans-serif";
        context.textAlign = "center";
        context.fillText("draw here", pad.width / 2, pad.height / 2);
      }
      context.strokeStyle = context.fillStyle = "#fff";
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = (2 * BRUSH * pad.width) / FINE;
      strokes.forEach(function (stroke) {
        context.beginPath();
        stroke.concat(stroke.slice(-1)).forEach(function (p) {
          context.lineTo(p[0] * pad.width, p[1] * pad.height); // the last point twice: a lone one is a dot
        });
        context.stroke();
      });
      if (pen.visible) {
        context.beginPath();
        context.arc(at(pen.column) * pad.width, at(pen.row) * pad.height, 11, 0, 2 * Math.PI);
        context.lineWidth = 4;
        context.strokeStyle = "#ffb000";
        context.stroke();
        if (pen.down) {
          context.fillStyle = "#ffb000";
          context.fill();
        }
      }
    }

    function at(cell) {
      return (cell + 0.5) / SIDE;
    }

    /* Both networks read the image in the pad. `aloud`: for screen readers too. */
    function read(aloud) {
      var seen = one(".gm-seen");
      var words = [];
      if (shown) paint(seen, shown, 0);
      else seen.getContext("2d").clearRect(0, 0, SIDE, SIDE);
      NETS.forEach(function (net) {
        var p = shown && networks ? softmax(forward(networks[net], shown, 1)[networks[net].length]) : null;
        var best = p && largest(p);
        root.querySelectorAll(".gm-bars .gm-" + net + " li").forEach(function (column, digit) {
          column.firstChild.style.setProperty("--gm-share", p ? p[digit] : 0);
          column.className = p && digit === best ? "gm-best" : "";
        });
        var said = p ? best + " (" + Math.round(100 * p[best]) + "\u00a0%)" : "–";
        of(net, ".gm-bars", "b").textContent = said;
        if (p) words.push(" Ten " + net + " digits read " + said + ".");
      });
      drawPad();
      if (!aloud) return;
      var note = truth ? "A test digit: it is a " + truth + "." : "";
      if (shown && !networks) note += " Train both networks, then they read it.";
      say(note, words.reverse().join(""));
    }

    /* A note below the pad, and what only a screen reader needs because the bars show it. */
    function say(note, spoken) {
      one(".gm-train-said span").textContent = note;
      one(".gm-train-said .gm-hidden").textContent = spoken || "";
    }

    function changed(aloud) {
      truth = "";
      shown = strokes.length ? downsample() : null;
      read(aloud);
    }

    function place(event) {
      var box = pad.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(function (v) {
        return Math.min(1, Math.max(0, v));
      });
    }

    pad.addEventListener("pointerdown", function (event) {
      if (!event.isPrimary || event.button > 0) return;
      pad.setPointerCapture(event.pointerId);
      pen.visible = pen.down = false;
      strokes.push([place(event)]);
      changed();
    });
    pad.addEventListener("pointermove", function (event) {
      if (!event.isPrimary || !pad.hasPointerCapture(event.pointerId) || !strokes.length) return;
      strokes[strokes.length - 1].push(place(event));
      changed();
    });
    ["pointerup", "pointercancel"].forEach(function (name) {
      pad.addEventListener(name, function (event) {
        if (event.isPrimary) read(true);
      });
    });

    var MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    pad.addEventListener("keydown", function (event) {
      var move = MOVES[event.key];
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (!move && [" ", "Backspace", "Delete"].indexOf(event.key) < 0) return;
      event.preventDefault();
      pen.visible = true;
      if (move) {
        pen.row = Math.min(SIDE - 1, Math.max(0, pen.row + move[0]));
        pen.column = Math.min(SIDE - 1, Math.max(0, pen.column + move[1]));
      } else {
        pen.down = event.key === " " && !pen.down;
        if (event.key === "Backspace") strokes.pop();
        if (event.key === "Delete") strokes = [];
        if (pen.down) strokes.push([]);
      }
      if (pen.down) strokes[strokes.length - 1].push([at(pen.column), at(pen.row)]);
      if (pen.down || !move) changed(!pen.down);
      else drawPad();
      if (pen.down || move) {
        say("Pen " + (pen.down ? "down" : "up") + ", row " + (pen.row + 1) + ", column " + (pen.column + 1) + " of 8.");
      }
    });
    pad.addEventListener("focus", function () {
      pen.visible = pad.matches(":focus-visible");
      drawPad();
    });
    pad.addEventListener("blur", function () {
      pen.visible = pen.down = false;
      drawPad();
    });

    one(".gm-clear").addEventListener("click", function () {
      strokes = [];
      changed();
      say("The pad is empty.");
    });

    /* Show a random test digit out of these. */
    function showTest(numbers) {
      var i = numbers[Math.floor(Math.random() * numbers.length)];
      strokes = [];
      shown = testImages.slice(i * size, (i + 1) * size);
      truth = about.labels[i];
      paint(one(".gm-seen"), shown, 0);
      read(true);
    }

    one(".gm-any").addEventListener("click", function () {
      showTest(Array.from({ length: nTest }, function (_, i) { return i; }));
    });
    one(".gm-differ").addEventListener("click", function () {
      if (!networks) {
        say("Train both networks first.");
        return;
      }
      var logits = NETS.map(function (net) {
        return forward(networks[net], testImages, nTest)[networks[net].length];
      });
      var numbers = [];
      for (var i = 0; i < nTest; i++) {
        var reads = logits.map(function (z) {
          return largest(z.subarray(i * n, (i + 1) * n));
        });
        if (reads[0] !== reads[1]) numbers.push(i);
      }
      if (numbers.length) showTest(numbers);
      else say("They read all test digits alike.");
    });

    one(".gm-train").addEventListener("click", function () {
      run(1, PACE);
    });
    one(".gm-train-more").addEventListener("click", function () {
      run(5, 0);
    });
    root.querySelectorAll(".gm-train-controls, .gm-read").forEach(function (part) {
      part.hidden = false;
    });
    root.dataset.state = "waiting";
    drawPad();
  }

  function start() {
    document.querySelectorAll(".gm-trainer:not([data-state])").forEach(begin);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
