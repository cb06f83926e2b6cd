// The page about a training run.

for (const note of data.notes) main.append(make("p", {class: "note", role: "note"}, note));

const {metadata, curves} = data;
const measures = metadata.measures ?? {};
const atEnd = name => measures[name] ?? curves[name]?.value.at(-1) ?? null;
const lastStep = Math.max(0, ...Object.values(curves).map(curve => curve.step.at(-1) ?? 0));

section("overview", "Overview", null, figures([
  ["Steps", whole(Number(metadata.steps ?? lastStep)), metadata.minutes ? `in ${metadata.minutes} minutes` : "so far"],
  ["FPR95", atEnd("fpr95") === null ? "–" : `${(100 * atEnd("fpr95")).toFixed(2)} %`, "false positives at 95 % recall, last validation"],
  ["mAP", atEnd("map") === null ? "–" : atEnd("map").toFixed(3), "of matching, last validation"],
  ["Loss", fixed(curves.loss?.value.at(-1), 3), "of the last logged batch"],
]));

const CURVES = [["loss", "Loss", 3], ["fpr95", "FPR95, validation", 4], ["map", "mAP of matching, validation", 4], ["learning rate", "Learning rate", 6]];
const drawn = CURVES.filter(([name]) => curves[name]?.step.length > 0);
if (drawn.length) {
  section("curves", "Learning curves", "Point at a curve to read it.", make("div", {class: "grid", style: "--least: 26rem"}, ...drawn.map(([name, title, digits]) => {
    const {step, value} = curves[name], [low, high] = [Math.min(...value), Math.max(...value)];
    // The axis starts at 0 if the curve then still fills enough of the chart.
    const from = low > 0.6 * high ? low - 0.1 * (high - low) - 1e-9 : Math.min(0, low);
    return make("div", {class: "card"}, make("h3", {}, title),
      lineChart(`${title}: ${fixed(value[0], digits)} at first, ${fixed(value.at(-1), digits)} at last`, [{name: title, x: step, y: value}],
        {low: 0, high: Math.max(1, step.at(-1)), title: "step"}, {low: from, high: high + 0.05 * (high - from) + 1e-9}, digits),
      make("p", {class: "caption"}, `Lowest ${fixed(low, digits)}, highest ${fixed(high, digits)}, last ${fixed(value.at(-1), digits)}.`));
  })));
}

if (data.hardest) {
  const panel = (title, caption, pairs) => make("div", {class: "card"}, make("h3", {}, title), make("p", {class: "caption"}, caption),
    make("div", {class: "patches"}, ...pairs.map(({picture, distance}, i) => make("figure", {},
      make("img", {src: picture, alt: `${title}, pair ${i + 1}, distance ${distance}`}), make("figcaption", {}, distance.toFixed(3))))));
  section("hardest", "Hardest patches", `Among ${whole(data.hardest.points)} points, by the distance of descriptors: 0 is the same, 2 the opposite.`,
    panel("Positives", "The same point in two photos, the farthest apart first.", data.hardest.positives),
    panel("Negatives", "Two different points, the most alike first.", data.hardest.negatives));
}

{
  const {options, measures: _, data: sources, ...plain} = metadata;
  const flat = Object.entries(options ?? {}).flatMap(([name, value]) =>
    value && typeof value === "object" ? Object.entries(value).map(([inner, one]) => [`${name} ${inner}`, one]) : [[name, value]]);
  section("options", "Options and versions", null, make("div", {class: "grid", style: "--least: 20rem"},
    Object.keys(plain).length ? make("div", {class: "card"}, make("h3", {}, "Weights"), facts(Object.entries(plain))) : null,
    flat.length ? make("div", {class: "card"}, make("h3", {}, "Options"), facts(flat.map(([name, value]) => [name, value ?? "none"]))) : null,
    Array.isArray(sources) ? make("div", {class: "card"}, make("h3", {}, "Trained on"), make("ul", {class: "plain"}, ...sources.map(source => make("li", {}, String(source))))) : null,
    make("div", {class: "card"}, make("h3", {}, "Versions that made this page"), facts(Object.entries(data.versions)))));
}
