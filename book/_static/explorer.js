/* "What held up": filters, sorting and comparisons for the table of every number. The table is complete without it. */
(function () {
  "use strict";

  var ALL = "all", OURS = "ours";

  function make(tag, properties, parent) {
    var element = document.createElement(tag);
    Object.keys(properties || {}).forEach(function (name) {
      if (name === "text") element.textContent = properties[name];
      else element.setAttribute(name, properties[name]);
    });
    if (parent) parent.appendChild(element);
    return element;
  }

  function signed(value, digits) {
    return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
  }

  function unique(values) {
    return values.filter(function (value, i) { return value !== null && values.indexOf(value) === i; });
  }

  // ---- drawing a difference, like matrix.drawing

  function draw(reach, tone, ours, paper) {
    var NS = "http://www.w3.org/2000/svg";
    function part(name, attributes, parent) {
      var element = document.createElementNS(NS, name);
      Object.keys(attributes).forEach(function (key) { element.setAttribute(key, attributes[key]); });
      parent.appendChild(element);
      return element;
    }
    function x(value) { return 50 + 50 * Math.max(-1, Math.min(1, value / reach)) + "%"; }
    var svg = document.createElementNS(NS, "svg");
    svg.setAttribute("class", "gm-against-zero");
    svg.setAttribute("width", "100%");
    svg.setAttribute("height", "14");
    svg.setAttribute("aria-hidden", "true");
    part("line", { "class": "gm-zero", x1: "50%", x2: "50%", y1: 0, y2: 14 }, svg);
    var group = part("g", { "class": "gm-" + tone }, svg);
    if (paper !== null && Math.abs(paper) <= reach) part("circle", { "class": "gm-papers", cx: x(paper), cy: 7, r: 4 }, group);
    if (ours) {
      if (ours.low !== null) part("line", { "class": "gm-range", x1: x(ours.low), x2: x(ours.high), y1: 7, y2: 7 }, group);
      if (Math.abs(ours.d) <= reach) part("circle", { "class": "gm-ours", cx: x(ours.d), cy: 7, r: 2.6 }, group);
      var ends = [ours.d, ours.low === null ? ours.d : ours.low, ours.high === null ? ours.d : ours.high];
      if (Math.min.apply(null, ends) < -reach) part("text", { x: 0, y: 11.5 }, group).textContent = "‹";
      if (Math.max.apply(null, ends) > reach) part("text", { x: "100%", y: 11.5, "text-anchor": "end" }, group).textContent = "›";
    }
    return svg;
  }

  // ---- the table

  function connect(box) {
    box.setAttribute("data-ready", "");
    var data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    var body = box.querySelector("tbody");
    var heads = Array.prototype.slice.call(box.querySelectorAll("thead th"));
    var drawnHead = heads[4];
    var outcomes = Object.keys(data.signs);
    var rows = Array.prototype.map.call(body.rows, function (element, i) {
      var drawn = element.querySelector(".gm-drawn");
      return { element: element, drawn: drawn, plain: Array.prototype.slice.call(drawn.childNodes), i: i, of: data.rows[i] };
    });
    var controls = box.querySelector(".gm-controls");

    function choice(label, options) {
      var wrap = make("label", { text: label }, controls);
      var select = make("select", {}, wrap);
      options.forEach(function (option) { make("option", { value: option[0], text: option[1] }, select); });
      select.addEventListener("change", update);
      return select;
    }
    function every(name, shown) {
      var values = unique(data.rows.map(function (row) { return row[name]; }));
      if (name === "ipc") values.sort(function (a, b) { return a - b; });
      if (name === "outcome") values.sort(function (a, b) { return outcomes.indexOf(a) - outcomes.indexOf(b); });
      return [[ALL, "all"]].concat(values.map(function (value) {
        return [String(value), shown ? shown(value) : String(value)];
      }));
    }

    var filters = {
      dataset: choice("Data set", every("dataset")),
      ipc: choice("Images per class", every("ipc")),
      method: choice("Method", every("method")),
      outcome: choice("Outcome", [[OURS, "run or counted"]].concat(
        every("outcome", function (name) { return data.signs[name][0] + " " + name; }))),
    };
    var against = choice("Compare with", [["", "the paper's"]].concat(
      Object.keys(data.names).map(function (key) { return [key, data.names[key]]; })));
    var SORTS = [["i", "as printed"], ["outcome", "verdict"], ["method", "name"], ["ours", "ours"],
      ["paper", "paper"], ["difference", "difference"]];
    var sort = choice("Sort by", SORTS);
    var down = false;
    var turn = make("button", { type: "button", "aria-pressed": "false", text: "largest first" }, controls);
    turn.addEventListener("click", function () { down = !down; update(); });
    var reset = make("button", { type: "button", text: "show all" }, controls);
    reset.addEventListener("click", function () {
      Object.keys(filters).forEach(function (name) { filters[name].value = ALL; });
      against.value = ""; sort.value = "i"; down = false;
      update();
    });
    var caption = box.querySelector("caption"), plainCaption = caption.textContent;
    var count = make("output", { "aria-live": "polite" }, controls);

    // The heads sort too.
    ["outcome", "method", "ours", "paper", "difference"].forEach(function (key, at) {
      var text = heads[at].textContent;
      heads[at].textContent = "";
      make("button", { type: "button", text: text }, heads[at]).addEventListener("click", function () {
        down = sort.value === key ? !down : false;
        sort.value = key;
        update();
      });
    });

    function partner(row, method) {
      return data.rows.filter(function (other) {
        return other.key === method && other.dataset === row.dataset && other.ipc === row.ipc &&
          other.network === row.network && other.unit === row.unit;
      })[0];
    }
    function pairOf(row, method) {
      for (var j = 0; j < data.pairs.length; j += 1) {
        var pair = data.pairs[j];
        if (pair.at[0] !== row.dataset || pair.at[1] !== row.ipc || pair.at[2] !== row.network) continue;
        if (pair.a === row.key && pair.b === method) return pair;
        if (pair.b === row.key && pair.a === method) {
          return { d: -pair.d, low: pair.high === null ? null : -pair.high, high: pair.low === null ? null : -pair.low, budget: pair.budget };
        }
      }
      return null;
    }

    function compare(row) {
      var method = against.value, of = row.of;
      row.drawn.textContent = "";
      row.difference = null;
      if (!method) {
        row.plain.forEach(function (node) { row.drawn.appendChild(node); });
        if (of.ours !== null) row.difference = of.ours - of.paper;
        return;
      }
      if (of.key === null || of.key === method || of.unit !== "percent") return;
      var other = partner(of, method), pair = pairOf(of, method);
      var paper = other ? of.paper - other.paper : null;
      if (paper === null && !pair) return;
      var outcome = !pair ? "not run" : pair.low === null ? "too few sets" : pair.low > 0 ? "held" : pair.high < 0 ? "reversed" : "not decided";
      var words = { held: "above", reversed: "below" };
      row.drawn.appendChild(draw(data.reach, data.signs[outcome][1], pair, paper));
      if (pair) {
        row.difference = pair.d;
        var said = make("small", {}, row.drawn);
        make("span", { "class": "gm-sign gm-" + data.signs[outcome][1], text: data.signs[outcome][0] + " " + (words[outcome] || outcome) }, said);
        var range = pair.low === null ? "no interval" : signed(pair.low, 2) + " to " + signed(pair.high, 2);
        said.appendChild(document.createTextNode(" ours " + signed(pair.d, 2) + " (" + range + ")" +
          (pair.budget === "paper" ? "" : ", " + pair.budget + " budget")));
      }
      if (paper !== null) {
        if (row.difference === null) row.difference = paper;
        make("small", { text: "paper " + signed(paper, 1) }, row.drawn);
      }
    }

    function value(row, key) {
      if (key === "i") return row.i;
      if (key === "outcome") return outcomes.indexOf(row.of.outcome);
      if (key === "difference") return row.difference;
      return row.of[key];
    }

    function update() {
      var shown = 0, name = data.names[against.value];
      rows.forEach(function (row) {
        var fits = Object.keys(filters).every(function (key) {
          var wanted = filters[key].value;
          return wanted === ALL || (wanted === OURS ? row.of.ours !== null : String(row.of[key]) === wanted);
        });
        row.element.hidden = !fits;
        shown += fits ? 1 : 0;
        compare(row);
      });
      var key = sort.value, way = down ? -1 : 1;
      rows.slice().sort(function (a, b) {
        var p = value(a, key), q = value(b, key);
        if (p === null || q === null) return (p === null) - (q === null) || a.i - b.i; // without a value: last
        if (p === q) return a.i - b.i;
        return (p < q ? -1 : 1) * way;
      }).forEach(function (row) { body.appendChild(row.element); });
      drawnHead.firstChild.textContent = name ? "minus " + name : "ours minus the paper's";
      turn.setAttribute("aria-pressed", String(down));
      heads.forEach(function (head, at) {
        var keys = ["outcome", "method", "ours", "paper", "difference"];
        if (keys[at] === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      count.textContent = shown + " of " + rows.length + " numbers" +
        (shown ? "" : ": nothing fits. Choose less, or show all.");
      caption.textContent = name ? "The difference to " + name + ", in points: ● ours with its 95% interval, ○ the paper's. " +
        "The axis ends at ±" + data.reach + "." : plainCaption;
    }

    controls.hidden = false;
    update();
    // A count of the message shows its numbers.
    document.querySelectorAll(".gm-totals a[data-outcome]").forEach(function (link) {
      link.addEventListener("click", function () {
        Object.keys(filters).forEach(function (name) { filters[name].value = ALL; });
        filters.outcome.value = link.getAttribute("data-outcome");
        update();
      });
    });
  }

  // ---- an element inside closed rows: open them

  function open() {
    var id = decodeURIComponent(location.hash.slice(1));
    var target = id && document.getElementById(id);
    if (!target || !target.closest(".gm-matrix, .gm-runs")) return;
    for (var at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  }

  function start() {
    document.querySelectorAll(".gm-explorer:not([data-ready])").forEach(connect);
    if (document.querySelector(".gm-matrix, .gm-runs")) {
      window.addEventListener("hashchange", open);
      open();
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
