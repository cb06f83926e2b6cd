// Charts. They are SVG with colours from CSS, so they follow the dark mode of the page. The matrix is a canvas.

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Fills a node with the result of `drawn(width, height)`, and redraws it when its size changes. */
function fitted(node, drawn) {
  let before = "";
  new ResizeObserver(() => {
    const [width, height] = [node.clientWidth, node.clientHeight];
    if (!width || !height || before === `${width} ${height}`) return;
    before = `${width} ${height}`;
    node.replaceChildren(...drawn(width, height));
  }).observe(node);
}

/** Round values from low to high, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= raw);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({length: last - first + 1}, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Drops ticks whose labels would overlap. The last tick always stays. */
function apart(values, toX) {
  return values.toReversed().reduce((kept, value) => kept.length && toX(kept[0]) - toX(value) < 34 ? kept : [value, ...kept], []);
}

const short = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 4}).format;

/**
 * Makes the frame of a chart: axes with ticks and titles around a plot.
 * x, y: {low, high, title, ticks}; x may be logarithmic: {log: true}. Returns the scales to pixels and the axis nodes.
 */
function frame(width, height, x, y) {
  const left = 46, bottom = 42, top = 8, right = 12;
  const along = x.log ? Math.log10 : value => value;
  const toX = value => left + (along(value) - along(x.low)) / (along(x.high) - along(x.low)) * (width - left - right);
  const toY = value => height - bottom - (value - y.low) / (y.high - y.low) * (height - top - bottom);
  const xs = apart(x.ticks ?? ticks(x.low, x.high, Math.min(8, width / 60)), toX), ys = y.ticks ?? ticks(y.low, y.high, height / 55);
  const nodes = [
    ...ys.map(value => svg("g", {}, svg("line", {class: "grid-line", x1: left, x2: width - right, y1: toY(value), y2: toY(value)}),
      svg("text", {x: left - 7, y: toY(value) + 4, "text-anchor": "end"}, short(value)))),
    ...xs.map(value => svg("text", {x: toX(value), y: height - bottom + 17, "text-anchor": "middle"}, short(value))),
    svg("line", {class: "axis-line", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom}),
    svg("text", {x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle"}, x.title ?? ""),
  ];
  return {toX, toY, nodes, plot: {left, right: width - right, top, bottom: height - bottom}};
}

function picture(label, className = "") {
  return make("div", {class: `chart ${className}`.trim(), role: "img", "aria-label": label});
}

/** Draws a histogram counted by `histogram` in page.py. Bins around whole numbers are labelled by the number. */
function histogramChart(label, unit, {edges, counts}, digits) {
  const node = picture(label), integers = edges[0] % 1 !== 0 && edges[1] - edges[0] === 1;
  fitted(node, (width, height) => {
    const whole_ticks = integers && counts.length < 16 ? counts.map((_, i) => edges[i] + 0.5) : undefined;
    const {toX, toY, nodes} = frame(width, height, {low: edges[0], high: edges.at(-1), title: unit, ticks: whole_ticks}, {low: 0, high: Math.max(1, ...counts) * 1.04});
    const bars = counts.map((count, i) => {
      const range = integers ? `${edges[i] + 0.5}` : `${edges[i].toFixed(digits)} to ${edges[i + 1].toFixed(digits)}`;
      const more = i === counts.length - 1 ? " and more" : "";
      return svg("rect", {class: "bar-mark", x: toX(edges[i]) + 0.75, width: Math.max(0.5, toX(edges[i + 1]) - toX(edges[i]) - 1.5), y: toY(count), height: toY(0) - toY(count)},
        svg("title", {}, `${range}${more} ${unit}: ${whole(count)}`));
    });
    return [svg("svg", {width, height}, ...nodes, ...bars)];
  });
  return node;
}

/** A card with a histogram, and its median and mean. */
function histogramCard(title, unit, counted, digits) {
  const {median, mean} = counted;
  return make("div", {class: "card"}, make("h3", {}, title),
    histogramChart(`${title}: histogram, median ${fixed(median, digits)} ${unit}`, unit, counted, digits),
    make("p", {class: "caption"}, `Median ${fixed(median, digits)}, mean ${fixed(mean, 2)} ${unit}. The last bar also counts all larger values.`));
}

/** Horizontal bars. Each entry is [name, value, label]. */
function bars(entries) {
  const most = Math.max(...entries.map(([, value]) => value), 1e-9);
  return make("dl", {class: "bars"}, ...entries.flatMap(([name, value, said]) => [make("dt", {}, name),
    make("dd", {}, make("span", {class: "bar-fill", style: `width: ${(100 * value / most).toFixed(2)}%`}), make("span", {class: "bar-said"}, said))]));
}

/**
 * Draws lines in one chart. Each series is {name, x, y}. A tooltip shows the values at the pointer.
 * x, y: as in `frame`; digits: decimal places of the values in the tooltip.
 */
function lineChart(label, series, x, y, digits) {
  const node = picture(label), tip = make("output", {class: "tip", hidden: true});
  fitted(node, (width, height) => {
    const {toX, toY, nodes, plot} = frame(width, height, x, y);
    const cut = value => Math.min(y.high, Math.max(y.low, value));
    const paths = series.map((one, i) => svg("polyline", {class: `line-mark line-${i % 6}`, points: one.x.map((value, k) => `${toX(value).toFixed(1)},${toY(cut(one.y[k])).toFixed(1)}`).join(" ")}));
    const mark = svg("line", {class: "axis-line", y1: plot.top, y2: plot.bottom, visibility: "hidden"});
    const drawing = svg("svg", {width, height}, ...nodes, mark, ...paths);
    drawing.addEventListener("pointermove", event => {
      const said = series.filter(one => one.x.length).map(one => {
        const nearest = one.x.reduce((best, value, k) => Math.abs(toX(value) - event.offsetX) < Math.abs(toX(one.x[best]) - event.offsetX) ? k : best, 0);
        return [one.name, one.x[nearest], one.y[nearest]];
      });
      if (!said.length) return;
      mark.setAttribute("x1", toX(said[0][1]));
      mark.setAttribute("x2", toX(said[0][1]));
      mark.setAttribute("visibility", "visible");
      showTip(tip, node, event.offsetX, event.offsetY, [`${x.title} ${short(said[0][1])}`, ...said.map(([name, , value]) => `${name}: ${value.toFixed(digits)}`)]);
    });
    drawing.addEventListener("pointerleave", () => { tip.hidden = true; mark.setAttribute("visibility", "hidden"); });
    return [drawing, tip];
  });
  return make("div", {}, node, series.length > 1 ? legend(series.map(one => one.name)) : null);
}

/** The legend: the colour of each name. */
function legend(names) {
  return make("ul", {class: "legend"}, ...names.map((name, i) => make("li", {}, make("span", {class: `swatch line-${i % 6}`}), name)));
}

/** Horizontal bars in groups. groups: [name, values], with a value or null for each of `names`; say(value): its label. */
function groupedBars(label, names, groups, say) {
  const most = Math.max(...groups.flatMap(([, values]) => values.filter(value => value !== null)), 1e-9);
  const bar = (value, i, name) => value === null ? null : make("dd", {title: `${names[i]}, ${name}: ${say(value)}`},
    make("span", {class: `bar-fill line-${i % 6}`, style: `width: ${(100 * value / most).toFixed(2)}%`}), make("span", {class: "bar-said"}, say(value)));
  return make("div", {}, make("dl", {class: "groups", "aria-label": label}, ...groups.map(([name, values]) => make("div", {},
    make("dt", {}, name), ...values.map((value, i) => bar(value, i, name))))), names.length > 1 ? legend(names) : null);
}

/** Shows a tooltip next to a position in a node, and keeps it within the node. */
function showTip(tip, node, x, y, lines) {
  tip.replaceChildren(...lines.map(line => make("div", {}, line)));
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 12, node.clientWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${Math.max(4, y - tip.offsetHeight - 8)}px`;
}

/**
 * Draws a symmetric matrix as a square of colours on a logarithmic scale.
 * cells: [row, column, value] of one triangle; said(row, column, value): lines of the tooltip.
 */
function matrixChart(label, rows, cells, said, onChoose) {
  const canvas = make("canvas", {}), tip = make("output", {class: "tip", hidden: true}), node = picture(label, "square matrix");
  node.append(canvas, tip);
  const values = new Map(cells.flatMap(([a, b, value]) => [[a * rows + b, value], [b * rows + a, value]]));
  const most = Math.log(Math.max(2, ...cells.map(([, , value]) => value)));
  const draw = () => {
    const side = canvas.width = canvas.height = Math.max(1, Math.round(canvas.clientWidth * (devicePixelRatio || 1)));
    const context = canvas.getContext("2d"), {well, accent} = palette();
    context.fillStyle = well;
    context.fillRect(0, 0, side, side);
    for (const [key, value] of values) {
      const row = Math.floor(key / rows), column = key % rows, edge = index => Math.round(index * side / rows);
      context.fillStyle = mixed(well, accent, 0.15 + 0.85 * Math.log(value) / most);
      context.fillRect(edge(column), edge(row), edge(column + 1) - edge(column), edge(row + 1) - edge(row));
    }
  };
  const cellAt = event => [event.offsetY, event.offsetX].map(at => Math.min(rows - 1, Math.max(0, Math.floor(at / canvas.clientWidth * rows))));
  canvas.addEventListener("pointermove", event => {
    const [row, column] = cellAt(event);
    showTip(tip, node, event.offsetX, event.offsetY, said(row, column, values.get(row * rows + column) ?? 0));
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", event => onChoose(...cellAt(event)));
  new ResizeObserver(draw).observe(canvas);
  redraws.push(draw);
  return node;
}

/**
 * Draws a graph. places: [x, y] of each vertex; edges: [from, to, strength 0 to 1], strongest first.
 * look(vertex): {said, className}.
 */
function graphChart(label, places, edges, look, onChoose) {
  const node = picture(label, "square");
  const xs = places.map(place => place[0]), ys = places.map(place => place[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  fitted(node, (width, height) => {
    const radius = places.length > 120 ? 3.5 : 6, air = radius + 4;
    const scale = Math.min((width - 2 * air) / (right - left || 1), (height - 2 * air) / (high - low || 1));
    const toX = x => width / 2 + (x - (left + right) / 2) * scale, toY = y => height / 2 - (y - (low + high) / 2) * scale;
    const lines = edges.toReversed().map(([a, b, strength]) => svg("line", {class: "edge-mark", x1: toX(places[a][0]).toFixed(1), y1: toY(places[a][1]).toFixed(1), x2: toX(places[b][0]).toFixed(1), y2: toY(places[b][1]).toFixed(1),
      "stroke-opacity": (0.12 + 0.6 * strength).toFixed(2), "stroke-width": (0.6 + 1.6 * strength).toFixed(2)}));
    const vertices = places.map(([x, y], number) => {
      const {said, className} = look(number);
      const dot = svg("circle", {class: `vertex-mark ${className}`, cx: toX(x).toFixed(1), cy: toY(y).toFixed(1), r: radius}, svg("title", {}, said));
      dot.addEventListener("click", () => onChoose(number));
      return dot;
    });
    return [svg("svg", {width, height}, ...lines, ...vertices)];
  });
  return node;
}

/** Mixes two colours in the format of palette(). */
function mixed(from, to, share) {
  const [a, b] = [from, to].map(colour => colour.match(/[\d.]+/g).map(Number));
  return `rgb(${[0, 1, 2].map(i => Math.round(a[i] + share * (b[i] - a[i]))).join(" ")})`;
}
