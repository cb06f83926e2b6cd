// The model in 3D with WebGL. All points of a page are in two buffers, and one call draws them.

/** Multiplies two matrices. They are column-major, as WebGL requires. */
function multiplied(a, b) {
  return Float64Array.from({length: 16}, (_, i) => [0, 1, 2, 3].reduce((sum, k) => sum + a[i % 4 + 4 * k] * b[k + i - i % 4], 0));
}

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = a => a.map(value => value / Math.hypot(...a));

/** Computes the matrix from world to clip coordinates for a camera at `eye` that looks at `target`, with z up. */
function projection(eye, target, aspect, near, far) {
  const back = unit(eye.map((value, i) => value - target[i])), right = unit(cross([0, 0, 1], back)), up = cross(back, right);
  const view = [right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
    -dot(right, eye), -dot(up, eye), -dot(back, eye), 1];
  const focal = 1 / Math.tan(FIELD_OF_VIEW / 2);
  const depth = near - far;
  const lens = [focal / aspect, 0, 0, 0, 0, focal, 0, 0, 0, 0, (far + near) / depth, -1, 0, 0, 2 * far * near / depth, 0];
  return {matrix: multiplied(lens, view), right, up};
}

const FIELD_OF_VIEW = 0.8; // radians, top to bottom

const VERTEX = `#version 300 es
uniform mat4 world_to_clip;
uniform vec3 low, extent;
uniform float size;
in vec3 place;
in vec3 colour;
out vec3 shade;
void main() {
  gl_Position = world_to_clip * vec4(low + place * extent, 1.0);
  gl_PointSize = size;
  shade = colour;
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
uniform bool round;
in vec3 shade;
out vec4 pixel;
void main() {
  if (round && distance(gl_PointCoord, vec2(0.5)) > 0.5) discard;
  pixel = vec4(shade, 1.0);
}`;

/**
 * Draws points and cameras on a canvas, and lets the user navigate.
 * world: {low, high: corners of the box; xyz: Uint16Array along its sides; rgb: Uint8Array; tips, corners of pyramids;
 * target, reach: centre and radius of the initial view}.
 * onCamera: called with the camera under the pointer and its position, or null; onChoose: called with a clicked camera.
 * Returns functions that change the view, or null if the browser has no WebGL 2.
 */
function modelView(canvas, world, {onCamera, onChoose}) {
  const gl = canvas.getContext("webgl2", {antialias: true, alpha: true});
  if (!gl) return null;
  const shown = {size: 2, cameras: true, accent: [0, 0, 0]};
  const extent = world.high.map((high, i) => high - world.low[i]), radius = Math.max(world.reach, Math.hypot(...extent) / 2);
  const narrow = Math.max(1, canvas.clientHeight / Math.max(1, canvas.clientWidth));
  const START = {target: world.target, distance: 0.85 * narrow * world.reach / Math.sin(FIELD_OF_VIEW / 2), turn: -0.35, tilt: 0.35};
  let at = {...START}, matrix = null, axes = null, asked = false;

  const program = compiled(gl);
  const where = name => gl.getUniformLocation(program, name);
  const uniforms = Object.fromEntries(["world_to_clip", "low", "extent", "size", "round"].map(name => [name, where(name)]));
  const [place, colour] = ["place", "colour"].map(name => gl.getAttribLocation(program, name));
  const points = [buffered(gl, world.xyz), buffered(gl, world.rgb)];
  const lines = buffered(gl, Float32Array.from(world.tips.flatMap((tip, i) => {
    const [a, b, c, d] = world.corners[i];
    return [tip, a, tip, b, tip, c, tip, d, a, b, b, c, c, d, d, a].flat();
  })));
  const tips = buffered(gl, Float32Array.from(world.tips.flat()));

  function draw() {
    asked = false;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(program);
    ({matrix, ...axes} = projection(eye(), at.target, canvas.width / canvas.height, 0.01 * at.distance, at.distance + 4 * radius));
    gl.uniformMatrix4fv(uniforms.world_to_clip, false, Float32Array.from(matrix));
    gl.uniform1i(uniforms.round, 1);
    gl.uniform1f(uniforms.size, shown.size * ratio);
    gl.uniform3fv(uniforms.low, world.low);
    gl.uniform3fv(uniforms.extent, extent);
    gl.bindBuffer(gl.ARRAY_BUFFER, points[0]);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, 3, gl.UNSIGNED_SHORT, true, 6, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, points[1]);
    gl.enableVertexAttribArray(colour);
    gl.vertexAttribPointer(colour, 3, gl.UNSIGNED_BYTE, true, 3, 0);
    gl.drawArrays(gl.POINTS, 0, world.xyz.length / 3);
    if (!shown.cameras) return;
    gl.uniform3f(uniforms.low, 0, 0, 0);
    gl.uniform3f(uniforms.extent, 1, 1, 1);
    gl.disableVertexAttribArray(colour);
    gl.vertexAttrib3f(colour, ...shown.accent);
    gl.uniform1i(uniforms.round, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, lines);
    gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 12, 0);
    gl.drawArrays(gl.LINES, 0, 16 * world.tips.length);
    gl.uniform1i(uniforms.round, 1);
    gl.uniform1f(uniforms.size, 6 * ratio);
    gl.bindBuffer(gl.ARRAY_BUFFER, tips);
    gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 12, 0);
    gl.drawArrays(gl.POINTS, 0, world.tips.length);
  }

  function eye() {
    const level = Math.cos(at.tilt);
    return at.target.map((value, i) => value + at.distance * [Math.sin(at.turn) * level, -Math.cos(at.turn) * level, Math.sin(at.tilt)][i]);
  }

  function ask() {
    if (!asked) requestAnimationFrame(draw);
    asked = true;
  }

  function turn(x, y) {
    at.turn -= x;
    at.tilt = Math.min(1.55, Math.max(-1.55, at.tilt + y));
    ask();
  }

  function shift(x, y) {
    const scale = 2 * at.distance * Math.tan(FIELD_OF_VIEW / 2) / canvas.clientHeight;
    at.target = at.target.map((value, i) => value - scale * (x * axes.right[i] - y * axes.up[i]));
    ask();
  }

  function approach(factor) {
    at.distance = Math.min(8 * radius, Math.max(0.005 * radius, at.distance * factor));
    ask();
  }

  /** Projects a point of the world to the canvas, in CSS pixels. Returns null if the point is behind the camera. */
  function placeOf(point) {
    const [x, y, , w] = [0, 1, 2, 3].map(row => dot([matrix[row], matrix[4 + row], matrix[8 + row]], point) + matrix[12 + row]);
    return w > 0 ? [(x / w + 1) / 2 * canvas.clientWidth, (1 - y / w) / 2 * canvas.clientHeight] : null;
  }

  /** Finds the camera nearest to a position on the canvas, if it is within `reach`, and where it is drawn. */
  function cameraAt(x, y, reach) {
    if (!shown.cameras || !matrix) return null;
    let found = null;
    world.tips.forEach((tip, number) => {
      const place = placeOf(tip), away = place ? Math.hypot(place[0] - x, place[1] - y) : Infinity;
      if (away < reach) { reach = away; found = {number, x: place[0], y: place[1]}; }
    });
    return found;
  }

  // One finger or the left button turns the model. Two fingers, the right button or Shift move it. Pinching and the
  // wheel zoom.
  const down = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    if (!down.size) moved = 0;
    down.set(event.pointerId, [event.offsetX, event.offsetY]);
    onCamera(null);
  });
  canvas.addEventListener("pointermove", event => {
    const before = down.get(event.pointerId);
    if (!before) { onCamera(cameraAt(event.offsetX, event.offsetY, 14)); return; }
    const [x, y] = [event.offsetX - before[0], event.offsetY - before[1]];
    moved += Math.hypot(x, y);
    if (down.size === 2) {
      const other = [...down].find(([id]) => id !== event.pointerId)[1];
      const span = (px, py) => Math.hypot(px - other[0], py - other[1]) || 1;
      approach(span(...before) / span(event.offsetX, event.offsetY));
      shift(x / 2, y / 2);
    } else if (event.buttons & 2 || event.shiftKey) shift(x, y);
    else turn(x * 0.008, y * 0.008);
    down.set(event.pointerId, [event.offsetX, event.offsetY]);
  });
  for (const ended of ["pointerup", "pointercancel"]) canvas.addEventListener(ended, event => {
    if (!down.delete(event.pointerId) || ended === "pointercancel" || moved > 5) return;
    const camera = cameraAt(event.offsetX, event.offsetY, event.pointerType === "touch" ? 24 : 14);
    if (camera) onChoose(camera.number);
  });
  canvas.addEventListener("pointerleave", () => onCamera(null));
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  canvas.addEventListener("wheel", event => {
    if (document.activeElement !== canvas) return; // until the user clicks the model, the wheel scrolls the page
    event.preventDefault();
    approach(Math.exp(Math.sign(event.deltaY) * Math.min(0.25, Math.abs(event.deltaY) * 0.002)));
  }, {passive: false});
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", event => {
    const act = {ArrowLeft: () => turn(0.1, 0), ArrowRight: () => turn(-0.1, 0), ArrowUp: () => turn(0, 0.1), ArrowDown: () => turn(0, -0.1),
      "+": () => approach(0.9), "=": () => approach(0.9), "-": () => approach(1.1), 0: reset}[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  new ResizeObserver(ask).observe(canvas);

  function reset() {
    at = {...START};
    ask();
  }

  return {reset, cameraAt, placeOf, set(what) { Object.assign(shown, what); ask(); }};
}

function compiled(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

function buffered(gl, values) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
  return buffer;
}
