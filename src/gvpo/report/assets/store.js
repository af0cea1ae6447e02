// The groups of a run: columns of facts, and blocks of texts and tokens that are unpacked when they are shown.

const KEPT_BLOCKS = 64;

/** The JSON in a packed block of the page. */
async function unpack(name) {
  const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** The places at which consecutive pieces begin, and the end of the last one. */
function begins(sizes) {
  const found = new Int32Array(sizes.length + 1);
  sizes.forEach((size, index) => { found[index + 1] = found[index] + size; });
  return found;
}

/** The last piece that begins at or before a place. */
function pieceOf(starts, place) {
  let low = 0, high = starts.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= place) low = middle; else high = middle;
  }
  return low;
}

class Store {
  /** `several` tells whether the page has other runs too. */
  constructor(number, index, several) {
    Object.assign(this, index);
    this.number = number;
    this.several = several;
    this.count = index.sizes.length;
    this.rowStarts = begins(index.sizes);
    this.stepStarts = begins(index.groups);
    this.blockStarts = begins(index.blocks);
    this.rewards = extent(index.reward);
    this.facts = Array.from({ length: this.count }, (_, group) => this.summary(group));
    this.cache = new Map();
  }

  /** The facts by which groups are sorted and filtered. */
  summary(group) {
    const begin = this.rowStarts[group], end = this.rowStarts[group + 1];
    const rewards = this.reward.slice(begin, end).filter((reward) => reward !== null);
    const [low, high] = extent(rewards);
    const lengths = this.length.slice(begin, end);
    const reasons = this.coded.reason, finishes = this.coded.finish;
    let failed = 0, truncated = 0, limited = 0, weight = 0;
    for (let row = begin; row < end; row++) {
      failed += this.reward[row] === null && reasons.names[reasons.codes[row]] !== "";
      truncated += finishes.names[finishes.codes[row]] === "length";
      limited += finishes.names[finishes.codes[row]] === "turns";
      weight = Math.max(weight, Math.abs(this.weight[row] ?? 0), this.episodes?.peak[row] ?? 0);
    }
    const having = (name) => this.episodes?.[name].slice(begin, end).filter(Boolean).length ?? 0;
    return {
      mean: rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null,
      spread: rewards.length ? high - low : -1,
      best: rewards.length ? high : null,
      weight, failed, truncated, limited,
      error: having("error"), timeout: having("timeout"), gone: having("gone"),
      length: lengths.reduce((sum, length) => sum + length, 0) / lengths.length,
      equal: rewards.length > 1 && low === high,
      differing: high > low,
    };
  }

  stepOf(group) {
    return pieceOf(this.stepStarts, group);
  }

  /** The rollout file of a group. */
  fileOf(group) {
    return `${this.name}/rollouts/step-${String(this.steps[this.stepOf(group)]).padStart(6, "0")}.parquet`;
  }

  /** The completions of a group, in the order of the file. */
  rows(group) {
    const begin = this.rowStarts[group];
    return Array.from({ length: this.sizes[group] }, (_, place) => {
      const row = begin + place;
      const named = (column) => this.coded[column].names[this.coded[column].codes[row]];
      return {
        place, reward: this.reward[row], weight: this.weight[row], implicit: this.implicit[row],
        turns: this.episodes?.turns[row] ?? 0, length: this.length[row], version: this.version[row], age: this.age[row],
        finish: named("finish"), source: named("source"), reason: named("reason"),
        parts: Object.entries(this.parts).map(([name, values]) => [name, values[row]]),
      };
    });
  }

  /** The largest weight of a step and the power of ten that weights are written in. */
  weightScale(step) {
    let largest = 0;
    for (let group = this.stepStarts[step]; group < this.stepStarts[step + 1]; group++) {
      largest = Math.max(largest, this.facts[group].weight);
    }
    return { largest, unit: largest > 0 && largest < 0.1 ? 10 ** Math.floor(Math.log10(largest)) : 1 };
  }

  blockOf(group) {
    return pieceOf(this.blockStarts, group);
  }

  has(kind, block) {
    return document.getElementById(`${kind}-${this.number}-${block}`) !== null;
  }

  /** A block of "text" or "tokens"; null if it is not in the page. */
  block(kind, block) {
    if (!this.has(kind, block)) return Promise.resolve(null);
    const name = `${kind}-${this.number}-${block}`;
    const found = this.cache.get(name) ?? unpack(name);
    this.cache.delete(name);
    this.cache.set(name, found); // the newest last
    if (this.cache.size > KEPT_BLOCKS) this.cache.delete(this.cache.keys().next().value);
    return found;
  }

  /** The prompt, the columns and the completions of a group; null if they are not in the page. */
  async texts(group) {
    const block = this.blockOf(group);
    const found = await this.block("text", block);
    if (found === null) return null;
    const first = this.blockStarts[block];
    const begin = this.rowStarts[group] - this.rowStarts[first];
    return {
      prompt: found.prompts[group - first],
      columns: found.columns[group - first],
      texts: found.texts.slice(begin, begin + this.sizes[group]),
      turns: found.turns.slice(begin, begin + this.sizes[group]),
      episodes: found.episodes.slice(begin, begin + this.sizes[group]),
    };
  }

  /** The tokens of a group's completions; null if they are not in the page. */
  async tokens(group) {
    const block = this.blockOf(group);
    const found = await this.block("tokens", block);
    if (found === null) return null;
    const begin = this.rowStarts[group] - this.rowStarts[this.blockStarts[block]];
    return Array.from({ length: this.sizes[group] }, (_, place) => ({
      lengths: found.lengths[begin + place],
      logprobs: found.logprobs[begin + place],
      ratios: found.ratios[begin + place],
      mask: found.masks[begin + place],
    }));
  }
}
