// @ts-check
// Draws strokes into the maps of a model: the same integers as `edits.py`, bit by bit.
//
// All numbers stay below 2 ** 53, where doubles are exact and the floor of a quotient is right; the one product that
// does not, of a long bar with a wide brush, is computed with BigInt.

/** @typedef {{left: number, top: number, right: number, bottom: number}} Rect right and bottom are not part of it */
/** @typedef {"mask" | "sketch" | "color"} LayerName */
/**
 * @typedef {{kind: string, layer: LayerName, erase?: boolean, color?: string, width?: number, points?: number[],
 *   size?: number, runs?: number[], colors?: string[]}} Stroke
 */
/** @typedef {{size: number, mask: Uint8Array, sketch: Uint8Array, color: Uint8Array}} Layers */

/** Units that a side of the square has. */
export const UNITS = 65536;
/** @type {LayerName[]} */
export const LAYERS = ["mask", "sketch", "color"];
export const MAX_PRESSURE = 255;
/** Rows of pixels that the brushes of one face may cover, each point counted by itself. */
export const MAX_ROWS = 2 ** 25;

// Steps per pixel; a pixel's center lies half of them from its edge.
const FINE = 16;
const HALF = 8;

/** @param {number} size @returns {Layers} */
export function blank(size) {
  const area = size * size;
  return { size, mask: new Uint8Array(area), sketch: new Uint8Array(area), color: new Uint8Array(3 * area) };
}

/** Draw all strokes. @param {Stroke[]} strokes @param {number} size @returns {Layers} */
export function rasterize(strokes, size) {
  const layers = blank(size);
  let rows = 0;
  for (const stroke of strokes) {
    rows += paint(layers, stroke, 0).rows;
    if (rows > MAX_ROWS) throw new RangeError("too much was drawn with too large brushes; clear what is covered");
  }
  return layers;
}

/**
 * Draw one more stroke.
 * @param {Layers} layers
 * @param {Stroke} stroke
 * @param {number} from first point that is new; for a line that grows
 * @returns {Rect | null} what may have changed
 */
export function apply(layers, stroke, from = 0) {
  return paint(layers, stroke, from).rect();
}

/** @param {string} color as "#c01e32" @returns {[number, number, number]} black is the darkest that is not unpainted */
export function parseColor(color) {
  const number = parseInt(color.slice(1), 16);
  return number ? [number >> 16, (number >> 8) & 255, number & 255] : [1, 1, 1];
}

/** @param {Rect | null} one @param {Rect | null} other @returns {Rect | null} */
export function union(one, other) {
  if (!one || !other) return one || other;
  return {
    left: Math.min(one.left, other.left),
    top: Math.min(one.top, other.top),
    right: Math.max(one.right, other.right),
    bottom: Math.max(one.bottom, other.bottom),
  };
}

/** Marks spans of pixels with one value, and remembers where. */
class Paint {
  /** @param {Layers} layers @param {Stroke} stroke */
  constructor(layers, stroke) {
    this.size = layers.size;
    this.target = layers[stroke.layer];
    this.channels = stroke.layer === "color" ? 3 : 1;
    const erase = stroke.erase || stroke.kind === "clear";
    const painted = this.channels === 3 && !erase && stroke.color !== undefined;
    this.value = erase ? [0, 0, 0] : painted ? parseColor(/** @type {string} */ (stroke.color)) : [1, 1, 1];
    this.rows = 0;
    this.left = this.top = this.size;
    this.right = this.bottom = 0;
  }

  /** @param {number} row @param {number} first @param {number} last */
  span(row, first, last) {
    if (first < 0) first = 0;
    if (last >= this.size) last = this.size - 1;
    if (first > last) return;
    const start = row * this.size + first, end = row * this.size + last + 1;
    if (this.channels === 1) {
      this.target.fill(this.value[0], start, end);
    } else {
      const [red, green, blue] = this.value;
      for (let at = 3 * start; at < 3 * end; at += 3) {
        this.target[at] = red;
        this.target[at + 1] = green;
        this.target[at + 2] = blue;
      }
    }
    if (first < this.left) this.left = first;
    if (last >= this.right) this.right = last + 1;
    if (row < this.top) this.top = row;
    if (row >= this.bottom) this.bottom = row + 1;
  }

  /** @returns {Rect | null} */
  rect() {
    if (this.left >= this.right) return null;
    return { left: this.left, top: this.top, right: this.right, bottom: this.bottom };
  }
}

/** @param {Layers} layers @param {Stroke} stroke @param {number} from @returns {Paint} */
function paint(layers, stroke, from) {
  const brush = new Paint(layers, stroke);
  const { size } = layers;
  if (stroke.kind === "line") {
    line(brush, stroke, from);
  } else if (stroke.kind === "polygon") {
    polygon(brush, stroke);
  } else if (stroke.kind === "bucket") {
    bucket(brush, stroke, layers);
  } else if (stroke.kind === "map") {
    map(brush, stroke);
  } else {
    for (let row = 0; row < size; row++) brush.span(row, 0, size - 1);
  }
  return brush;
}

/** @param {number} units @param {number} size */
const fine = (units, size) => Math.floor((units * size * FINE) / UNITS);

/** @param {number} least in fine steps */
const firstAt = (least) => Math.ceil((least - HALF) / FINE);
/** @param {number} most in fine steps */
const lastAt = (most) => Math.floor((most - HALF) / FINE);

/** @param {Paint} brush @param {Stroke} stroke @param {number} from */
function line(brush, stroke, from) {
  const { size } = brush;
  const points = /** @type {number[]} */ (stroke.points);
  const width = /** @type {number} */ (stroke.width);
  let x0 = 0, y0 = 0, radius0 = 0;
  for (let at = Math.max(from - 1, 0); 3 * at < points.length; at++) {
    const x = fine(points[3 * at], size), y = fine(points[3 * at + 1], size);
    const pressed = width * size * HALF * points[3 * at + 2];
    // At least one pixel wide, so that no line has gaps.
    const radius = Math.max(Math.floor(pressed / (UNITS * MAX_PRESSURE)), HALF);
    if (at >= from) {
      disc(brush, x, y, radius);
      if (at > 0) bar(brush, x0, y0, x - x0, y - y0, (radius + radius0) >> 1);
    }
    x0 = x;
    y0 = y;
    radius0 = radius;
  }
}

/** @param {Paint} brush @param {number} x @param {number} y @param {number} radius */
function disc(brush, x, y, radius) {
  const first = Math.max(firstAt(y - radius), 0), last = Math.min(lastAt(y + radius), brush.size - 1);
  for (let row = first; row <= last; row++) {
    const away = row * FINE + HALF - y;
    const half = Math.floor(Math.sqrt(radius * radius - away * away));
    brush.span(row, firstAt(x - half), lastAt(x + half));
  }
  brush.rows += Math.max(last - first + 1, 0);
}

/**
 * What lies between two ends: 0 <= along <= length ** 2 and |across| <= reach, both linear in a pixel's x:
 * along = dx * x + dy * away, across = dy * x - dx * away.
 * @param {Paint} brush @param {number} x @param {number} y @param {number} dx @param {number} dy
 * @param {number} radius
 */
function bar(brush, x, y, dx, dy, radius) {
  if (dx === 0 && dy === 0) return;
  const length = dx * dx + dy * dy;
  const reach = root(radius * radius, length);
  const first = Math.max(firstAt(Math.min(y, y + dy) - radius), 0);
  const last = Math.min(lastAt(Math.max(y, y + dy) + radius), brush.size - 1);
  for (let row = first; row <= last; row++) {
    const away = row * FINE + HALF - y;
    const [least, most] = bounds(dx, dy * away, 0, length);
    const [otherLeast, otherMost] = bounds(dy, -dx * away, -reach, reach);
    brush.span(row, firstAt(Math.max(least, otherLeast) + x), lastAt(Math.min(most, otherMost) + x));
  }
  brush.rows += Math.max(last - first + 1, 0);
}

/** The integers x, from first to last, for which least <= slope * x + start <= most. */
function bounds(/** @type {number} */ slope, /** @type {number} */ start, /** @type {number} */ least,
  /** @type {number} */ most) {
  const low = least - start, high = most - start;
  if (slope === 0) return low > 0 || high < 0 ? [Infinity, -Infinity] : [-Infinity, Infinity];
  return slope > 0 ? [Math.ceil(low / slope), Math.floor(high / slope)] : [Math.ceil(high / slope), Math.floor(low / slope)];
}

/** The integer square root of a product. @param {number} one @param {number} other */
function root(one, other) {
  const product = one * other;
  let near = Math.floor(Math.sqrt(product));
  if (product < 2 ** 52) return near; // where the square root is exact to the integer
  const wanted = BigInt(one) * BigInt(other);
  while (BigInt(near) * BigInt(near) > wanted) near--;
  while (BigInt(near + 1) * BigInt(near + 1) <= wanted) near++;
  return near;
}

/** @param {Paint} brush @param {Stroke} stroke */
function polygon(brush, stroke) {
  const { size } = brush;
  const points = /** @type {number[]} */ (stroke.points);
  const number = points.length / 2;
  const winding = new Int32Array(size * (size + 1));
  let top = size, bottom = 0;
  for (let at = 0; at < number; at++) {
    const next = (at + 1) % number;
    let x0 = fine(points[2 * at], size), y0 = fine(points[2 * at + 1], size);
    let x1 = fine(points[2 * next], size), y1 = fine(points[2 * next + 1], size);
    const sign = y1 > y0 ? 1 : -1;
    if (sign < 0) [x0, y0, x1, y1] = [x1, y1, x0, y0];
    const down = y1 - y0;
    // Of rows whose centers lie in [y0, y1).
    const first = Math.max(firstAt(y0), 0), last = Math.min(lastAt(y1 - 1), size - 1);
    for (let row = first; row <= last; row++) {
      const crossing = (x0 - HALF) * down + (x1 - x0) * (row * FINE + HALF - y0);
      const column = Math.min(Math.max(Math.ceil(crossing / (FINE * down)), 0), size);
      winding[row * (size + 1) + column] += sign;
    }
    if (first <= last) {
      top = Math.min(top, first);
      bottom = Math.max(bottom, last + 1);
    }
  }
  for (let row = top; row < bottom; row++) {
    let turns = 0;
    for (let column = 0, start = -1; column <= size; column++) {
      const before = turns;
      turns += winding[row * (size + 1) + column];
      if (!before && turns) start = column;
      if (before && (!turns || column === size)) brush.span(row, start, column - 1);
    }
  }
}

/** @param {Paint} brush @param {Stroke} stroke @param {Layers} layers */
function bucket(brush, stroke, layers) {
  const { size, target, channels } = brush;
  const points = /** @type {number[]} */ (stroke.points);
  const x = Math.floor(fine(points[0], size) / FINE), y = Math.floor(fine(points[1], size) / FINE);
  if (x < 0 || y < 0 || x >= size || y >= size) return;
  const alike = new Uint8Array(size * size);
  const here = channels * (y * size + x);
  for (let at = 0; at < alike.length; at++) {
    if (channels === 1) {
      alike[at] = target[at] === target[here] ? 1 : 0;
    } else {
      const same = target[3 * at] === target[here] && target[3 * at + 1] === target[here + 1]
        && target[3 * at + 2] === target[here + 2];
      alike[at] = same && layers.mask[at] === 1 && layers.sketch[at] === 0 ? 1 : 0;
    }
  }
  // Span by span: each one that is taken puts what lies alike above and below it on the heap.
  const waiting = [y * size + x];
  while (waiting.length) {
    const at = /** @type {number} */ (waiting.pop());
    if (!alike[at]) continue;
    const row = Math.floor(at / size);
    let first = at, last = at;
    while (first > row * size && alike[first - 1]) first--;
    while (last + 1 < (row + 1) * size && alike[last + 1]) last++;
    alike.fill(0, first, last + 1);
    brush.span(row, first - row * size, last - row * size);
    for (const step of [-size, size]) {
      for (let near = first + step; near <= last + step; near++) {
        if (alike[near] && (near === first + step || !alike[near - 1])) waiting.push(near);
      }
    }
  }
}

/** @param {Paint} brush @param {Stroke} stroke */
function map(brush, stroke) {
  const { size } = brush;
  const side = /** @type {number} */ (stroke.size);
  const runs = /** @type {number[]} */ (stroke.runs);
  const values = new Uint32Array(side * side);
  for (let at = 0, start = 0; at < runs.length; at += 2) {
    values.fill(runs[at], start, start + runs[at + 1]);
    start += runs[at + 1];
  }
  const colors = (stroke.colors || []).map(parseColor);
  const nearest = Array.from({ length: size }, (_, at) => Math.floor(((2 * at + 1) * side) / (2 * size)));
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const value = values[nearest[row] * side + nearest[column]];
      if (!value) continue;
      if (brush.channels === 3 && !stroke.erase) brush.value = colors[value - 1];
      brush.span(row, column, column);
    }
  }
}
