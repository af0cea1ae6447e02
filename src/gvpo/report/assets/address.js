// The part of the address after "#": it names the group that is shown, so that a link opens it again.

const RECORD_DELAY = 150; // milliseconds: a walk through many groups is one step of the browser's history

/** A text with its %XX decoded; those that encode nothing stay. */
function decoded(text) {
  return text.replace(/(?:%[0-9a-f]{2})+/gi, (bytes) => {
    try {
      return decodeURIComponent(bytes);
    } catch {
      return bytes;
    }
  });
}

/** {run, step, group, copy} of a hash such as #step=3&group=train/12, as texts; null for any other hash. */
function readAddress(hash) {
  const fields = Object.fromEntries(hash.slice(1).split("&").map((field) => {
    const [name, ...rest] = field.split("=");
    return [name, decoded(rest.join("="))];
  }));
  const { run, step, group, copy } = fields;
  return [run, step, group].some((value) => value) ? { run, step, group, copy } : null;
}

/** The hash of a group. `copy` counts groups of one id within a step; the run is named where the page has several. */
function addressOf(store, group) {
  const step = store.stepOf(group);
  let copy = 1;
  for (let other = store.stepStarts[step]; other < group; other++) copy += store.ids[other] === store.ids[group];
  const fields = [["run", store.several ? store.name : ""], ["step", store.steps[step]], ["group", store.ids[group]], ["copy", copy > 1 ? copy : ""]];
  const readable = (value) => encodeURIComponent(value).replace(/%(2F|2B|3A|2C)/g, decodeURIComponent);
  return "#" + fields.filter(([, value]) => value !== "").map(([name, value]) => `${name}=${readable(value)}`).join("&");
}

/** What an address points to: {step, group, problem}. `step` is an index, `group` is -1 for any, `problem` says what is not there. */
function locate(store, { step, group, copy }) {
  const steps = store.steps;
  const first = { step: 0, group: -1 };
  if (!step) {
    const found = group ? store.ids.indexOf(group) : -1;
    if (found >= 0) return { step: store.stepOf(found), group: found, problem: "" };
    return { ...first, problem: group ? `The run has no group “${group}” in its rollout files. Step ${steps[0]} is shown.` : "" };
  }
  if (!/^\d+$/.test(step)) return { ...first, problem: `The link names the step “${step}”, which is not a number. Step ${steps[0]} is shown.` };
  const at = steps.indexOf(Number(step));
  if (at < 0) {
    const near = nearest(steps, Number(step));
    return { step: near, group: -1, problem: `The run has no rollout file for step ${step}. The nearest step that has one, ${steps[near]}, is shown.` };
  }
  const scope = scopeOf(store, at, false);
  const same = scope.filter((other) => store.ids[other] === group);
  const found = same[(Number(copy) || 1) - 1] ?? same[0] ?? -1;
  return { step: at, group: found, problem: group && scope.length && found < 0 ? `Step ${step} has no group “${group}”. The first group of the list is shown.` : "" };
}

/** Keeps the address up to date with the group that is shown. */
class Address {
  /** Writes a hash: as a new step of the browser's history, or in place of the current one. */
  record(hash, push) {
    this.push = push || (this.waiting !== undefined && this.push);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => {
      this.waiting = undefined;
      if (hash === location.hash) return;
      if (this.push) history.pushState(null, "", hash); else history.replaceState(null, "", hash);
    }, RECORD_DELAY);
  }

  /** Calls `follow` when the reader goes back or forward, follows a link, or edits the address. */
  listen(follow) {
    addEventListener("hashchange", () => {
      clearTimeout(this.waiting);
      this.waiting = undefined;
      follow();
    });
  }
}
