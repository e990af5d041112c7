"use strict";
// Draws the graph from the data beside it. All of the data is set as text or as numbers, never as markup.
(() => {
  const DATA = JSON.parse(document.getElementById("graph-data").textContent);
  const NODES = DATA.nodes.map(([id, kind, row, at, name, label, activation, influence], i) => ({
    i, id, kind, row, at, name, label, activation, influence, ins: [], outs: [], size: 0, x: 0, y: 0, shown: false,
    words: [id, name, label, DATA.tokens[at], `L${row - 1}`].join(" ").toLowerCase(),
  }));
  const LINKS = DATA.links.map(([s, t, w]) => {
    const link = { s: NODES[s], t: NODES[t], w, heads: null };
    NODES[t].ins.push(link);
    NODES[s].outs.push(link);
    NODES[t].size += Math.abs(w);
    return link;
  });
  for (const [i, shares, heads, others, none] of DATA.heads) LINKS[i].heads = { shares, heads, others, none };
  for (const node of NODES) {
    node.ins.sort((a, b) => Math.abs(b.w) - Math.abs(a.w));
    node.outs.sort((a, b) => Math.abs(b.w) / b.t.size - Math.abs(a.w) / a.t.size);
  }
  const SPACE = "http://www.w3.org/2000/svg";
  const LEFT = 46, BOTTOM = 86, GAP = 15, LINE = 15, PER_LINE = 8, DRAWN = 60, LISTED = 20, START = 160;
  const SHAPES = {
    unit: "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z", rest: "M0-6L6 0L0 6L-6 0Z", embedding: "M-5-5H5V5H-5Z", target: "M0-7L7 6H-7Z",
  };
  const get = (id) => document.getElementById(id);
  const draw = (name, attributes, parent) => {
    const made = document.createElementNS(SPACE, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (parent) parent.append(made);
    return made;
  };
  const make = (name, text, parent, kind) => {
    const made = document.createElement(name);
    if (text !== undefined && text !== null) made.textContent = text;
    if (kind) made.className = kind;
    if (parent) parent.append(made);
    return made;
  };
  const number = (value) => (value === null ? "—" : String(Number(value.toPrecision(3))));
  const signed = (value) => (value < 0 ? "−" : "+") + number(Math.abs(value));
  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  const stage = get("stage");
  stage.querySelector(".noscript").remove();
  document.querySelector(".tools").hidden = get("panel").hidden = false;
  const svg = draw("svg", { tabindex: 0, role: "application", "aria-label": "Graph: tokens from left to right, layers upwards. Arrow keys walk from node to node, P pins, plus and minus zoom, Escape lets go." }, stage);
  const plot = draw("svg", { x: LEFT, y: 0 }, svg);
  const world = draw("g", {}, plot);
  const bands = draw("g", {}, world), hints = draw("g", {}, world), links = draw("g", {}, world), dots = draw("g", {}, world), tags = draw("g", {}, world);
  const axis = draw("g", { "aria-hidden": "true" }, svg);
  for (const node of NODES) {
    node.dot = draw("path", { d: SHAPES[node.kind], class: `n ${node.kind}`, "data-node": node.i });
    draw("title", {}, node.dot).textContent = `${node.name} @${node.at} ${DATA.tokens[node.at]}${node.label ? "\n" + node.label : ""}`;
  }
  const state = { chosen: null, group: -1, pinned: new Set(DATA.pinned.filter((i) => NODES[i].kind !== "target")), hits: [], hit: -1, cut: 1, k: 1, x: 0, y: 0 };
  let rows = [], columns = [], width = 1, height = 1;

  // Places. A cell is a layer at a position: its nodes stand side by side, most influential first, in lines of at most PER_LINE.
  const visible = (node) => node.kind === "target" || node.kind === "embedding" || node.influence === null || node.influence <= state.cut + 1e-9
    || state.pinned.has(node.i) || node === state.chosen || (state.group >= 0 && DATA.groups[state.group].of.includes(node.i));
  function place() {
    const last = Math.max(...NODES.map((node) => node.row));
    const cells = new Map();
    for (const node of NODES) {
      node.shown = visible(node);
      if (!node.shown) continue;
      const key = node.row * DATA.tokens.length + node.at;
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(node);
    }
    const wide = new Array(DATA.tokens.length).fill(1), high = new Array(last + 1).fill(1);
    for (const members of cells.values()) {
      members.sort((a, b) => (a.influence ?? 2) - (b.influence ?? 2) || a.i - b.i);
      const { at, row } = members[0];
      wide[at] = Math.max(wide[at], Math.min(members.length, PER_LINE));
      high[row] = Math.max(high[row], Math.ceil(members.length / PER_LINE));
    }
    columns = []; rows = []; width = 8; height = 14;
    for (const count of wide) {
      const span = count * GAP + 12;
      columns.push({ x: width, span, middle: width + span / 2 });
      width += span;
    }
    width += 8;
    for (let row = last; row >= 0; row--) {
      const span = high[row] * LINE + 9;
      rows[row] = { y: height, span, middle: height + span / 2 };
      height += span;
    }
    for (const members of cells.values()) {
      const column = columns[members[0].at], row = rows[members[0].row], lines = Math.ceil(members.length / PER_LINE);
      members.forEach((node, j) => {
        const line = Math.floor(j / PER_LINE), inLine = Math.min(PER_LINE, members.length - line * PER_LINE);
        node.x = column.middle + ((j % PER_LINE) - (inLine - 1) / 2) * GAP;
        node.y = row.middle + (line - (lines - 1) / 2) * LINE;
      });
    }
    stretch();
    bands.replaceChildren();
    columns.forEach((column, t) => { if (t % 2) draw("rect", { class: "band", x: column.x, y: 0, width: column.span, height }, bands); });
    dots.replaceChildren(...NODES.filter((node) => node.shown).map((node) => node.dot));
    hints.replaceChildren();
    const many = dots.children.length > 400;
    for (const node of NODES) {
      if (!node.shown) continue;
      for (const link of node.ins.filter((one) => one.s.shown).slice(0, many ? 1 : 2)) draw("path", { class: "hint", d: curve(link), "vector-effect": "non-scaling-stroke" }, hints);
    }
    const units = NODES.filter((node) => node.shown && node.kind === "unit").length;
    get("share").textContent = `${Math.round(state.cut * 100)} %`;
    svg.dataset.shown = units;
    mark();
  }
  // A graph much wider (higher) than the window gets more room between its layers (tokens).
  function stretch() {
    const { w, h } = room(), shape = (h / height) / (w / width);
    const down = bounded(shape, 1, 2.6), across = bounded(1 / shape, 1, 2.6);
    for (const row of rows) { row.y *= down; row.span *= down; row.middle *= down; }
    for (const column of columns) { column.x *= across; column.span *= across; column.middle *= across; }
    for (const node of NODES) {
      if (!node.shown) continue;
      node.x += columns[node.at].middle * (1 - 1 / across);
      node.y += rows[node.row].middle * (1 - 1 / down);
    }
    width *= across; height *= down;
  }
  const curve = ({ s, t }) => {
    const bend = (t.y - s.y) * 0.45;
    return `M${s.x.toFixed(1)} ${s.y.toFixed(1)}C${s.x.toFixed(1)} ${(s.y + bend).toFixed(1)} ${t.x.toFixed(1)} ${(t.y - bend).toFixed(1)} ${t.x.toFixed(1)} ${t.y.toFixed(1)}`;
  };

  // What is chosen, found, pinned.
  function selection() {
    if (state.group < 0) return state.chosen ? { ins: state.chosen.ins, outs: state.chosen.outs } : null;
    const inside = new Set(DATA.groups[state.group].of), ins = new Map(), outs = new Map();
    const add = (map, key, link) => { const old = map.get(key); if (old) old.w += link.w; else map.set(key, { ...link }); };
    for (const i of inside) {
      for (const link of NODES[i].ins) if (!inside.has(link.s.i)) add(ins, link.s.i, link);
      for (const link of NODES[i].outs) if (!inside.has(link.t.i)) add(outs, link.t.i, link);
    }
    const sorted = (map) => [...map.values()].sort((a, b) => Math.abs(b.w) - Math.abs(a.w));
    return { ins: sorted(ins), outs: sorted(outs) };
  }
  function mark() {
    const found = selection(), hits = new Set(state.hits), group = new Set(state.group >= 0 ? DATA.groups[state.group].of : []);
    links.replaceChildren(); tags.replaceChildren();
    hints.style.opacity = (found ? 0.45 : 1) * (dots.children.length > 400 ? 0.4 : 1);
    const near = new Map();
    if (found) {
      for (const [list, end] of [[found.ins, "s"], [found.outs, "t"]]) {
        const drawn = list.filter((link) => link.s.shown && link.t.shown).slice(0, DRAWN);
        const scale = (link) => Math.abs(link.w) / (end === "t" && state.group < 0 ? link.t.size : 1);
        const most = Math.max(...drawn.map(scale), 1e-30);
        for (const link of drawn.reverse()) {
          const share = scale(link) / most;
          draw("path", { class: `link ${link.w < 0 ? "neg" : "pos"}`, d: curve(link), "stroke-width": (0.8 + 4 * share).toFixed(2), "stroke-opacity": (0.25 + 0.7 * share).toFixed(2), "vector-effect": "non-scaling-stroke" }, links);
          near.set(link[end].i, link.w < 0 ? "neg" : "pos");
        }
      }
    }
    for (const node of NODES) {
      if (!node.shown) continue;
      const kinds = ["n", node.kind];
      if (found && !near.has(node.i) && node !== state.chosen && !group.has(node.i)) kinds.push("dim");
      if (near.has(node.i)) kinds.push(near.get(node.i));
      if (hits.has(node)) kinds.push("hit");
      if (group.has(node.i)) kinds.push("group");
      if (state.pinned.has(node.i)) kinds.push("pinned");
      if (node === state.chosen && state.group < 0) kinds.push("chosen");
      node.dot.setAttribute("class", kinds.join(" "));
    }
    const named = [...new Set([...(state.chosen && state.group < 0 ? [state.chosen.i] : []), ...state.pinned])];
    for (const i of named.slice(0, 40)) {
      const node = NODES[i], text = draw("text", { class: "pinlabel", "data-x": node.x, "data-y": node.y }, tags);
      text.textContent = short(node.kind === "unit" && node.label ? `${node.name} ${node.label}` : node.name, 34);
    }
    look();
  }
  function choose(node, walk = true) {
    const anew = node && !node.shown;
    if (node !== state.chosen || state.group >= 0) get("panel").scrollTop = 0;
    state.chosen = node; state.group = -1;
    if (anew) place(); else mark();
    if (node && walk) intoSight(node);
    tell();
  }
  function chooseGroup(g) {
    state.group = state.group === g ? -1 : g; state.chosen = null;
    place(); tell();
    get("panel").scrollTop = 0;
  }
  function pin(node) {
    if (!node) return;
    if (!state.pinned.delete(node.i)) state.pinned.add(node.i);
    place(); tell();
  }
  // Which heads carry a link; where a head's look is explained, a button opens that.
  const lookOf = (link, layer, head) => DATA.looks.findIndex((one) => one.layer === layer && one.head === head && one.key === link.s.at);
  function carried(link, into) {
    const { shares, heads, others, none } = link.heads, parts = [];
    const said = (part) => (shares ? `${part < 0 ? "−" : ""}${Math.round(Math.abs(part) * 100)} %` : signed(part));
    const counts = (part) => (shares ? Math.abs(part) >= 0.005 : part !== 0);
    for (const [layer, head, part] of heads) if (counts(part)) parts.push([`L${layer}H${head} ${said(part)}`, lookOf(link, layer, head)]);
    if (counts(others)) parts.push([`other heads ${said(others)}`, -1]);
    if (counts(none)) parts.push([`no attention ${said(none)}`, -1]);
    const line = make("p", shares ? "" : "parts that nearly cancel: ", into, "heads");
    parts.forEach(([text, look], i) => {
      if (i) line.append(", ");
      if (look < 0) return void line.append(text);
      const button = make("button", text, line, "why");
      button.type = "button"; button.title = "why this head looks there";
      button.addEventListener("click", () => why(look));
    });
  }
  // The terms of a score: pairs, then either side, each ending in what is left and the sum.
  const named = ([i, text]) => (i < 0 ? text : `${NODES[i].name}${NODES[i].kind === "target" ? "" : ` @${NODES[i].at}`}`);
  function terms(title, rows, left, score, into) {
    const table = make("table", null, into, "terms"), wide = rows.length && rows[0].length === 3 ? 2 : 1;
    make("caption", title, table);
    const add = (value, texts, kind) => {
      const row = make("tr", null, table, kind);
      const none = score && Math.abs(value) < 5e-4 * Math.abs(score);
      make("td", none ? "0" : signed(value), row, `w${value < 0 && !none ? " neg" : ""}`);
      for (const text of texts) make("td", text, row).colSpan = texts.length === 1 ? wide : 1;
    };
    for (const row of rows) add(row[row.length - 1], row.slice(0, -1).map(named));
    if (score === null) return;
    add(left, ["all others"], "left");
    add(score, ["the score"], "sum");
  }
  function looksOf(node, into) {
    const mine = DATA.looks.map((one, i) => i).filter((i) => DATA.looks[i].node.includes(node.i)), linked = new Set(mine);
    for (const link of [...node.ins, ...node.outs]) {
      if (link.heads) for (const [layer, head] of link.heads.heads) { const i = lookOf(link, layer, head); if (i >= 0) linked.add(i); }
    }
    if (!linked.size) return;
    make("h4", "Why heads look there", into);
    for (const i of [...linked].sort((a, b) => a - b)) {
      const one = DATA.looks[i], box = make("details", null, into, "look");
      box.dataset.look = i;
      box.open = linked.size === 1;
      if (one.score === null) make("summary", "QK terms of this node", box);
      else {
        make("summary", `L${one.layer}H${one.head} from @${one.query} ${DATA.tokens[one.query]} at @${one.key} ${DATA.tokens[one.key]}`, box);
        make("p", `weight ${number(one.weight)}, score ${number(one.score)}${one.others === null ? "" : ` (at its other keys ${number(one.others)} on average)`}; carries ${number(one.carries * 100)} % of the influence of the split links`, box, "facts");
      }
      terms("by what stands at the query × at the key", one.pairs, one.pairs_left, one.score, box);
      terms("by what stands at the key", one.of_key, one.key_left, one.score, box);
      terms("by what stands at the query", one.of_query, one.query_left, one.score, box);
    }
  }
  function why(look) {
    const box = get("chosen").querySelector(`[data-look="${look}"]`);
    if (!box) return;
    box.open = true;
    box.scrollIntoView({ block: "nearest" });
    box.querySelector("summary").focus({ preventScroll: true });
  }
  function listed(title, list, end, into) {
    make("h4", `${title} (${list.length})`, into);
    if (!list.length) return void make("p", "none kept", into, "facts");
    if (state.group < 0) make("p", (end === "s" ? "% of the sizes of its kept links" : "% of the sizes of that node's kept links") + (list.some((link) => link.heads) ? "; heads: % of the link, − against it" : DATA.heads.length ? `; none is of the ${DATA.heads.length} links split over heads` : ""), into, "facts");
    const box = make("ol", null, into);
    const add = (part) => {
      for (const link of part) {
        const other = link[end], item = make("li", null, box), button = make("button", null, item, "to");
        button.type = "button";
        make("span", signed(link.w), button, `w${link.w < 0 ? " neg" : ""}`);
        const who = make("span", `${other.name} @${other.at} ${other.kind === "embedding" ? "" : DATA.tokens[other.at]}`, button, "who");
        const share = state.group < 0 && link.t.size ? `${Math.round((100 * Math.abs(link.w)) / link.t.size)} %` : "";
        make("small", [other.label && other.kind !== "embedding" ? short(other.label.split("; group: ")[0], 56) : "", share].filter(Boolean).join(" · "), who);
        button.addEventListener("click", () => choose(other));
        if (state.group < 0 && link.heads) carried(link, item);
      }
    };
    add(list.slice(0, LISTED));
    if (list.length > LISTED) {
      const more = make("button", `all ${list.length}`, into);
      more.type = "button";
      more.addEventListener("click", () => { add(list.slice(LISTED, 500)); more.remove(); });
    }
  }
  function tell() {
    const box = get("chosen"), found = selection();
    box.replaceChildren();
    if (!found) make("p", "Choose a node in the picture, or look for one.", box, "facts");
    else if (state.group >= 0) {
      const group = DATA.groups[state.group];
      make("h3", group.name, box);
      make("p", `${group.of.length} nodes that are fed and read alike; their links summed.`, box, "facts");
      for (const [text, tells] of group.said || []) make("p", text, box, tells ? "said" : "said weak");
      if (group.examples && group.examples.length) {
        make("h4", "Where its neurons act most, over the texts", box);
        const list = make("ol", null, box, "contexts");
        for (const [i, value, before, token, after] of group.examples) {
          const button = make("button", null, make("li", null, list), "to");
          button.type = "button"; button.disabled = i < 0;
          make("span", signed(value), button, `w${value < 0 ? " neg" : ""}`);
          const who = make("span", before, button, "who");
          make("b", token, who);
          who.append(after);
          if (i >= 0) { make("small", `${NODES[i].name} @${NODES[i].at}`, who); button.addEventListener("click", () => choose(NODES[i])); }
        }
      }
    } else {
      const node = state.chosen;
      make("h3", `${node.name}${node.kind === "target" ? "" : ` @${node.at}`}`, box);
      make("p", `position ${node.at}, ${DATA.tokens[node.at]}`, box, "facts");
      if (node.label) make("p", node.label, box);
      const facts = [];
      if (node.activation !== null) facts.push(`${node.kind === "target" ? "value" : "activation"} ${number(node.activation)}`);
      if (node.influence !== null) facts.push(`it and all above it hold ${Math.round(node.influence * 100)} % of the influence`);
      if (facts.length) make("p", facts.join("; "), box, "facts");
      const button = make("button", state.pinned.has(node.i) ? "unpin" : "pin", box);
      button.type = "button"; button.id = "pin";
      button.addEventListener("click", () => { pin(node); get("pin").focus(); });
    }
    if (found) { listed("Feeds it", found.ins, "s", box); listed("Reads it", found.outs, "t", box); }
    if (state.chosen && state.group < 0) looksOf(state.chosen, box);
    get("said").textContent = state.group >= 0 ? DATA.groups[state.group].name : state.chosen ? `${state.chosen.name}, position ${state.chosen.at}, ${state.chosen.ins.length} sources, ${state.chosen.outs.length} readers` : "";
    chips("pins", "Pinned", [...state.pinned].map((i) => [short(`${NODES[i].name} @${NODES[i].at}`, 44), () => choose(NODES[i]), NODES[i] === state.chosen]));
    chips("groups", DATA.groups.some((group) => group.weak) ? "Supernodes (grey, chance: random neurons are labelled as well)" : "Supernodes", DATA.groups.map((group, g) => [group.name, () => chooseGroup(g), state.group === g, group.weak]));
  }
  function chips(id, title, entries) {
    const box = get(id), held = box.contains(document.activeElement) ? [...box.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    box.replaceChildren();
    if (!entries.length) return;
    make("h4", title, box);
    const list = make("div", null, box, "chips");
    for (const [text, action, pressed, weak] of entries) {
      const button = make("button", text, list, weak ? "weak" : "");
      button.type = "button"; button.title = text;
      button.setAttribute("aria-pressed", pressed);
      button.addEventListener("click", action);
    }
    if (held >= 0) list.children[Math.min(held, list.children.length - 1)].focus();
  }

  // The window on the world.
  const room = () => ({ w: Math.max(stage.clientWidth - LEFT, 50), h: Math.max(stage.clientHeight - BOTTOM, 50) });
  const bounded = (value, low, high) => Math.min(Math.max(value, low), high);
  function look() {
    const { w, h } = room();
    plot.setAttribute("width", w); plot.setAttribute("height", h);
    state.x = bounded(state.x, Math.min(40, w - 40 - width * state.k), Math.max(w - 40, 0));
    state.y = bounded(state.y, Math.min(40, h - 40 - height * state.k), Math.max(h - 40, 0));
    world.setAttribute("transform", `translate(${state.x.toFixed(2)} ${state.y.toFixed(2)}) scale(${state.k.toFixed(4)})`);
    const larger = Math.max(1, 0.62 / state.k);
    for (const node of NODES) if (node.shown) node.dot.setAttribute("transform", `translate(${node.x.toFixed(1)} ${node.y.toFixed(1)}) scale(${larger.toFixed(3)})`);
    const taken = [];
    for (const tag of tags.children) {  // beside its node; a line lower where another label stands
      const x = Number(tag.dataset.x), y = Number(tag.dataset.y), right = x * state.k + state.x > w * 0.6;
      const from = x * state.k + (right ? -10 - tag.textContent.length * 6.4 : 10), to = from + tag.textContent.length * 6.4;
      let line = y * state.k - 7;
      while (taken.some((other) => Math.abs(other.line - line) < 13 && other.from < to && from < other.to)) line += 13;
      taken.push({ line, from, to });
      tag.setAttribute("text-anchor", right ? "end" : "start");
      tag.setAttribute("transform", `translate(${x} ${y}) scale(${(1 / state.k).toFixed(4)}) translate(${right ? -10 : 10} ${(line - y * state.k).toFixed(1)})`);
    }
    axis.replaceChildren();
    let before = Infinity;
    for (let row = 0; row < rows.length; row++) {
      const y = rows[row].middle * state.k + state.y;
      if (y < 4 || y > h - 4 || before - y < 12) continue;
      before = y;
      const text = draw("text", { class: "axis", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, axis);
      text.textContent = row === 0 ? "token" : row === rows.length - 1 ? "end" : `L${row - 1}`;
    }
    before = -Infinity;
    columns.forEach((column, t) => {
      const x = column.middle * state.k + state.x;
      if (x < 4 || x > w - 2 || x - before < 13) return;
      before = x;
      const text = draw("text", { class: "axis tok", "text-anchor": "end", transform: `translate(${(LEFT + x + 4).toFixed(1)} ${h + 12}) rotate(-55)` }, axis);
      text.textContent = short(DATA.tokens[t], 13);
    });
  }
  function zoom(factor, cx, cy) {
    const { w, h } = room(), k = bounded(state.k * factor, 0.05, 6);
    const x = cx ?? w / 2, y = cy ?? h / 2;
    state.x = x - ((x - state.x) * k) / state.k; state.y = y - ((y - state.y) * k) / state.k; state.k = k;
    look();
  }
  function fit() {
    const { w, h } = room();
    state.k = bounded(Math.min((w - 8) / width, (h - 8) / height), 0.05, 1.6);
    state.x = (w - width * state.k) / 2; state.y = (h - height * state.k) / 2;
    look();
  }
  function toAnswer() {
    const { w, h } = room(), last = NODES.filter((node) => node.kind === "target").map((node) => node.at);
    state.k = bounded((h - 8) / height, 0.45, 1.2);
    const column = columns[Math.max(...last, 0)];
    state.x = w - (column.x + column.span) * state.k - 24; state.y = 4;
    if (width * state.k < w) state.x = (w - width * state.k) / 2;
    look();
  }
  function intoSight(node) {
    const { w, h } = room(), x = node.x * state.k + state.x, y = node.y * state.k + state.y;
    const moved = (at, size) => (at < 10 ? Math.min(70, size / 2) - at : at > size - 10 ? size - Math.min(70, size / 2) - at : 0);
    state.x += moved(x, w); state.y += moved(y, h);
    look();
  }
  let drag = null;
  svg.addEventListener("pointerdown", (event) => { if (event.button === 0) drag = { id: event.pointerId, x: event.clientX, y: event.clientY, moved: false }; });
  svg.addEventListener("pointermove", (event) => {
    if (!drag || drag.id !== event.pointerId) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 5) return;
    if (!drag.moved) { svg.setPointerCapture(drag.id); svg.classList.add("drag"); }
    drag.moved = true; drag.x = event.clientX; drag.y = event.clientY;
    state.x += dx; state.y += dy;
    look();
  });
  const drop = (event) => {
    const moved = drag && drag.moved;
    drag = null; svg.classList.remove("drag");
    if (moved || event.type === "pointercancel") return;
    const dot = event.target.closest ? event.target.closest(".n") : null;
    if (dot) choose(NODES[Number(dot.dataset.node)], false);
  };
  svg.addEventListener("pointerup", drop);
  svg.addEventListener("pointercancel", drop);
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * 0.004), event.clientX - box.left - LEFT, event.clientY - box.top);
  }, { passive: false });
  function walk(dx, dy) {
    const from = state.chosen;
    if (!from) return choose(NODES.find((node) => node.kind === "target") || NODES[0]);
    const ahead = NODES.filter((node) => node.shown && node !== from && (dx ? (node.row === from.row && (node.x - from.x) * dx > 0.5) || (node.row === from.row && node.x === from.x && node.y > from.y && dx > 0) : (from.row - node.row) * dy > 0));
    const far = (node) => (dx ? Math.abs(node.x - from.x) + Math.abs(node.y - from.y) * 0.01 : Math.abs(node.row - from.row) * 1000 + Math.abs(node.x - from.x));
    if (ahead.length) choose(ahead.reduce((best, node) => (far(node) < far(best) ? node : best)));
  }
  const KEYS = {
    ArrowLeft: () => walk(-1, 0), ArrowRight: () => walk(1, 0), ArrowUp: () => walk(0, -1), ArrowDown: () => walk(0, 1),
    p: () => pin(state.chosen), P: () => pin(state.chosen), "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: fit,
    Escape: () => { state.group = -1; state.chosen = null; place(); tell(); },
  };
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  get("in").addEventListener("click", () => zoom(1.3));
  get("out").addEventListener("click", () => zoom(1 / 1.3));
  get("fit").addEventListener("click", fit);
  get("end").addEventListener("click", toAnswer);
  const find = get("find");
  find.addEventListener("input", () => {
    const text = find.value.trim().toLowerCase();
    const whole = /^(l\d+|#\d+)$/.test(text);
    state.hits = text ? NODES.filter((node) => (whole ? node.words.split(/\s+/).includes(text) : node.words.includes(text))) : [];
    state.hit = -1;
    get("hits").textContent = text ? `${state.hits.length} found` : "";
    mark();
  });
  find.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !state.hits.length) return;
    state.hit = (state.hit + 1) % state.hits.length;
    get("hits").textContent = `${state.hit + 1} of ${state.hits.length}`;
    choose(state.hits[state.hit]);
  });
  const cut = get("cut"), ranked = NODES.filter((node) => node.influence !== null && (node.kind === "unit" || node.kind === "rest")).map((node) => node.influence).sort((a, b) => a - b);
  const most = ranked.length ? ranked[ranked.length - 1] : 1;
  cut.max = Math.max(6, Math.ceil(most * 100));
  cut.value = ranked.length > START ? Math.floor(ranked[START] * 100) : cut.max;
  if (!ranked.length) cut.parentElement.hidden = true;
  cut.addEventListener("input", () => { state.cut = Number(cut.value) / 100; place(); });
  state.cut = Number(cut.value) / 100;
  if (DATA.clicked >= 0) state.chosen = NODES[DATA.clicked];
  place();
  fit();
  if (state.k < 0.5) toAnswer();
  tell();
  new ResizeObserver(look).observe(stage);
})();
