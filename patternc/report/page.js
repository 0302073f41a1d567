"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const n = data.n, NEVER = 255;
  const LEFT = 40, TOP = 24, RIGHT = 6, BOTTOM = 6;

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  const all = (texts) => Promise.all(texts.map(unpack));
  const codes = (await all(data.members.map((m) => m.codes))).map((bytes) => new Int8Array(bytes.buffer));
  const masks = await all(data.masks);  // of each distinct layer: 1 where a pair may be held, 2 where it must
  const away = Object.fromEntries(await Promise.all(
    Object.entries(data.reach).map(async ([mode, one]) => [mode, await unpack(one.distances)])));

  const state = { member: 0, depth: 1, mode: "may", x: 0, y: 0, span: n, shown: null };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  // One pixel for each pair.
  function bitmap(colourOf) {
    const surface = new OffscreenCanvas(n, n), context = surface.getContext("2d"), image = context.createImageData(n, n);
    for (let i = 0; i < n * n; i++) {
      const colour = colourOf(i);
      if (colour) image.data.set(colour, 4 * i);
    }
    context.putImageData(image, 0, 0);
    return surface;
  }
  function maskBitmap() {
    const own = codes[state.member], palette = data.members[state.member].colours.map(rgb);
    return bitmap((i) => own[i] && [...palette[Math.abs(own[i]) - 1], own[i] > 0 ? 255 : 90]);
  }
  function reachBitmap() {
    const of = away[state.mode], one = data.reach[state.mode], ramp = one.colours.map(rgb);
    const front = rgb(style("--front")), never = rgb(style("--never"));
    return bitmap((i) => {
      const d = of[i];
      if (d === NEVER) return one.closed && (!data.causal || i % n <= Math.floor(i / n)) ? [...never, 255] : null;
      if (d > state.depth) return null;
      return [...(d && d === state.depth ? front : ramp[d]), 255];
    });
  }

  const views = [{ canvas: $("mask"), make: maskBitmap }, { canvas: $("reach"), make: reachBitmap }];

  function draw(view) {
    const { canvas } = view, ratio = window.devicePixelRatio || 1;
    const size = canvas.clientWidth, side = size - LEFT - RIGHT, high = side + TOP + BOTTOM;
    const context = canvas.getContext("2d"), cell = side / state.span;
    canvas.style.height = `${high}px`;
    canvas.width = Math.round(size * ratio);
    canvas.height = Math.round(high * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const column = (k) => LEFT + (k - state.x) * cell, row = (q) => TOP + (q - state.y) * cell;
    context.fillStyle = style("--plot");
    context.fillRect(LEFT, TOP, side, side);
    context.save();
    context.beginPath();
    context.rect(LEFT - 6, TOP - 6, side + 12, side + 12);
    context.clip();
    context.imageSmoothingEnabled = cell * ratio < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(view.bitmap, state.x, state.y, state.span, state.span, LEFT, TOP, side, side);
    if (cell >= 7) {
      context.strokeStyle = style("--plot");
      context.lineWidth = cell >= 14 ? 1 : 0.5;
      context.beginPath();
      for (let i = Math.ceil(state.x); i <= state.x + state.span; i++) line(context, column(i), TOP, column(i), TOP + side);
      for (let i = Math.ceil(state.y); i <= state.y + state.span; i++) line(context, LEFT, row(i), LEFT + side, row(i));
      context.stroke();
    }
    context.strokeStyle = style("--frame");
    context.lineWidth = 1;
    context.strokeRect(LEFT + 0.5, TOP + 0.5, side - 1, side - 1);
    if (state.shown) overlay(context, state.shown, column, row, cell);
    context.restore();
    axes(context, column, row, cell);
  }
  function line(context, x0, y0, x1, y1) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  function axes(context, column, row, cell) {
    let step = 1;
    while (state.span > 8 * step) step *= 2;
    context.fillStyle = style("--soft");
    context.font = "11px " + style("--mono");
    const half = cell >= 4 ? 0.5 : 0;
    for (let i = Math.ceil(state.x / step) * step; i < Math.min(n, state.x + state.span); i += step) {
      context.textAlign = "center";
      if (column(i + half) > LEFT + 12 || i === 0) context.fillText(i, Math.max(column(i + half), LEFT + 5), TOP - 7);
    }
    for (let i = Math.ceil(state.y / step) * step; i < Math.min(n, state.y + state.span); i += step) {
      context.textAlign = "right";
      context.fillText(i, LEFT - 6, Math.max(row(i + half) + 4, TOP + 8));
    }
    context.textAlign = "left";
    context.fillText("q\u2193 k\u2192", 0, TOP - 7);
  }

  // A path goes from the diagonal to the key that is read, and from there to that key's own row.
  function overlay(context, shown, column, row, cell) {
    const centre = (k, q) => [column(k + 0.5), row(q + 0.5)];
    for (const [first, last, step] of shown.runs || []) {
      context.fillStyle = style("--front") + "30";
      for (let i = first; i <= last; i += step) context.fillRect(column(i), row(state.y), cell, cell * state.span);
    }
    const moves = shown.positions || [];
    for (const [width, colour] of [[5, style("--plot")], [2.25, style("--mark")]]) {
      context.lineJoin = "round";
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      moves.forEach((q, i) => {
        if (i === 0) context.moveTo(...centre(q, q));
        else {
          context.lineTo(...centre(q, moves[i - 1]));
          context.lineTo(...centre(q, q));
        }
      });
      context.stroke();
    }
    const dot = (k, q, radius, fill) => {
      context.beginPath();
      context.arc(...centre(k, q), radius, 0, 7);
      context.fillStyle = fill;
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = style("--mark");
      context.stroke();
    };
    moves.forEach((k, i) => i && k !== moves[i - 1] && dot(k, moves[i - 1], 3, style("--mark")));
    const [x, y] = centre(shown.k, shown.q), radius = Math.max(6, cell * 0.7);
    context.lineWidth = 2.5;
    context.strokeStyle = style("--mark");
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.stroke();
  }

  // What a pair means, in words.
  const say = (words) => { $("said").textContent = words; };
  function about(q, k) {
    const code = codes[state.member][q * n + k], labels = data.members[state.member].labels, d = away[state.mode][q * n + k];
    const held = !code ? "not read" : labels[Math.abs(code) - 1] + (code > 0 ? "" : " (may, at run time)");
    const layers = data.reach[state.mode].layers;
    const far = d === NEVER ? (data.reach[state.mode].closed ? "never reached" : `not within ${layers} layers`)
      : d === 0 ? "the query itself" : `reached through ${d} layer${d > 1 ? "s" : ""}`;
    return `q = ${q}, k = ${k}: ${held}; ${far}`;
  }
  function pathOf(q, k) {
    const of = away[state.mode], d = of[q * n + k], positions = [q], layers = [];
    if (d === NEVER) return null;
    for (let left = d; left > 0; left--) {
      const here = positions[positions.length - 1], mask = masks[data.order[(left - 1) % data.order.length]];
      const wanted = state.mode === "must" ? 2 : 1;
      let next = of[here * n + k] < left ? here : -1;
      for (let p = 0; next < 0 && p < n; p++) if (mask[here * n + p] >= wanted && of[p * n + k] < left) next = p;
      positions.push(next);
      layers.push(left - 1);
    }
    return { positions, layers, q, k };
  }
  function show(shown, words) {
    state.shown = shown;
    say(words);
    $("clear").hidden = !shown;
    views.forEach(draw);
  }
  function words(path) {
    const steps = path.positions.map((p, i) => (i ? `\u2192 ${p}` : `${p}`)).join(" ");
    const layers = path.layers.length;
    return `path: ${steps} (${layers} layer${layers === 1 ? "" : "s"}, the top one first)`;
  }
  function showPair(q, k, before = "") {
    const path = pathOf(q, k);
    show(path || { q, k }, before + (path && path.layers.length ? `${about(q, k)}; ${words(path)}` : about(q, k)));
  }
  function showWitness(one) {
    const member = data.members.findIndex((m) => m.label === one.where);
    if (member >= 0) choose(member);
    $("pictures").scrollIntoView({ block: "start" });
    const before = one.n === n ? "" : `the verdict speaks of n = ${one.n}; here, `;
    if (Math.max(...(one.positions || []), one.q, one.k) >= n) {
      show(null, `q = ${one.q}, k = ${one.k} at n = ${one.n} is beyond this picture`);
    } else if (one.positions) show(one, before + words(one));
    else if (one.runs) show(one, `${before}no layer leads from q = ${one.q} out of the shaded keys, and k = ${one.k} is not one`);
    else showPair(one.q, one.k, before);
  }

  function refresh(which = views) {
    for (const view of which) {
      view.bitmap = view.make();
      draw(view);
    }
  }
  function choose(member) {
    state.member = member;
    if ($("member")) $("member").value = member;
    document.querySelectorAll("[data-of-member]").forEach((e) => { e.hidden = Number(e.dataset.ofMember) !== member; });
    refresh([views[0]]);
  }
  function deepen(depth) {
    const one = data.reach[state.mode];
    state.depth = Math.min(depth, one.layers);
    $("depth").max = one.layers;
    $("depth").value = state.depth;
    $("layers").textContent = `${state.depth} of ${one.layers} layer${one.layers === 1 ? "" : "s"}`;
    const share = one.pairs[state.depth] / data.target;
    $("share").textContent = `${(100 * share).toFixed(share === 1 ? 0 : 1)} % of ${data.causal ? "the pairs k \u2264 q" : "all pairs"}`;
    const now = $("now");
    now.setAttribute("transform", `translate(${state.depth * Number(now.dataset.step)} 0)`);
    now.style.display = state.depth > Number(now.dataset.last) ? "none" : "";
    refresh([views[1]]);
  }

  // Zoom and pan, the same in both pictures.
  function place(canvas, event) {
    const box = canvas.getBoundingClientRect(), side = box.width - LEFT - RIGHT;
    const x = (event.clientX - box.left - LEFT) / side, y = (event.clientY - box.top - TOP) / side;
    return { x, y, k: Math.floor(state.x + x * state.span), q: Math.floor(state.y + y * state.span) };
  }
  const within = (spot) => spot.x >= 0 && spot.x < 1 && spot.y >= 0 && spot.y < 1 && spot.q < n && spot.k < n;
  function look(x, y, span) {
    state.span = Math.min(n, Math.max(Math.min(n, 8), span));
    state.x = Math.min(n - state.span, Math.max(0, x));
    state.y = Math.min(n - state.span, Math.max(0, y));
    $("whole").hidden = state.span === n;
    views.forEach(draw);
  }
  for (const { canvas } of views) {
    let from = null;
    canvas.addEventListener("wheel", (event) => {
      const spot = place(canvas, event);
      if (!within(spot)) return;
      event.preventDefault();
      const span = Math.min(n, Math.max(Math.min(n, 8), state.span * Math.exp(event.deltaY * 0.002)));
      look(state.x + spot.x * (state.span - span), state.y + spot.y * (state.span - span), span);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      from = { ...place(canvas, event), atX: state.x, atY: state.y, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const spot = place(canvas, event);
      if (from && Math.hypot(spot.x - from.x, spot.y - from.y) > 0.01) from.moved = true;
      if (from && from.moved) look(from.atX + (from.x - spot.x) * state.span, from.atY + (from.y - spot.y) * state.span, state.span);
      else if (!state.shown && within(spot)) say(about(spot.q, spot.k));
    });
    canvas.addEventListener("pointerup", (event) => {
      const spot = place(canvas, event);
      if (from && !from.moved && within(spot)) showPair(spot.q, spot.k);
      from = null;
    });
    canvas.addEventListener("dblclick", () => look(0, 0, n));
  }

  let playing = 0;
  const stop = () => { clearInterval(playing); playing = 0; $("play").textContent = "Play"; };
  $("play").addEventListener("click", () => {
    if (playing) return stop();
    if (state.depth >= data.reach[state.mode].layers) deepen(0);
    $("play").textContent = "Stop";
    const wait = Math.max(80, Math.min(700, 6000 / data.reach[state.mode].layers));
    playing = setInterval(() => (state.depth < data.reach[state.mode].layers ? deepen(state.depth + 1) : stop()), wait);
    return undefined;
  });
  $("depth").addEventListener("input", (event) => { stop(); deepen(Number(event.target.value)); });
  $("whole").addEventListener("click", () => look(0, 0, n));
  $("clear").addEventListener("click", () => show(null, ""));
  if ($("member")) $("member").addEventListener("change", (event) => choose(Number(event.target.value)));
  if ($("mode")) $("mode").addEventListener("change", (event) => {
    state.mode = event.target.value;
    show(null, "");
    deepen(Number($("depth").value));
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    showPair(Number($("q").value), Number($("k").value));
  });
  document.querySelectorAll("button[data-witness]").forEach((button) => {
    button.addEventListener("click", () => showWitness(data.witnesses[Number(button.dataset.witness)]));
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh());
  new ResizeObserver(() => views.forEach((view) => view.bitmap && draw(view))).observe($("mask"));
  choose(0);
  deepen(Math.min(1, data.reach.may.layers));
  document.documentElement.dataset.ready = "true";
})().catch((error) => {
  document.getElementById("said").textContent = `The pictures cannot be drawn by this browser: ${error.message}`;
  throw error;
});
