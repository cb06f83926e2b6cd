"use strict";
// What all pages share: their data, making elements, charts in the page's colours, tables that sort.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");

/** Makes an element. Children that are no elements become text, never markup: photos may have any name. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

/** Adds a section to the page, and to its navigation. */
function section(id, title, lead, ...children) {
  document.querySelector("nav").append(make("a", {href: `#${id}`}, title));
  const made = make("section", {id, "aria-labelledby": `${id}-title`}, make("h2", {id: `${id}-title`}, title));
  if (lead) made.append(make("p", {class: "lead"}, lead));
  made.append(...children.filter(Boolean));
  main.append(made);
  return made;
}

const ARRAYS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array};

/** The typed array that `packed` of page.py wrote. */
function unpack({type, bytes}) {
  const text = atob(bytes), raw = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) raw[i] = text.charCodeAt(i);
  return new ARRAYS[type](raw.buffer);
}

const whole = new Intl.NumberFormat("en").format;
const fixed = (value, digits) => value === null || value === undefined ? "–" : value.toFixed(digits);
const plural = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;

function facts(entries) {
  return make("dl", {class: "facts"}, ...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
}

/** Large figures: [name, value, detail] each. */
function figures(entries) {
  return make("dl", {class: "grid figures"}, ...entries.map(([name, value, detail]) => make("div", {class: "card"},
    make("dt", {}, name), make("dd", {}, value), detail ? make("dd", {class: "detail"}, detail) : null)));
}

// Charts are drawn again when the person's system turns dark or light.
const redraws = [];
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => redraws.forEach(redraw => redraw()));

/** The page's colours, as they are now. */
function palette() {
  const probe = make("i");
  document.body.append(probe);
  const colours = Object.fromEntries(["ink", "faint", "line", "card", "well", "accent", "good", "bad", "other"].map(name => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  }));
  probe.remove();
  return colours;
}

/** Keeps a chart drawn in a node: `drawn(colours)` gives its traces and layout. */
function chart(node, label, drawn) {
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", label);
  const redraw = () => {
    const colours = palette(), {traces, layout} = drawn(colours);
    const axis = {gridcolor: colours.line, linecolor: colours.line, zerolinecolor: colours.line, automargin: true,
      fixedrange: true, title: {font: {size: 13, color: colours.faint}, standoff: 10}};
    return Plotly.react(node, traces, {
      margin: {l: 12, r: 12, t: 12, b: 12}, paper_bgcolor: "transparent", plot_bgcolor: "transparent", bargap: 0.04,
      font: {family: "system-ui, sans-serif", size: 12, color: colours.faint}, showlegend: false, uirevision: "kept",
      hoverlabel: {bgcolor: colours.card, bordercolor: colours.line, font: {color: colours.ink}, namelength: -1},
      ...layout, xaxis: merged(axis, layout.xaxis), yaxis: merged(axis, layout.yaxis),
    }, {responsive: true, displayModeBar: false, doubleClick: "reset", ...layout.config});
  };
  redraws.push(redraw);
  redraw();
}

function merged(axis, own = {}) {
  return {...axis, ...own, title: {...axis.title, ...own.title}};
}

/** A card with a histogram as `histogram` of page.py counted it. */
function histogramCard(title, unit, {edges, counts, median, mean}, digits) {
  const node = make("div", {class: "chart"});
  const last = counts.length - 1;
  const centres = counts.map((_, i) => (edges[i] + edges[i + 1]) / 2);
  const integers = edges[0] % 1 === 0.5;
  const said = centres.map((centre, i) => {
    const range = integers ? `${centre}` : `${fixed(edges[i], digits)} to ${fixed(edges[i + 1], digits)}`;
    return `${range}${i === last ? " and more" : ""} ${unit}`;
  });
  const card = make("div", {class: "card"}, make("h3", {}, title), node,
    make("p", {class: "caption"}, `Median ${fixed(median, digits)}, mean ${fixed(mean, digits)} ${unit}. The last bar has all beyond.`));
  later(() => chart(node, `${title}: histogram, median ${fixed(median, digits)} ${unit}`, colours => ({
    traces: [{type: "bar", x: centres, y: counts, customdata: said, marker: {color: colours.accent},
      width: counts.map((_, i) => (edges[i + 1] - edges[i]) * 0.92), hovertemplate: "%{customdata}: %{y:,}<extra></extra>"}],
    layout: {xaxis: {title: {text: unit}, dtick: integers && counts.length < 20 ? 1 : undefined}},
  })));
  return card;
}

// Charts need their nodes in the page, where they have a size.
const waiting = [];
const later = work => waiting.push(work);
const drawAll = () => { while (waiting.length) waiting.shift()(); };

/**
 * A table that sorts by any column.
 * columns: {title, value(row) to sort by, cell(row) what is shown, text: whether it is no number, className}.
 * rows: anything; `shown` at first, more on demand.
 */
function sortedTable(caption, columns, rows, shown = 100) {
  const body = make("tbody"), more = make("button", {type: "button", onclick: () => { limit += shown; fill(); }});
  const foot = make("p", {class: "caption", role: "status"});
  let sorting = null, descending = false, limit = shown, filter = () => true;
  const heads = columns.map(column => make("th", {scope: "col", class: column.text ? "text" : null},
    column.value ? make("button", {type: "button", onclick: () => sortBy(column)}, column.title) : column.title));

  function sortBy(column) {
    descending = sorting === column ? !descending : !column.text;
    sorting = column;
    heads.forEach((head, i) => {
      if (columns[i] === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    fill();
  }

  function compare(a, b) {
    const [first, second] = [sorting.value(a), sorting.value(b)];
    if (first === null || second === null) return (first === null) - (second === null); // unknown ones last, either way
    const order = sorting.text ? String(first).localeCompare(second, undefined, {numeric: true}) : first - second;
    return descending ? -order : order;
  }

  function fill() {
    const kept = rows.filter(filter);
    if (sorting) kept.sort(compare);
    body.replaceChildren(...kept.slice(0, limit).map(row => make("tr", {}, ...columns.map(column =>
      make("td", {class: [column.text ? "text" : "", column.className ?? ""].join(" ").trim() || null}, column.cell(row))))));
    more.hidden = kept.length <= limit;
    more.textContent = `Show ${Math.min(shown, kept.length - limit)} more`;
    foot.textContent = kept.length === rows.length ? plural(rows.length, "row") : `${whole(kept.length)} of ${plural(rows.length, "row")}`;
  }

  fill();
  const table = make("table", {"aria-label": caption}, make("thead", {}, make("tr", {}, ...heads)), body);
  return {
    node: make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption}, table),
    foot: make("div", {class: "controls"}, foot, more),
    filter(by) { filter = by; limit = shown; fill(); },
  };
}
