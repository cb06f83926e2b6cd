// Photos on a page: two side by side with lines between them, and single photos in a dialog.

const RAMP = ["#2b6fb3", "#00b7c4", "#7fdc8b", "#f5ee6b", "#f6a63a", "#d7301f"].map(hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)));

/** Returns the colour at a share, 0 to 1, of the ramp from short tracks to long ones. */
function ramp(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (RAMP.length - 1), i = Math.floor(at);
  return `rgb(${RAMP[i].map((low, k) => Math.round(low + (at - i) * (RAMP[i + 1][k] - low))).join(" ")})`;
}

/**
 * Draws two photos of the same height side by side, and lines between them.
 * ends: two of {name, source, size, box}; box: x0, y0, x1, y1 as shares of the sides, or nothing.
 * lines: x, y in the first and x, y in the second photo for each line, as `scale_to_sides` in page.py wrote them.
 */
function pairPicture(ends, lines) {
  const canvas = make("canvas", {"aria-hidden": "true"}), shape = ({size}) => size ? size[0] / size[1] : 4 / 3;
  // With equal heights, the widths have the ratio of the aspect ratios.
  const halves = ends.map(end => make("div", {class: "half", style: `flex: ${shape(end)} 1 0; aspect-ratio: ${shape(end)}`}, ...boxedPhoto(end)));
  const frame = make("div", {class: "pair", style: `max-width: ${Math.round(420 * ends.reduce((sum, end) => sum + shape(end), 0))}px`}, ...halves, canvas);

  function draw() {
    if (!frame.clientWidth) return;
    const ratio = devicePixelRatio || 1, outer = frame.getBoundingClientRect();
    canvas.width = outer.width * ratio;
    canvas.height = outer.height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const boxes = halves.map(half => half.getBoundingClientRect());
    const at = (i, end) => [boxes[end].x - outer.x + lines[4 * i + 2 * end] / 65535 * boxes[end].width,
      boxes[end].y - outer.y + lines[4 * i + 2 * end + 1] / 65535 * boxes[end].height];
    for (let i = 0; i < lines.length / 4; i++) {
      const [from, to] = [at(i, 0), at(i, 1)];
      // The colour depends on the height in the first photo, so that crossing lines stand out.
      context.strokeStyle = context.fillStyle = ramp(lines[4 * i + 1] / 65535);
      context.globalAlpha = 0.75;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
      context.globalAlpha = 1;
      for (const end of [from, to]) { context.beginPath(); context.arc(...end, 2.2, 0, 7); context.fill(); }
    }
  }
  new ResizeObserver(draw).observe(frame);
  return frame;
}

/** Makes a photo that fills its parent, with a box if one is given. */
function boxedPhoto({name, source, box}) {
  const [x0, y0, x1, y1] = (box ?? [0, 0, 0, 0]).map(share => 100 * share);
  return [source ? make("img", {src: source, alt: name}) : make("div", {class: "blank"}, "The photo is not here"),
    box ? make("div", {class: "box", style: `left: ${x0}%; top: ${y0}%; width: ${x1 - x0}%; height: ${y1 - y0}%`}) : ""];
}

/** Makes a dialog for one photo at a time. Buttons and arrow keys call step(by) to show the next or previous photo. */
function steppingDialog(step, ...body) {
  const title = make("h2", {id: "photo-title"});
  const button = by => make("button", {type: "button", "aria-label": by < 0 ? "Previous photo" : "Next photo", onclick: () => step(by)}, by < 0 ? "←" : "→");
  const dialog = make("dialog", {"aria-labelledby": "photo-title", onclick: event => { if (event.target === dialog) dialog.close(); }},
    make("div", {class: "photo-head"}, title, button(-1), button(1), make("button", {type: "button", onclick: () => dialog.close()}, "Close")),
    make("div", {class: "photo-body"}, ...body));
  dialog.addEventListener("keydown", event => {
    if (event.target.tagName === "INPUT") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  document.body.append(dialog);
  return {dialog, title};
}
