// The page about a reconstruction.

const {photos, summary} = data;
const photoCount = photos.name.length;
const numbers = [...photos.name.keys()];
const model = summary.models[0] ?? null;

for (const note of data.notes) main.append(make("p", {class: "note", role: "note"}, note));

/* Overview */

{
  const others = summary.models.slice(1).map((other, i) => `sparse/${i + 1}: ${plural(other.photos, "photo")}, ${plural(other.points, "point")}`);
  const overview = section("overview", "Overview", null, figures([
    ["Photos registered", `${whole(summary.registered)} of ${whole(photoCount)}`, plural(summary.cameras, "camera")],
    ["Points", model ? whole(model.points) : "–", model ? `${whole(model.observations)} observations` : "no model"],
    ["Track length", model ? fixed(model.mean_track_length, 2) : "–", "observations a point, mean"],
    ["Reprojection error", model ? `${fixed(model.mean_reprojection_error, 2)} px` : "–", "mean over the points"],
    ["Keypoints", whole(summary.keypoints), `${whole(Math.round(summary.keypoints / Math.max(1, photoCount)))} a photo`],
    ["Verified pairs", whole(summary.verified_pairs), `of ${whole(summary.pairs)} matched; ${whole(summary.verified_matches)} of ${whole(summary.matches)} matches`],
  ]));
  if (others.length) overview.append(make("p", {class: "lead"}, `Other models: ${others.join("; ")}.`));
  for (const group of summary.camera_groups ?? []) overview.append(make("p", {class: "lead cameras"}, cameras(group)));
  if (summary.orientation) overview.append(make("p", {class: "lead"}, `Keypoints are described ${described(summary.orientation)}.`));
  if (summary.seconds) overview.append(stages());
}

/** Says along which orientations keypoints are described, and why. */
function described(orientation) {
  const [decided, reason] = orientation.split(": ");
  const along = {upright: "upright", estimated: "along their estimated orientations", both: "upright and along their estimated orientations"}[decided] ?? decided;
  return reason ? `${along}: ${reason}` : along;
}

/** Says which photos share a camera, and why. */
function cameras({photos: count, shared, reason}) {
  return `${plural(count, "photo")} ${shared ? "share a camera" : count === 1 ? "has a camera of its own" : "have a camera each"}: ${reason}.`;
}

/** Charts time and memory of each stage. */
function stages() {
  const seconds = Object.entries(summary.seconds), memory = summary.peak_memory_mb_by_stage;
  const total = seconds.reduce((sum, [, value]) => sum + value, 0);
  return make("div", {class: "grid"},
    make("div", {class: "card"}, make("h3", {}, "Time by stage"), bars(seconds.map(([name, value]) => [name, value, `${value.toFixed(1)} s`])),
      make("p", {class: "caption"}, `${total.toFixed(1)} s in all, in the run that made the model. Work that was up to date took no time.`)),
    memory ? make("div", {class: "card"}, make("h3", {}, "Memory by stage"), bars(Object.entries(memory).map(([name, value]) => [name, value, `${whole(value)} MB`])),
      make("p", {class: "caption"}, "Peak memory of the process up to the end of each stage. If the peak rises at a stage, that stage needs the memory."))
      : make("div", {class: "card"}, make("h3", {}, "Memory"), make("p", {}, `${whole(summary.peak_memory_mb)} MB at most`)));
}

/* The model in 3D */

let view = null;
if (data.cloud) {
  const {cloud} = data;
  const rule = cloud.cell
    ? `${whole(cloud.shown)} of ${whole(cloud.points)} points are drawn: the point with the longest track in each cell of a grid with ${cloud.cell.toPrecision(2)} units a side.`
    : `All ${whole(cloud.shown)} points in the box are drawn.`;
  const outside = cloud.outside ? ` ${plural(cloud.outside, "point")} far outside the box ${cloud.outside === 1 ? "is" : "are"} left out.` : "";
  const canvas = make("canvas", {tabindex: 0, role: "img", "aria-label": `The model in 3D: ${plural(cloud.points, "point")} and ${plural(cloud.tips.length, "camera")}. Arrow keys turn it, plus and minus zoom in and out, and 0 resets the view.`});
  const tip = make("output", {class: "tip", hidden: true}), node = make("div", {class: "model"}, canvas, tip);
  const size = make("input", {type: "range", min: 0.5, max: 6, step: 0.5, value: cloud.shown > 60000 ? 1.5 : 2.5});
  const cameras = make("input", {type: "checkbox", checked: true});
  const reset = make("button", {type: "button"}, "Reset view");
  section("model", "Model", `Drag to turn the model. Drag with Shift or the right button to move it. Click it, then scroll to zoom. Point at a camera to read the name of its photo, and click it to see the photo. ${rule}${outside}`,
    node, make("div", {class: "controls"}, make("label", {}, "Size of points", size), make("label", {}, cameras, "Cameras"), reset));
  view = modelView(canvas, {...cloud, xyz: unpack(cloud.xyz), rgb: unpack(cloud.rgb)}, {
    onCamera(camera) {
      canvas.style.cursor = camera ? "pointer" : "grab";
      if (camera) showTip(tip, node, camera.x, camera.y, [photos.name[cloud.photo[camera.number]]]);
      else tip.hidden = true;
    },
    onChoose: number => openPhoto(cloud.photo[number]),
  });
  if (view) {
    const look = () => view.set({size: Number(size.value), cameras: cameras.checked, accent: palette().accent.match(/[\d.]+/g).map(value => value / 255)});
    size.addEventListener("input", look);
    cameras.addEventListener("change", look);
    reset.addEventListener("click", view.reset);
    redraws.push(look);
    look();
  } else node.replaceChildren(make("p", {class: "note"}, "This browser cannot draw in 3D: it has no WebGL 2."));
}

/* Photos */

const stateClass = {registered: "registered", "in another model": "elsewhere"};

function thumbnail(number) {
  const source = data.previews[number];
  return make("button", {type: "button", class: "thumb", "aria-label": `Look at ${photos.name[number]}`, onclick: () => openPhoto(number)},
    source ? make("img", {src: source, alt: "", loading: "lazy"}) : "no photo");
}

{
  const table = sortedTable("Photos", [
    {title: "Photo", text: true, cell: thumbnail},
    {title: "Name", text: true, className: "wide", value: n => photos.name[n],
      cell: n => make("button", {type: "button", class: "link", onclick: () => openPhoto(n)}, photos.name[n])},
    {title: "Keypoints", value: n => photos.keypoints[n], cell: n => whole(photos.keypoints[n])},
    {title: "Verified pairs", value: n => photos.pairs[n], cell: n => whole(photos.pairs[n])},
    {title: "Verified matches", value: n => photos.matches[n], cell: n => whole(photos.matches[n])},
    {title: "Observations", value: n => photos.observations[n], cell: n => whole(photos.observations[n])},
    {title: "Error, px", value: n => photos.error[n], cell: n => fixed(photos.error[n], 2)},
    {title: "State", text: true, className: "wide", value: n => `${photos.state[n]} ${photos.reason[n]}`,
      cell: n => make("div", {}, make("span", {class: `state ${stateClass[photos.state[n]] ?? ""}`}, photos.state[n]),
        photos.reason[n] ? make("div", {class: "caption"}, photos.reason[n]) : null)},
  ], numbers);
  const states = [...new Set(photos.state)].sort();
  const search = make("input", {type: "search", placeholder: "Part of a name or reason", "aria-label": "Filter photos", oninput: filter});
  const state = make("select", {"aria-label": "State", onchange: filter}, make("option", {value: ""}, "All states"),
    ...states.map(name => make("option", {value: name}, `${name} (${photos.state.filter(other => other === name).length})`)));
  function filter() {
    const words = search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    table.filter(n => (!state.value || photos.state[n] === state.value)
      && words.every(word => `${photos.name[n]} ${photos.reason[n]}`.toLocaleLowerCase().includes(word)));
  }
  section("photos", "Photos", "Verified matches are those of verified pairs. Observations are those of the largest model. Choose a column to sort by it, or a photo to see its keypoints.",
    make("div", {class: "controls"}, search, state), table.node, table.foot);
}

/* Keypoints over a photo */

const keypoints = data.keypoints && {xy: unpack(data.keypoints.xy), length: unpack(data.keypoints.length),
  first: data.keypoints.count.reduce((all, count) => [...all, all.at(-1) + count], [0])};
// The ramp ends at the 98 % quantile of the track lengths, so that few tracks exceed it.
const longest = (() => {
  const sorted = keypoints ? keypoints.length.filter(length => length > 0).sort() : [];
  return Math.max(4, sorted[Math.floor(0.98 * sorted.length)] ?? 4);
})();

const edgesOf = (() => {
  const {graph} = data;
  const [first, second, matches] = [graph.first, graph.second, graph.matches].map(unpack);
  return {first, second, matches, group: graph.group, joining: first.filter((row, i) => row !== second[i]).length};
})();

const viewer = (() => {
  const stage = make("div", {class: "stage"}), aside = make("div", {class: "aside"});
  const least = make("input", {type: "range", min: 0, max: longest, step: 1, value: 0, oninput: () => drawKeypoints()});
  const leastSaid = make("span", {});
  const {dialog, title} = steppingDialog(by => openPhoto((now + by + photoCount) % photoCount), stage, aside);
  new ResizeObserver(() => drawKeypoints()).observe(stage);
  let now = 0;

  function drawKeypoints() {
    const canvas = stage.querySelector("canvas");
    leastSaid.textContent = Number(least.value) ? `at least ${least.value}` : "all";
    if (!canvas || !keypoints || now >= data.keypoints.count.length) return;
    const ratio = devicePixelRatio || 1, width = canvas.width = stage.clientWidth * ratio, height = canvas.height = stage.clientHeight * ratio;
    const context = canvas.getContext("2d"), radius = Math.max(1.6, stage.clientWidth / 360) * ratio;
    // There is one path for each track length, with long tracks on top. A path for each of thousands of keypoints would
    // keep a phone busy for seconds.
    const paths = new Map();
    for (let i = keypoints.first[now + 1] - 1; i >= keypoints.first[now]; i--) {
      const length = keypoints.length[i];
      if (length < Number(least.value)) continue;
      if (!paths.has(length)) paths.set(length, new Path2D());
      const [x, y] = [keypoints.xy[2 * i] / 65535 * width, keypoints.xy[2 * i + 1] / 65535 * height];
      const path = paths.get(length), size = length ? radius : radius * 0.7;
      path.moveTo(x + size, y);
      path.arc(x, y, size, 0, 2 * Math.PI);
    }
    context.strokeStyle = "rgb(0 0 0 / .5)";
    context.lineWidth = 0.6 * ratio;
    for (const [length, path] of [...paths].sort(([a], [b]) => a - b)) {
      context.fillStyle = length ? ramp((length - 2) / (longest - 2)) : "rgb(255 255 255 / .45)";
      context.fill(path);
      if (length) context.stroke(path);
    }
  }

  function partners(number) {
    const {first, second, matches, group} = edgesOf, found = [];
    if (group > 1) return null;
    for (let i = 0; i < first.length; i++) {
      if (first[i] === number) found.push([second[i], matches[i]]);
      else if (second[i] === number) found.push([first[i], matches[i]]);
    }
    const list = found.slice(0, 8).map(([other, count]) => make("li", {},
      make("button", {type: "button", class: "link", onclick: () => openPhoto(other)}, photos.name[other]), make("span", {}, whole(count))));
    return make("div", {}, make("h3", {}, "Most verified matches with"), list.length ? make("ul", {class: "plain"}, ...list) : make("p", {class: "caption"}, "no photo"));
  }

  function legend(number) {
    if (!keypoints || number >= data.keypoints.count.length) return null;
    const kept = data.keypoints.count[number], all = photos.keypoints[number];
    const stops = Array.from({length: 9}, (_, i) => ramp(i / 8)).join(", ");
    return make("div", {}, make("h3", {}, "Keypoints by track length"),
      make("div", {class: "ramp", style: `background: linear-gradient(to right, ${stops})`}),
      make("div", {class: "ends"}, make("span", {}, "2"), make("span", {}, `${longest} and more`)),
      make("p", {class: "caption"}, `White keypoints belong to no point. ${kept < all ? `${whole(kept)} of ${whole(all)} are shown: those with the longest tracks, then the strongest.` : `All ${whole(all)} are shown.`}`),
      make("label", {}, "Tracks", least, leastSaid));
  }

  function open(number) {
    now = number;
    title.textContent = photos.name[number];
    const size = photos.size[number], source = data.previews[number];
    const [width, height] = size ?? [4, 3];
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.maxWidth = `calc(72vh * ${width / height})`;
    stage.replaceChildren(source ? make("img", {src: source, alt: `Photo ${photos.name[number]}`}) : make("div", {class: "blank"}, "The photo is not here"), make("canvas", {"aria-hidden": "true"}));
    aside.replaceChildren(...[
      facts([["State", photos.state[number]], ...(photos.reason[number] ? [["Reason", photos.reason[number]]] : []),
        ["Size", size ? `${width} × ${height} px` : "–"], ["Keypoints", whole(photos.keypoints[number])],
        ["Observations", whole(photos.observations[number])], ["Verified", `${whole(photos.matches[number])} matches in ${plural(photos.pairs[number], "pair")}`],
        ["Error", photos.error[number] === null ? "–" : `${fixed(photos.error[number], 2)} px`]]),
      legend(number), partners(number),
    ].filter(Boolean));
    if (!dialog.open) dialog.showModal();
    drawKeypoints();
  }
  return {open};
})();

function openPhoto(number) {
  viewer.open(number);
}

/* Matches between photos */

if (data.graph.places.length) {
  const {graph} = data, {first, second, matches, group} = edgesOf;
  const rows = graph.places.length;
  const rowName = row => group === 1 ? photos.name[row] : `${photos.name[row * group]} … ${photos.name[Math.min(row * group + group, photoCount) - 1]}`;
  const of = group === 1 ? "photo" : "group";
  const edges = graph.edges.map((edge, place) => [first[edge], second[edge], 1 - place / graph.edges.length]);
  const look = row => {
    const state = photos.state[row * group];
    return {said: `${rowName(row)}\n${state}`, className: stateClass[state] ?? "missing"};
  };
  const said = (row, column, value) => [rowName(row), ...(row === column ? [] : [rowName(column)]), value ? plural(value, "verified match").replace("matchs", "matches") : row === column && group === 1 ? "itself" : "not verified"];
  section("matches", "Matches", `Pairs of photos that passed geometric verification.${group > 1 ? ` Each vertex and row stands for a group of ${group} photos that follow each other.` : ""}`,
    make("div", {class: "grid", style: "--least: 24rem"},
      make("div", {class: "card"}, make("h3", {}, "Match graph"), graphChart(`Match graph of ${plural(rows, of)}`, graph.places, edges, look, row => openPhoto(row * group)),
        make("p", {class: "caption"}, make("span", {class: "key registered"}), " registered ", make("span", {class: "key elsewhere"}), " in another model ", make("span", {class: "key missing"}), " not registered"),
        make("p", {class: "caption"}, `Photos with many verified matches stand close together. ${whole(graph.edges.length)} of ${plural(edgesOf.joining, "connection")} drawn: the strongest of each photo, and the strongest of all.`)),
      make("div", {class: "card"}, make("h3", {}, "Matrix of verified matches"),
        matrixChart(`Matrix of verified matches of ${plural(rows, of)}`, rows, Array.from(first, (row, i) => [row, second[i], matches[i]]), said, row => openPhoto(row * group)),
        make("p", {class: "caption"}, "Rows and columns are the photos in their order. A stronger colour means more matches."))));
}

/* Pairs of photos */

if (data.pairs.length) {
  const made = section("pairs", "Pairs", "The verified pairs with the most and with the fewest matches that agree with one geometry. A wrong pair among the weakest joins parts of the scene that do not belong together.");
  for (const [title, best] of [["Most inliers", true], ["Fewest inliers", false]]) {
    const some = data.pairs.filter(pair => pair.best === best);
    if (some.length) made.append(make("h3", {}, title), ...some.map((pair, i) => pairPanel(pair, i === 0)));
  }
}

/* Pairs that disagree with the model */

if (data.suspects.length) {
  const {suspects} = data, all = summary.suspect_pairs;
  const name = number => make("button", {type: "button", class: "link", onclick: () => openPhoto(number)}, photos.name[number]);
  const table = sortedTable("Pairs that disagree with the model", [
    {title: "First photo", text: true, className: "wide", value: pair => photos.name[pair.first], cell: pair => name(pair.first)},
    {title: "Second photo", text: true, className: "wide", value: pair => photos.name[pair.second], cell: pair => name(pair.second)},
    {title: "Inliers", value: pair => pair.inliers, cell: pair => whole(pair.inliers)},
    {title: "Explained, %", value: pair => pair.explained, cell: pair => fixed(100 * pair.explained, 0)},
    {title: "Reason", text: true, className: "wide", value: pair => pair.reason, cell: pair => pair.reason},
  ], suspects);
  const kinds = "Either the photos show two things that look alike, or the model has put two places into one. Nothing was left out.";
  const listed = suspects.length < all ? ` The worst ${suspects.length} are listed.` : "";
  section("suspects", "Repeated structures?", `${plural(all, "pair")} of photos ${all === 1 ? "looks alike but disagrees" : "look alike but disagree"} with the model. ${kinds}${listed}`,
    table.node, table.foot, ...suspects.filter(pair => pair.lines).map((pair, i) => pairPanel(pair, i === 0)));
}

function pairPanel(pair, open) {
  const ends = [pair.first, pair.second].map(number => ({name: photos.name[number], size: photos.size[number], source: data.pair_previews[number]}));
  const lines = unpack(pair.lines), shown = lines.length / 4;
  return make("details", {open}, make("summary", {},
    make("strong", {}, `${whole(pair.inliers)} inliers`), make("span", {class: "caption"}, `${ends[0].name} and ${ends[1].name}`)),
    make("div", {class: "inside"}, pairPicture(ends, lines), make("p", {class: "caption"}, shown < pair.inliers ? `${whole(shown)} of them are drawn.` : "All are drawn.")));
}

/* Statistics */

if (data.histograms) {
  section("statistics", "Statistics", null, make("div", {class: "grid"},
    histogramCard("Track length", "observations", data.histograms.track, 0),
    histogramCard("Reprojection error", "px", data.histograms.error, 2),
    histogramCard("Triangulation angle", "degrees", data.histograms.angle, 1)));
}

/* Options */

{
  const cards = Object.entries(data.options).map(([stage, options]) => make("div", {class: "card"}, make("h3", {}, stage),
    facts(Object.entries(options).filter(([name]) => name !== "weights_sha256").map(([name, value]) => [name, value ?? "none"]))));
  const made = Object.entries(data.versions["made with"]).length ? data.versions["made with"] : data.versions["page by"];
  const when = made === data.versions["page by"] ? "Versions that made this page" : "Versions that made the model";
  section("options", "Options and versions", null, make("div", {class: "grid", style: "--least: 17rem"}, ...cards,
    make("div", {class: "card"}, make("h3", {}, "Weights"), facts(Object.entries(data.weights))),
    make("div", {class: "card"}, make("h3", {}, when), facts(Object.entries(made)))));
}
