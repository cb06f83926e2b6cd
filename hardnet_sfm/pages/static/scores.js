// The page about an evaluation on patches, or on photos whose geometry is known.

const MEAN = "mean", MOST_GROUPS = 12;

const said = (measure, value) => value === null ? "–" : (measure.per_cent ? 100 * value : value).toFixed(measure.digits);

/** Returns the value of a descriptor in a column; null if it was not measured. */
const valueOf = (measure, descriptor, column) => measure.values[measure.descriptors.indexOf(descriptor)][measure.columns.indexOf(column)];
const isMarked = (measure, descriptor, column) => measure.marked[measure.descriptors.indexOf(descriptor)][measure.columns.indexOf(column)];

/** Returns the best value of a column among the unmarked values; undefined if there are none. */
function best(measure, column) {
  const found = measure.descriptors.filter(name => !isMarked(measure, name, column)).map(name => valueOf(measure, name, column)).filter(value => value !== null);
  return found.length ? Math[measure.lower_is_better ? "min" : "max"](...found) : undefined;
}

function cell(measure, descriptor, column) {
  const value = valueOf(measure, descriptor, column), text = said(measure, value);
  if (value === null) return text;
  if (isMarked(measure, descriptor, column)) return make("span", {title: measure.mark}, `${text}*`);
  return measure.descriptors.length > 1 && value === best(measure, column) ? make("strong", {}, text) : text;
}

/** Makes the table of a measure. Descriptors are rows, or columns if `measure.across` is true. */
function table(measure) {
  const trained = name => (data.descriptors[name]?.trained_on ?? []).join(", ");
  const rows = measure.across ? measure.columns : measure.descriptors, columns = measure.across ? measure.descriptors : measure.columns;
  const place = (row, column) => measure.across ? [column, row] : [row, column];
  const made = sortedTable(measure.title, [
    {title: measure.across ? "Measured on" : "Descriptor", text: true, value: row => row, cell: row => row},
    ...(!measure.across && rows.some(trained) ? [{title: "Trained on", text: true, value: trained, cell: row => trained(row) || "–"}] : []),
    ...columns.map(column => ({title: column, value: row => valueOf(measure, ...place(row, column)), cell: row => cell(measure, ...place(row, column))})),
  ], rows);
  return make("div", {class: "table"}, made.node, rows.length > 100 ? made.foot : null, measure.marked.flat().some(Boolean) ? make("p", {class: "caption"}, `* ${measure.mark}`) : null);
}

/** Draws the values of a measure as bars. With many columns it draws only the means. */
function chart(measure) {
  const columns = measure.columns.length <= MOST_GROUPS ? measure.columns : measure.columns.filter(column => column === MEAN);
  return columns.length ? make("div", {class: "card"}, groupedBars(`${measure.title}, as bars`, measure.descriptors,
    columns.map(column => [column, measure.descriptors.map(name => valueOf(measure, name, column))]), value => said(measure, value))) : null;
}

/** Makes a card with a line for each descriptor in the chosen column. */
function curveCard({title, lead, x, y, series}) {
  const columns = Object.keys(series), place = make("div", {});
  const choice = make("select", {"aria-label": `${title} of`, onchange: show}, ...columns.map(name => make("option", {value: name}, name)));
  function show() {
    const name = choice.value, lines = series[name];
    place.replaceChildren(lineChart(`${title}, ${name}: ${lines.map(line => line.name).join(", ")}`, lines, x, y, 3),
      lines.length === 1 ? make("p", {class: "caption"}, lines[0].name) : "");
  }
  show();
  return make("div", {class: "card"}, make("h3", {}, title), make("p", {class: "caption"}, lead),
    columns.length > 1 ? make("div", {class: "controls"}, choice) : null, place);
}

for (const note of data.notes) main.append(make("p", {class: "note", role: "note"}, note));

section("overview", "Overview", null, figures([
  ["Descriptors", whole(data.measures[0].descriptors.length), "compared"],
  ...data.measures.flatMap(measure => {
    const column = measure.columns.includes(MEAN) ? MEAN : measure.columns[0], value = best(measure, column);
    if (value === undefined) return [];
    const [title, unit] = [measure.title.split(/[,;]/)[0], measure.per_cent ? " %" : ""];
    return [[`Best ${title}`, `${said(measure, value)}${unit}`, `${measure.descriptors.find(name => valueOf(measure, name, column) === value)}, ${column}`]];
  }),
]));

if (data.curves.length)
  section("curves", "Curves", "Point at a curve to read it.", make("div", {class: "grid", style: "--least: 26rem"}, ...data.curves.map(curveCard)));

section("measures", "Measures", "The best of the comparable values is bold. Choose a column to sort by it.", ...data.measures.flatMap(measure => [
  make("h3", {}, `${measure.title}${measure.lower_is_better ? "; lower is better" : ""}`), table(measure), chart(measure)]));

if (data.details.length)
  section("details", "In detail", null, ...data.details.flatMap(measure => [make("h3", {}, measure.title), table(measure)]));

section("options", "Descriptors and versions", null, provenance(data.descriptors, data.versions));
