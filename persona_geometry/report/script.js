/* Draws each figure when it scrolls into view, in the reader's light or dark; everything else on the page works without it. */
(() => {
  "use strict";
  const root = document.documentElement;
  const theme = JSON.parse(document.getElementById("theme").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const boxes = Array.from(document.querySelectorAll(".plot"));
  const drawn = new Map();
  const NARROW = 560;
  let printing = false;

  const mode = () => (dark.matches && !printing ? "dark" : "light");
  const isObject = (value) => value !== null && typeof value === "object";

  function swap(text) {
    const lower = text.toLowerCase();
    if (lower in theme.swap) return theme.swap[lower];
    const parts = /^rgba\((\d+), ?(\d+), ?(\d+), ?([\d.]+)\)$/.exec(lower);
    const found = parts && theme.swap[`rgb(${parts[1]},${parts[2]},${parts[3]})`];
    return found ? `rgba(${found},${parts[4]})` : text;
  }

  /* A fresh copy, since Plotly writes into what it is given; colours change to their dark twins on the way. */
  function copy(value, recolour) {
    if (typeof value === "string") return recolour ? swap(value) : value;
    if (Array.isArray(value)) return value.map((item) => copy(item, recolour));
    if (!isObject(value)) return value;
    if ("bdata" in value) return { ...value };
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, copy(item, recolour)]));
  }

  function merge(target, extra) {
    for (const [key, value] of Object.entries(extra)) {
      if (isObject(value) && !Array.isArray(value) && isObject(target[key])) merge(target[key], value);
      else target[key] = value;
    }
    return target;
  }

  function source(box) {
    return JSON.parse(document.getElementById(`${box.id}-data`).textContent);
  }

  function dress(figure, narrow) {
    const { data, layout } = copy(figure, mode() === "dark");
    const phone = (layout.meta && layout.meta.narrow) || {};
    delete layout.width;
    layout.template = theme[mode()];
    layout.autosize = true;
    layout.dragmode = false;
    layout.font = { ...layout.font, family: window.getComputedStyle(document.body).fontFamily };
    if (narrow) {
      merge(layout, phone.layout || {});
      for (const [index, change] of Object.entries(phone.data || {})) merge(data[index], change);
    }
    return { data, layout };
  }

  function draw(box) {
    const narrow = box.clientWidth < NARROW;
    const state = `${mode()} ${narrow}`;
    if (drawn.get(box) === state) return Promise.resolve(box);
    drawn.set(box, state);
    const { data, layout } = dress(source(box), narrow);
    box.style.height = `${layout.height}px`;
    return window.Plotly.newPlot(box, data, layout, { ...theme.config }).then(() => {
      box.dataset.drawn = "true";
      for (const svg of box.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
      return box;
    });
  }

  const drawAll = () => Promise.all(boxes.map(draw));
  const redraw = () => boxes.filter((box) => drawn.has(box)).forEach(draw);
  window.drawAll = drawAll;

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px 0px" });
  boxes.forEach((box) => observer.observe(box));
  if (new URLSearchParams(window.location.search).get("draw") === "all") drawAll();

  let pause = 0;
  window.addEventListener("resize", () => {
    window.clearTimeout(pause);
    pause = window.setTimeout(redraw, 150);
  });
  dark.addEventListener("change", redraw);

  function print(on) {
    printing = on;
    root.classList.toggle("printing", on);
    for (const box of boxes) {
      drawn.delete(box);
      draw(box);
    }
  }
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const said = (text) => {
      button.textContent = text;
      window.setTimeout(() => { button.textContent = "Copy"; }, 1600);
    };
    const code = document.getElementById(button.dataset.copies);
    const select = () => {
      window.getSelection().selectAllChildren(code);
      said("Selected");
    };
    if (!navigator.clipboard) return select();
    navigator.clipboard.writeText(code.textContent).then(() => said("Copied"), select);
  });

  const links = new Map(Array.from(document.querySelectorAll("nav a"), (link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link || !entry.isIntersecting) continue;
      links.forEach((other) => other.removeAttribute("aria-current"));
      link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main section[id]").forEach((part) => reading.observe(part));
})();
