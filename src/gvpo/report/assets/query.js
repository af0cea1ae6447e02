// Which groups are listed, and in what order.

const FILTERS = {
  differing: ["rewards differ", (fact) => fact.differing],
  equal: ["rewards equal", (fact) => fact.equal],
  truncated: ["truncated", (fact) => fact.truncated > 0],
  failed: ["failed", (fact) => fact.failed > 0],
  error: ["tool error", (fact) => fact.error > 0],
  timeout: ["time-out", (fact) => fact.timeout > 0],
  gone: ["environment failed", (fact) => fact.gone > 0],
  limited: ["ended by turns", (fact) => fact.limited > 0],
};

/** Filters that only runs with an environment have. */
const OF_EPISODES = ["error", "timeout", "gone", "limited"];

/** What a group may have several of, by its fact. */
const TROUBLES = { failed: "failed", truncated: "truncated", error: "with tool errors", timeout: "with time-outs", gone: "with a failed environment", limited: "ended by turns" };

const SORTS = {
  file: ["order of the file", null],
  spread: ["spread of rewards", (fact) => fact.spread],
  mean: ["mean reward", (fact) => fact.mean],
  weight: ["largest weight", (fact) => fact.weight],
  length: ["mean length", (fact) => fact.length],
};

/** The groups of one step, or of all. */
function scopeOf(store, step, all) {
  const begin = all ? 0 : store.stepStarts[step], end = all ? store.count : store.stepStarts[step + 1];
  return Array.from({ length: end - begin }, (_, index) => begin + index);
}

/** The number of groups in a scope that each filter would leave. */
function countsOf(store, scope) {
  return Object.fromEntries(Object.entries(FILTERS).map(([name, [, holds]]) => {
    return [name, scope.reduce((sum, group) => sum + holds(store.facts[group]), 0)];
  }));
}

function filtered(store, scope, names) {
  const tests = [...names].map((name) => FILTERS[name][1]);
  return scope.filter((group) => tests.every((holds) => holds(store.facts[group])));
}

/** Groups without the value come last in both orders; ties stay in the order of the file. */
function sorted(store, groups, name, descending) {
  const key = SORTS[name][1];
  if (!key) return descending ? [...groups].reverse() : groups;
  const sign = descending ? -1 : 1;
  return [...groups].sort((a, b) => {
    const x = key(store.facts[a]), y = key(store.facts[b]);
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y) || a - b;
  });
}

/** The groups whose prompt, completions, columns, id or reasons contain a text, in upper or lower case.
 * It calls `progress` with the share that was searched, and returns null as soon as `current()` is false. */
async function search(store, groups, text, progress, current) {
  const needle = text.toLowerCase();
  const holds = (value) => value.toLowerCase().includes(needle);
  const found = [];
  let block = -1;
  for (const [index, group] of groups.entries()) {
    if (store.blockOf(group) !== block) {
      block = store.blockOf(group);
      await store.block("text", block);
      if (!current()) return null;
      progress(index / groups.length);
    }
    const texts = await store.texts(group);
    const known = texts ? [texts.prompt, ...texts.texts, ...Object.values(texts.columns)] : [store.excerpts[group]];
    const reasons = store.rows(group).map((row) => row.reason);
    if ([store.ids[group], ...known, ...reasons].some(holds)) found.push(group);
  }
  return current() ? found : null;
}
