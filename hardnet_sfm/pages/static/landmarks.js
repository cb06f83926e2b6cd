// The page about an evaluation on landmarks.

const {rows, setups} = data;
const descriptors = [...new Set(rows.map(row => row.descriptor))], methods = [...new Set(rows.map(row => row.method))];
const rowOf = (descriptor, method) => rows.find(row => row.descriptor === descriptor && row.method === method);
const percent = value => value === null || value === undefined ? "–" : (100 * value).toFixed(1);
const best = setup => Math.max(...rows.map(row => row.setups[setup].map ?? 0));

if (data.not_there.length)
  main.append(make("p", {class: "note", role: "note"}, `${plural(data.not_there.length, "photo")} that the ground truth names are not there: the figures are not comparable with those of the whole data set.`));
if (Object.keys(data.left_out).length)
  main.append(make("p", {class: "note", role: "note"}, `Not asked: ${Object.keys(data.left_out).join(", ")}.`));

section("overview", "Overview", null, figures([
  ["Data set", data.data_set, null],
  ["Photos", whole(data.photos), "searched"],
  ["Queries", whole(data.queries.length), "asked"],
  ...setups.map(setup => {
    const first = rows.find(row => row.setups[setup].map === best(setup));
    return [setup === "original" ? "Best mAP" : `Best mAP, ${setup}`, `${percent(best(setup))} %`, first ? `${first.descriptor}, ${first.method}` : null];
  }),
]));

section("table", "Mean average precision", "In per cent; the best of each table is bold. Choose a column to sort by it.", ...setups.flatMap(setup => [
  setups.length > 1 ? make("h3", {}, setup) : null,
  sortedTable(`mAP, ${setup}`, [
    {title: "Descriptor", text: true, value: name => name, cell: name => name},
    ...methods.map(method => ({title: method.toUpperCase(), value: name => rowOf(name, method)?.setups[setup].map ?? null,
      cell: name => {
        const row = rowOf(name, method), said = row?.setups[setup];
        if (!row) return "–";
        const others = said.mp_at ? Object.entries(said.mp_at).map(([k, value]) => `mP@${k} ${percent(value)}`).join(", ") : "";
        return make(said.map === best(setup) ? "strong" : "span", {title: `${others}; ${row.seconds_a_query.toFixed(3)} s a query`}, percent(said.map));
      }})),
  ], descriptors).node,
]));

{
  const choice = (label, options, say = name => name) => make("select", {"aria-label": label, onchange: show}, ...options.map(name => make("option", {value: name}, say(name))));
  const method = choice("Method", methods), setup = choice("Setup", setups), curves = make("div", {class: "card"}), queries = make("div", {style: "display: grid; gap: .6rem"});
  const answers = data.found ? make("div", {style: "display: grid; gap: .9rem"}) : null;
  let asked = null;
  method.value = rows.find(row => row.setups[setups[0]]?.map === best(setups[0]))?.method ?? methods[0];
  function show() {
    const some = descriptors.map(name => rowOf(name, method.value)).filter(Boolean);
    const series = some.filter(row => row.setups[setup.value].precision).map(row => ({name: row.descriptor, x: data.recalls, y: row.setups[setup.value].precision}));
    curves.replaceChildren(...(series.length ? [make("h3", {}, "Precision over recall"),
      lineChart(`Precision over recall of ${method.value}`, series, {low: 0, high: 1, title: "recall"}, {low: 0, high: 1}, 3),
      series.length === 1 ? make("p", {class: "caption"}, series[0].name) : "", make("p", {class: "caption"}, "Interpolated, mean over the queries.")]
      : [make("p", {class: "caption"}, "The version that wrote this file did not record the ranks of the photos found.")]));
    const names = data.queries.filter(name => some.some(row => name in row.setups[setup.value].queries));
    const table = sortedTable("Average precision of each query", [
      {title: "Query", text: true, value: name => name, cell: name => answers ? make("button", {type: "button", class: "link", onclick: () => { ask(name); answers.scrollIntoView(); }}, name) : name},
      ...some.map(row => ({title: row.descriptor, value: name => row.setups[setup.value].queries[name] ?? null, cell: name => percent(row.setups[setup.value].queries[name])})),
    ], names);
    queries.replaceChildren(table.node, table.foot);
    if (answers) ask(names.includes(asked) ? asked : names[0]);
  }

  /** Shows a query, and the first photos that each descriptor found for it. */
  function ask(name) {
    asked = name;
    if (!name) return answers.replaceChildren();
    const {photo, size, box} = data.found.asked[name], [width, height] = size ?? [4, 3];
    const first = descriptors.map(descriptor => [descriptor, data.found.first[rows.indexOf(rowOf(descriptor, method.value))]?.[setup.value][name] ?? []]);
    answers.replaceChildren(make("div", {class: "card asked"},
      make("div", {class: "stage", style: `aspect-ratio: ${width} / ${height}; max-width: ${Math.round(200 * width / height)}px`}, ...boxedPhoto({name: `Query ${name}`, source: data.found.pictures[photo], box})),
      make("div", {}, make("p", {class: "caption"}, "query"), make("h3", {}, name), facts([["Photo", photo], ...first.map(([descriptor]) => [descriptor, `AP ${percent(rowOf(descriptor, method.value)?.setups[setup.value].queries[name])} %`])]))),
      ...first.flatMap(([descriptor, ranked]) => [make("h3", {}, descriptor), make("div", {class: "found"}, ...ranked.map(foundPhoto))]));
  }

  const KINDS = {positive: "registered", junk: "elsewhere", negative: ""};
  function foundPhoto([photo, kind], place) {
    const source = data.found.pictures[photo];
    return make("figure", {class: "card result", title: photo}, source ? make("img", {src: source, alt: photo, decoding: "async"}) : make("span", {class: "blank"}, "The photo is not here"),
      make("figcaption", {class: "name"}, make("strong", {}, `${place + 1}`), ` ${photo}`), make("span", {class: "caption"}, make("span", {class: `state ${KINDS[kind]}`}, kind)));
  }

  section("queries", "Each query", `Average precision in per cent.${answers ? " Choose a query to see the first photos found for it." : " The photos found are shown where they are given: --images FOLDER."}`, make("div", {class: "controls"}, make("label", {}, "Method", method), setups.length > 1 ? make("label", {}, "Setup", setup) : null), curves, queries, answers);
  show();
}

section("options", "Descriptors and versions", null, provenance(data.descriptors, data.versions));
