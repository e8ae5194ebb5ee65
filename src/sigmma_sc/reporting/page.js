"use strict";
(() => {
  const MISSING = "#bbbbbb";
  const EDGE = 65535;
  const NO_SHARE = 255;
  const ROLES = [
    ["train", "#0072b2"], ["validation", "#e69f00"], ["test", "#d55e00"],
    ["guard", "#999999"], ["left out", "#000000"], ["not trained on", "#0072b2"],
  ];
  const KINDS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array };
  const page = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const canvas = element("canvas");
  const state = { slide: 0, scale: 0, only: -1, kept: -1, x: 0, y: 0, zoom: 1 };

  function unpack(packed) {
    const text = atob(packed.data);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new KINDS[packed.type](bytes.buffer);
  }

  // Positions in px of level 0.
  function places(packed, slide) {
    const shares = unpack(packed);
    const out = new Float32Array(shares.length);
    for (let i = 0; i < out.length; i += 2) {
      out[i] = (shares[i] / EDGE) * slide.width;
      out[i + 1] = (shares[i + 1] / EDGE) * slide.height;
    }
    return out;
  }

  function unpackAll(packed) {
    const out = {};
    for (const name of Object.keys(packed)) out[name] = unpack(packed[name]);
    return out;
  }

  // Indices 0 … n − 1 grouped by key: those of key k are order[start[k]] … order[start[k + 1] − 1].
  function grouped(n, nKeys, keyOf) {
    const start = new Uint32Array(nKeys + 2);
    for (let i = 0; i < n; i++) start[keyOf(i) + 1]++;
    for (let k = 0; k <= nKeys; k++) start[k + 1] += start[k];
    const next = start.slice();
    const order = new Uint32Array(n);
    for (let i = 0; i < n; i++) order[next[keyOf(i)]++] = i;
    return { order, start };
  }

  function loaded(slide) {
    const cells = slide.cells;
    const at = places(cells.at, slide);
    const side = Math.max(1, 2 * Math.sqrt((slide.width * slide.height) / Math.max(1, cells.n)));
    const columns = Math.floor(slide.width / side) + 1;
    const rows = Math.floor(slide.height / side) + 1;
    const squareOf = (i) => Math.floor(at[2 * i + 1] / side) * columns + Math.floor(at[2 * i] / side);
    const image = new Image();
    image.addEventListener("load", redraw);
    image.src = slide.image;
    return {
      ...slide, at, image, side, columns, rows,
      n: cells.n,
      row: unpack(cells.row),
      niche: unpackAll(cells.niche),
      confidence: unpackAll(cells.confidence),
      gene: cells.gene ? unpack(cells.gene) : null,
      counts: cells.counts ? unpack(cells.counts) : null,
      radius: cells.radius,
      tileAt: places(slide.tiles.at, slide),
      tileRole: unpack(slide.tiles.role),
      squares: grouped(cells.n, columns * rows, squareOf),
      byNiche: {},
    };
  }

  const slides = page.slides.map(loaded);
  const slideNow = () => slides[state.slide];
  const scaleNow = () => page.scales[state.scale];

  // Cells of a slide grouped by niche; the last group has none.
  function groups(slide, scale) {
    if (!slide.byNiche[scale.name]) {
      const niche = slide.niche[scale.name];
      const last = scale.niches.length;
      slide.byNiche[scale.name] = grouped(slide.n, last + 1, (i) => Math.min(niche[i], last));
    }
    return slide.byNiche[scale.name];
  }

  function drawCells(ctx, slide, scale, view, width, height, only) {
    const { order, start } = groups(slide, scale);
    const radius = Math.max(0.7, slide.radius * view.zoom);
    const round = radius > 2.5;
    for (let k = scale.niches.length; k >= 0; k--) {
      if (only >= 0 && k !== only) continue;
      ctx.fillStyle = k < scale.niches.length ? scale.niches[k].colour : MISSING;
      if (round) ctx.beginPath();
      for (let j = start[k]; j < start[k + 1]; j++) {
        const x = (slide.at[2 * order[j]] - view.x) * view.zoom;
        const y = (slide.at[2 * order[j] + 1] - view.y) * view.zoom;
        if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
        if (round) {
          ctx.moveTo(x + radius, y);
          ctx.arc(x, y, radius, 0, 2 * Math.PI);
        } else ctx.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
      }
      if (round) ctx.fill();
    }
  }

  function drawTiles(ctx, slide, view) {
    const side = slide.tiles.side * view.zoom;
    ctx.lineWidth = 1.5;
    for (let t = 0; t < slide.tileRole.length; t++) {
      const role = slide.tileRole[t];
      const x = (slide.tileAt[2 * t] - view.x) * view.zoom;
      const y = (slide.tileAt[2 * t + 1] - view.y) * view.zoom;
      ctx.strokeStyle = ROLES[role][1];
      ctx.strokeRect(x + 1, y + 1, side - 2, side - 2);
      if (role === 4) { // left out: crossed, and so told without colour
        ctx.beginPath();
        ctx.moveTo(x + 1, y + 1);
        ctx.lineTo(x + side - 1, y + side - 1);
        ctx.stroke();
      }
    }
  }

  // A unit is a pixel of the screen, and more on the larger canvas of a print.
  function drawBar(ctx, slide, view, width, height, unit = 1) {
    const most = (0.25 * width * slide.microns) / view.zoom;
    const power = 10 ** Math.floor(Math.log10(most));
    const microns = power * [5, 2, 1].find((k) => k * power <= most);
    const length = (microns / slide.microns) * view.zoom;
    const text = microns >= 1000 ? `${microns / 1000} mm` : `${microns} µm`;
    ctx.font = `${13 * unit}px system-ui, sans-serif`;
    const wide = Math.max(length, ctx.measureText(text).width);
    ctx.fillStyle = "rgba(255, 255, 255, .85)";
    ctx.fillRect(8 * unit, height - 38 * unit, wide + 16 * unit, 30 * unit);
    ctx.fillStyle = "#000";
    ctx.fillText(text, 16 * unit, height - 22 * unit);
    ctx.fillRect(16 * unit, height - 16 * unit, length, 3 * unit);
  }

  let waiting = false;
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function draw() {
    const density = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
    }
    const ctx = canvas.getContext("2d");
    const slide = slideNow();
    ctx.setTransform(density, 0, 0, density, 0, 0);
    ctx.clearRect(0, 0, width, height);
    if (element("image").checked && slide.image.complete) {
      const { x, y, zoom } = state;
      ctx.drawImage(slide.image, -x * zoom, -y * zoom, slide.width * zoom, slide.height * zoom);
    }
    ctx.globalAlpha = element("opacity").value / 100;
    drawCells(ctx, slide, scaleNow(), state, width, height, state.only);
    ctx.globalAlpha = 1;
    if (element("tiles").checked) drawTiles(ctx, slide, state);
    if (state.kept >= 0) {
      const x = (slide.at[2 * state.kept] - state.x) * state.zoom;
      const y = (slide.at[2 * state.kept + 1] - state.y) * state.zoom;
      const radius = Math.max(7, slide.radius * state.zoom + 2);
      for (const [colour, line] of [["#fff", 5], ["#000", 2.5]]) {
        ctx.strokeStyle = colour;
        ctx.lineWidth = line;
        ctx.beginPath();
        ctx.arc(x, y, radius, 0, 2 * Math.PI);
        ctx.stroke();
      }
    }
    drawBar(ctx, slide, state, width, height);
  }

  function whole() {
    const slide = slideNow();
    state.zoom = Math.min(canvas.clientWidth / slide.width, canvas.clientHeight / slide.height) || 1;
    state.x = (slide.width - canvas.clientWidth / state.zoom) / 2;
    state.y = (slide.height - canvas.clientHeight / state.zoom) / 2;
    redraw();
  }

  function zoomAt(factor, x, y) {
    const slide = slideNow();
    const least = Math.min(canvas.clientWidth / slide.width, canvas.clientHeight / slide.height) / 2;
    const zoom = Math.min(Math.max(state.zoom * factor, least), 40 / Math.max(slide.radius, 1e-6));
    state.x += x / state.zoom - x / zoom;
    state.y += y / state.zoom - y / zoom;
    state.zoom = zoom;
    redraw();
  }

  // Number of the cell nearest to a point of the canvas, at most 12 px away; −1 for none.
  function nearest(x, y) {
    const slide = slideNow();
    const px = x / state.zoom + state.x;
    const py = y / state.zoom + state.y;
    let best = -1;
    let least = Math.max(12 / state.zoom, slide.radius) ** 2;
    const reach = Math.min(Math.ceil(Math.sqrt(least) / slide.side), Math.max(slide.columns, slide.rows));
    const column = Math.floor(px / slide.side);
    const row = Math.floor(py / slide.side);
    const { order, start } = slide.squares;
    for (let r = Math.max(0, row - reach); r <= Math.min(slide.rows - 1, row + reach); r++) {
      for (let c = Math.max(0, column - reach); c <= Math.min(slide.columns - 1, column + reach); c++) {
        const square = r * slide.columns + c;
        for (let j = start[square]; j < start[square + 1]; j++) {
          const i = order[j];
          const distance = (slide.at[2 * i] - px) ** 2 + (slide.at[2 * i + 1] - py) ** 2;
          if (distance < least) { least = distance; best = i; }
        }
      }
    }
    return best;
  }

  function dot(colour) {
    const span = document.createElement("span");
    span.className = "dot";
    span.style.background = colour;
    return span;
  }

  function describe(i) {
    if (i < 0) return;
    const slide = slideNow();
    const told = element("cell");
    const microns = (value) => Math.round(value * slide.microns).toLocaleString("en");
    told.textContent = `Row ${slide.row[i].toLocaleString("en")} of the table, at ` +
      `${microns(slide.at[2 * i])}, ${microns(slide.at[2 * i + 1])} µm. `;
    for (const scale of page.scales) {
      const niche = scale.niches[slide.niche[scale.name][i]];
      const percent = slide.confidence[scale.name] ? slide.confidence[scale.name][i] : NO_SHARE;
      const sure = niche && percent !== NO_SHARE ? ` (confidence ${percent} %)` : "";
      told.append(`${scale.name}: `, dot(niche ? niche.colour : MISSING), `${niche ? niche.name : "none"}${sure}. `);
    }
    if (!slide.gene) return;
    const nTop = slide.gene.length / Math.max(1, slide.n);
    const shown = [];
    for (let k = i * nTop; k < (i + 1) * nTop; k++) {
      const most = slide.counts[k] === 255 ? "≥ " : "";
      if (slide.gene[k] < page.genes.length) shown.push(`${page.genes[slide.gene[k]]} (${most}${slide.counts[k]})`);
    }
    told.append(document.createElement("br"), shown.length ? `Genes, with counts: ${shown.join(", ")}` : "No counts.");
  }

  function entry(colour, text) {
    const item = document.createElement("li");
    item.append(dot(colour), text);
    return item;
  }

  function fillLegend() {
    const legend = element("legend");
    legend.replaceChildren();
    scaleNow().niches.forEach((niche, k) => {
      const button = document.createElement("button");
      button.setAttribute("aria-pressed", String(state.only === k));
      button.append(dot(niche.colour), niche.name);
      button.title = `${niche.cells.toLocaleString("en")} cells`;
      button.addEventListener("click", () => {
        state.only = state.only === k ? -1 : k;
        fillLegend();
        redraw();
      });
      const item = document.createElement("li");
      item.append(button);
      legend.append(item);
    });
  }

  // Paper has no slider: every slide at every scale is drawn before printing.
  function drawForPrint() {
    const place = element("print-maps");
    place.replaceChildren();
    for (const slide of slides) {
      for (const scale of page.scales) {
        const own = document.createElement("canvas");
        const zoom = 1600 / Math.max(slide.width, slide.height);
        own.width = Math.round(slide.width * zoom);
        own.height = Math.round(slide.height * zoom);
        const ctx = own.getContext("2d");
        if (slide.image.complete) ctx.drawImage(slide.image, 0, 0, own.width, own.height);
        ctx.globalAlpha = 0.8;
        drawCells(ctx, slide, scale, { x: 0, y: 0, zoom }, own.width, own.height, -1);
        ctx.globalAlpha = 1;
        drawBar(ctx, slide, { zoom }, own.width, own.height, 2.5);
        const figure = document.createElement("figure");
        const caption = document.createElement("figcaption");
        caption.textContent = `${slide.name}, ${scale.name}`;
        const legend = document.createElement("ul");
        legend.className = "legend";
        for (const niche of scale.niches) legend.append(entry(niche.colour, niche.name));
        figure.append(caption, own, legend);
        place.append(figure);
      }
    }
  }

  function pointOf(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  // One pointer moves the map, two zoom it.
  const pointers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pointOf(event));
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = pointOf(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      if (state.kept < 0) describe(nearest(x, y));
      return;
    }
    moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const [ox, oy] = other[1];
      const ratio = Math.hypot(x - ox, y - oy) / Math.max(1, Math.hypot(before[0] - ox, before[1] - oy));
      zoomAt(ratio, (x + ox) / 2, (y + oy) / 2);
    } else {
      state.x -= (x - before[0]) / state.zoom;
      state.y -= (y - before[1]) / state.zoom;
      redraw();
    }
    pointers.set(event.pointerId, [x, y]);
  });
  canvas.addEventListener("pointerup", (event) => {
    const alone = pointers.size === 1;
    pointers.delete(event.pointerId);
    if (!alone || moved > 6) return;
    const found = nearest(...pointOf(event));
    state.kept = found === state.kept ? -1 : found;
    describe(found);
    redraw();
  });
  canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // the page scrolls on until the map was clicked
    event.preventDefault();
    zoomAt(1.0015 ** -event.deltaY, ...pointOf(event));
  }, { passive: false });
  const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (keys[event.key]) {
      state.x += (60 * keys[event.key][0]) / state.zoom;
      state.y += (60 * keys[event.key][1]) / state.zoom;
      redraw();
    } else if (event.key === "+" || event.key === "=") zoomAt(1.4, ...middle());
    else if (event.key === "-") zoomAt(1 / 1.4, ...middle());
    else return;
    event.preventDefault();
  });

  element("closer").addEventListener("click", () => zoomAt(1.6, ...middle()));
  element("farther").addEventListener("click", () => zoomAt(1 / 1.6, ...middle()));
  element("whole").addEventListener("click", whole);
  for (const id of ["opacity", "image"]) element(id).addEventListener("input", redraw);
  element("tiles").addEventListener("input", () => {
    element("tile-legend").hidden = !element("tiles").checked;
    redraw();
  });
  element("slide").addEventListener("change", (event) => {
    Object.assign(state, { slide: Number(event.target.value), only: -1, kept: -1 });
    fillLegend();
    whole();
  });
  for (const button of document.querySelectorAll("input[name=scale]")) {
    button.addEventListener("change", () => {
      Object.assign(state, { scale: Number(button.value), only: -1 });
      fillLegend();
      redraw();
    });
  }
  ROLES.forEach(([name, colour], k) => {
    if (slides.some((slide) => slide.tileRole.includes(k))) element("tile-legend").append(entry(colour, name));
  });
  window.addEventListener("beforeprint", drawForPrint);
  let size = "";
  new ResizeObserver(() => {
    const now = `${canvas.clientWidth} ${canvas.clientHeight}`;
    if (size !== now) whole();
    size = now;
  }).observe(canvas);
  fillLegend();
  whole();
})();
