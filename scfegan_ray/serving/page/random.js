// @ts-check
// NumPy's random numbers, so that a seed means the same noise here as on a server: SeedSequence and PCG64 (O'Neill,
// PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms, 2014), as `numpy.random.default_rng`.

const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;
const MULTIPLIER = (2549297995355413924n << 64n) | 4865540595714422341n;

/**
 * Mark pixels as noise.
 * @param {number} seed an integer of at least 0
 * @param {number} count how many pixels
 * @param {number} probability that one is noise
 * @returns {Uint8Array} 0 or 1 each
 */
export function noise(seed, count, probability) {
  const words = seedWords(seed);
  const high = (/** @type {number} */ at) => (words[at] << 64n) | words[at + 1];
  const step = (high(2) << 1n | 1n) & MASK_128;
  let state = (step + high(0)) & MASK_128;
  state = (state * MULTIPLIER + step) & MASK_128;
  // A number in [0, 1) has 53 bits: it is below the probability where they are below this.
  const limit = BigInt(Math.ceil(probability * 2 ** 53));
  const marked = new Uint8Array(count);
  for (let at = 0; at < count; at++) {
    state = (state * MULTIPLIER + step) & MASK_128;
    const mixed = (state >> 64n) ^ (state & MASK_64);
    const turn = state >> 122n;
    const drawn = ((mixed >> turn) | (mixed << (64n - turn))) & MASK_64;
    if (drawn >> 11n < limit) marked[at] = 1;
  }
  return marked;
}

/** Spread a seed. @param {number} seed @returns {bigint[]} four words of 64 bits */
function seedWords(seed) {
  const entropy = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0, 0, 0];
  let constant = 0x43b0d7e5;
  const hash = (/** @type {number} */ value, /** @type {number} */ factor) => {
    value ^= constant;
    constant = Math.imul(constant, factor);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const pool = entropy.map((value) => hash(value, 0x931e8875));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) {
      if (from === to) continue;
      const mixed = Math.imul(0xca01f9dd, pool[to]) - Math.imul(0x4973f715, hash(pool[from], 0x931e8875)) | 0;
      pool[to] = mixed ^ (mixed >>> 16);
    }
  }
  constant = 0x8b51f9dd;
  const spread = Array.from({ length: 8 }, (_, at) => BigInt(hash(pool[at % 4], 0x58f38ded) >>> 0));
  return [0, 2, 4, 6].map((at) => spread[at] | (spread[at + 1] << 32n));
}
