/* The film at the top of the first page: one state at a time, moved by its slider and by scrolling. */
"use strict";
(function () {
  function connect(hero) {
    var states = hero.querySelectorAll(".gm-hero-state");
    var slider = hero.querySelector("input[type=range]");
    if (!slider) return;
    var stops = hero.querySelectorAll(".gm-hero-stop");
    var dots = hero.querySelectorAll(".gm-hero-dot");
    var names = JSON.parse(hero.querySelector("script[type='application/json']").textContent);
    var last = states.length - 1;

    function show(now) {
      states.forEach(function (state, i) {
        state.classList.toggle("gm-now", i === now);
      });
      stops.forEach(function (stop, i) {
        stop.classList.toggle("gm-now", i === now);
      });
      dots.forEach(function (dot) {
        dot.classList.toggle("gm-now", Number(dot.dataset.stop) === now);
      });
      slider.value = now;
      slider.setAttribute("aria-valuetext", names[now]);
    }

    // At the top of the page the film shows its end. Scrolling plays it from the start, and ends it when its images
    // are near the top of the window. A reader who takes the slider keeps it.
    function follow() {
      var top = hero.querySelector(".gm-hero-states").getBoundingClientRect().top;
      var way = Math.max(120, top + window.scrollY - 130);
      var share = window.scrollY < 4 ? 1 : Math.min(1, window.scrollY / way);
      show(Math.round(last * share));
    }
    function take() {
      window.removeEventListener("scroll", follow);
    }

    slider.addEventListener("input", function () {
      take();
      show(Number(slider.value));
    });
    stops.forEach(function (stop, i) {
      stop.addEventListener("click", function () {
        take();
        show(i);
      });
    });
    slider.parentElement.hidden = false;
    hero.classList.add("gm-ready");
    show(last);
    if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      window.addEventListener("scroll", follow, { passive: true });
    }
  }

  function start() {
    document.querySelectorAll(".gm-hero:not(.gm-ready)").forEach(connect);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
