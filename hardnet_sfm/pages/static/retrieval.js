// The page about the results of a search.

const {answers, search, names} = data;
const MOST_SHOWN = 60;

for (const note of data.notes) main.append(make("p", {class: "note", role: "note"}, note));

const best = answer => answer.image.length ? names[answer.image[0]] : "–";
const base = path => path.split("/").at(-1);
const score = value => Number(value.toPrecision(4)).toString();
const verifying = answers.some(answer => answer.shows.some(shows => shows !== null));
const state = (answer, place) => answer.identical[place] ? "same file" : answer.shows[place] ? "accepted" : "not accepted";

section("overview", "Overview", null, figures([
  answers.length > 1 ? ["Queries", whole(answers.length), null] : ["Listed", whole(answers[0].found), "photos, best first"],
  ["Photos", whole(search.photos), "searched"],
  ["Method", search.method, null],
  ...(verifying ? [["Accepted", whole(answers.reduce((sum, answer) => sum + answer.accepted, 0)), "of the photos listed"]] : []),
]));

/* The answer to one query */

const asked = make("div", {class: "card asked"}), found = make("div", {class: "found"});
const more = make("button", {type: "button", onclick: () => { limit += MOST_SHOWN; fill(); }});
let now = 0, limit = MOST_SHOWN;

function queryEnd({query, picture, size, box}) {
  return {name: `Query ${query}`, source: data.queries[picture], size, box};
}

function result(place) {
  const answer = answers[now], image = answer.image[place], inliers = answer.inliers[place], source = data.previews[image];
  return make("button", {type: "button", class: "result", title: names[image], "aria-label": `Look at ${place + 1}: ${names[image]}`, onclick: () => open(place)},
    source ? make("img", {src: source, alt: "", decoding: "async"}) : make("span", {class: "blank"}, data.missing[image]),
    make("span", {class: "name"}, make("strong", {}, `${place + 1}`), ` ${names[image]}`),
    make("span", {class: "caption"}, `score ${score(answer.score[place])}`,
      answer.shows[place] === null ? "" : make("span", {class: `state ${answer.shows[place] ? "registered" : "elsewhere"}`}, `${plural(inliers ?? 0, "inlier")}, ${state(answer, place)}`)));
}

function fill() {
  const answer = answers[now];
  found.replaceChildren(...answer.image.slice(0, limit).map((_, place) => result(place)));
  more.hidden = answer.image.length <= limit;
  more.textContent = `Show ${Math.min(MOST_SHOWN, answer.image.length - limit)} more`;
}

function show(number) {
  now = number;
  limit = MOST_SHOWN;
  const answer = answers[now], [width, height] = answer.size;
  asked.replaceChildren(
    make("div", {class: "stage", style: `aspect-ratio: ${width} / ${height}; max-width: ${Math.round(260 * width / height)}px`}, ...boxedPhoto(queryEnd(answer))),
    make("div", {}, make("p", {class: "caption"}, "query"), make("h3", {title: answer.query}, base(answer.query)), facts([
      ["Size", `${width} × ${height} px`],
      ...(answer.bbox ? [["Box", answer.bbox.map(value => Number(value.toFixed(1))).join(", ")]] : []),
      ["Listed", answer.found > answer.image.length ? `${plural(answer.found, "photo")}, the first ${whole(answer.image.length)} are shown` : answer.found ? plural(answer.found, "photo") : "nothing in common with any photo"],
      ...(verifying ? [["Accepted", answer.accepted ? plural(answer.accepted, "photo") : "nothing found: none has more inliers than chance gives"]] : [])])));
  fill();
}

/* One photo next to the query */

const viewer = (() => {
  const pair = make("div", {}), aside = make("div", {class: "aside"});
  const {dialog, title} = steppingDialog(by => open((at + by + answers[now].image.length) % answers[now].image.length), pair, aside);
  let at = 0;
  return function open(place) {
    at = place;
    const answer = answers[now], image = answer.image[place], inliers = answer.inliers[place], size = data.sizes[image];
    const lines = answer.lines[place] ? unpack(answer.lines[place]) : [], drawn = lines.length / 4;
    title.textContent = `${place + 1}  ${names[image]}`;
    pair.replaceChildren(pairPicture([queryEnd(answer), {name: names[image], source: data.previews[image], size}], lines));
    aside.replaceChildren(facts([["Score", score(answer.score[place])],
      ["Inliers", inliers === null ? "not verified" : whole(inliers)], ...(answer.shows[place] === null ? [] : [["Decision", state(answer, place)]]), ["Size", size ? `${size[0]} × ${size[1]} px` : "–"]]),
      inliers ? make("p", {class: "caption"}, drawn < inliers ? `${whole(drawn)} of ${plural(inliers, "inlier")} drawn.` : "Lines join spatially verified matches.") : "");
    if (!dialog.open) dialog.showModal();
  };
})();

function open(place) {
  viewer(place);
}

if (answers.length > 1) {
  const table = sortedTable("Queries", [
    {title: "Photo", text: true, cell: n => make("button", {type: "button", class: "thumb", "aria-label": `Look at the answer to ${answers[n].query}`, onclick: () => choose(n)},
      data.queries[answers[n].picture] ? make("img", {src: data.queries[answers[n].picture], alt: "", loading: "lazy"}) : "no photo")},
    {title: "Query", text: true, className: "wide", value: n => answers[n].query, cell: n => make("button", {type: "button", class: "link", title: answers[n].query, onclick: () => choose(n)}, base(answers[n].query))},
    {title: "Listed", value: n => answers[n].found, cell: n => whole(answers[n].found)},
    ...(verifying ? [{title: "Accepted", value: n => answers[n].accepted, cell: n => whole(answers[n].accepted)}] : []),
    {title: "Best", text: true, className: "wide", value: n => best(answers[n]), cell: n => best(answers[n])},
  ], [...answers.keys()]);
  section("queries", "Queries", "Choose a query to see its results.", table.node, table.foot);
}

function choose(number) {
  show(number);
  document.getElementById("results").scrollIntoView();
}

section("results", "Results", `Best first. Choose a photo to see it next to the query${verifying ? ", with lines between spatially verified matches" : ""}.`, asked, found, make("div", {class: "controls"}, more));
show(0);

section("options", "Options and versions", null, provenance({Search: search, Features: data.features, Weights: data.weights}, data.versions));
