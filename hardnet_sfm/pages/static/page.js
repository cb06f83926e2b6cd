"use strict";
// Code that all pages share: their data, elements, colours and sortable tables.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");

/** Makes an element. Children that are not elements become text and never markup, because photos may have any name. */
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

/** Decodes a typed array that `pack_array` in page.py wrote. */
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

/** Large figures. Each entry is [name, value, detail]. */
function figures(entries) {
  return make("dl", {class: "grid figures"}, ...entries.map(([name, value, detail]) => make("div", {class: "card"},
    make("dt", {}, name), make("dd", {}, value), detail ? make("dd", {class: "detail"}, detail) : null)));
}

/** Makes cards with the facts about each named thing, and a card with the versions that made the page. */
function provenance(made, versions) {
  const flat = said => Object.entries(said).flatMap(([key, value]) => value && typeof value === "object" && !Array.isArray(value)
    ? Object.entries(value).filter(([, inner]) => typeof inner !== "object").map(([inner, one]) => [`${key} ${inner}`, one])
    : [[key, Array.isArray(value) ? value.join(", ") || "none" : value === "" || value === null ? "none" : value]]);
  return make("div", {class: "grid"}, ...Object.entries(made).map(([name, said]) => make("div", {class: "card"}, make("h3", {}, name), facts(flat(said)))),
    make("div", {class: "card"}, make("h3", {}, "Versions that made this page"), facts(Object.entries(versions))));
}

// Canvases are redrawn when the system switches between dark and light mode.
const redraws = [];
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach(redraw => redraw()));

/** Reads the present colours of the page. */
function palette() {
  const probe = make("i");
  document.body.append(probe);
  const colours = Object.fromEntries(["well", "accent"].map(name => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  }));
  probe.remove();
  return colours;
}

/**
 * Makes a table that sorts by any column.
 * columns: {title, value(row): the sort key, cell(row): the contents, text: true if it is not a number, className}.
 * rows: any objects; `shown` of them at first, more on demand.
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
    if (first === null || second === null) return (first === null) - (second === null); // unknown values come last in both directions
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
