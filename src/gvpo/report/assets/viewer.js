// The group viewer: controls above, the list of groups beside the group that is looked at.

const SEARCH_DELAY = 150; // milliseconds after the last key

class Viewer {
  constructor(host, store) {
    this.host = host;
    this.store = store;
    this.state = { step: 0, all: false, filters: new Set(), query: "", sort: "spread", descending: true, group: -1, order: "place", paint: "" };
    this.updates = 0;
    this.shows = 0;
    this.list = new VirtualList("Groups", (group) => this.item(group), (group) => this.look(group));
    this.status = element("p", { class: "status", role: "status" });
    this.detail = element("div", { class: "detail", role: "region", "aria-label": "Completions of the group", tabindex: "-1" });
    this.help = element("p", { class: "help" });
    host.replaceChildren(this.where(), this.which(), this.how(), this.help,
      element("div", { class: "browser" }, element("div", { class: "side" }, this.status, this.list.node), this.detail));
  }

  set(change) {
    Object.assign(this.state, change);
    return this.update();
  }

  // Controls

  /** Step and scope. */
  where() {
    const { store, state } = this;
    const label = element("output", { for: "step" });
    const name = () => {
      const text = `${store.steps[state.step]}`;
      label.textContent = `${text} (${state.step + 1} of ${store.steps.length})`;
      slider.setAttribute("aria-valuetext", `step ${text}`);
    };
    const widen = (wide) => {
      state.all = all.checked = wide;
      bar.classList.toggle("wide", wide);
    };
    const slide = (event) => {
      widen(false);
      state.step = Number(event.target.value);
      name();
      this.update();
    };
    const slider = element("input", { type: "range", id: "step", min: 0, max: store.steps.length - 1, value: state.step, on: { input: slide } });
    const all = element("input", { type: "checkbox", id: "all-steps", on: { change: () => { widen(all.checked); this.update(); } } });
    const bar = element("div", { class: "bar" },
      element("label", { class: "slide" }, element("span", {}, "step"), slider, label),
      element("label", {}, all, "all steps"));
    name();
    return bar;
  }

  /** Search, filters and the order of groups. */
  which() {
    let waiting;
    const type = (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.set({ query: event.target.value }), SEARCH_DELAY);
    };
    const box = element("input", { type: "search", id: "search", placeholder: "prompt, completion, id, reason", on: { input: type } });
    this.filterNodes = Object.entries(FILTERS).map(([name, [label]]) => this.filterNode(name, label));
    const turn = element("button", { type: "button", class: "turn", title: "reverse the order", "aria-label": "descending", "aria-pressed": "true", on: {
      click: () => {
        turn.setAttribute("aria-pressed", String(!this.state.descending));
        turn.textContent = this.state.descending ? "\u2191" : "\u2193";
        this.set({ descending: !this.state.descending });
      },
    } }, "\u2193");
    const orders = Object.entries(SORTS).map(([value, [label]]) => [value, label]);
    return element("div", { class: "bar" },
      element("label", { class: "find" }, element("span", {}, "search"), box),
      element("div", { class: "filters", role: "group", "aria-label": "Only groups that are" }, this.filterNodes),
      element("span", { class: "pair" }, select("sort by", orders, this.state.sort, (sort) => this.set({ sort })), turn));
  }

  filterNode(name, label) {
    const press = (event) => {
      const { filters } = this.state;
      if (!filters.delete(name)) filters.add(name);
      event.currentTarget.setAttribute("aria-pressed", String(filters.has(name)));
      this.update();
    };
    return element("button", { type: "button", "data-filter": name, "aria-pressed": "false", on: { click: press } }, label, " ", element("b", {}));
  }

  /** How the group that is looked at is shown. */
  how() {
    const paints = [["", "nothing"], ...Object.entries(PAINTS).map(([value, { label }]) => [value, label])];
    const orders = Object.entries(ROW_SORTS).map(([value, [label]]) => [value, label]);
    return element("div", { class: "bar" },
      select("colour tokens by", paints, this.state.paint, (paint) => { this.state.paint = paint; this.look(this.state.group); }),
      select("completions by", orders, this.state.order, (order) => { this.state.order = order; this.look(this.state.group); }));
  }

  // The list

  /** Lists the groups that the state asks for; a later call overtakes an earlier one that still searches. */
  async update() {
    const { store, state } = this;
    const call = ++this.updates;
    const current = () => call === this.updates;
    const scope = scopeOf(store, state.step, state.all);
    this.count(scope);
    let groups = filtered(store, scope, state.filters);
    if (state.query) groups = await search(store, groups, state.query, (share) => this.say(`searching, ${format(share, true)}`), current);
    if (groups === null) return;
    const shown = sorted(store, groups, state.sort, state.descending);
    this.say(this.summary(shown.length, scope));
    this.list.show(shown, shown.includes(state.group) ? state.group : shown[0]);
    await this.look(shown.includes(state.group) ? state.group : shown[0] ?? -1);
  }

  count(scope) {
    const counts = countsOf(this.store, scope);
    for (const node of this.filterNodes) node.querySelector("b").textContent = counts[node.dataset.filter].toLocaleString("en");
  }

  summary(shown, scope) {
    const total = shown === scope.length ? counted(shown, "group") : `${shown.toLocaleString("en")} of ${counted(scope.length, "group")}`;
    const blocks = new Set(this.state.query ? scope.map((group) => this.store.blockOf(group)) : []);
    const absent = [...blocks].some((block) => !this.store.has("text", block));
    return absent ? `${total}; texts that were left out of the page were not searched` : total;
  }

  say(text) {
    this.status.textContent = text;
  }

  /** A line of the list: the prompt, a square per completion, and facts in words. */
  item(group) {
    const { store, state } = this;
    const fact = store.facts[group];
    const words = [
      state.all ? `step ${store.steps[store.stepOf(group)]}` : "",
      fact.mean === null ? "no reward" : `mean ${format(fact.mean)}`,
      fact.dead ? "dead" : "", fact.failed ? `${fact.failed} failed` : "", fact.truncated ? `${fact.truncated} truncated` : "",
    ].filter(Boolean).join(" · ");
    return [
      element("div", { class: "excerpt" }, store.excerpts[group] || store.ids[group]),
      element("div", { class: "cells", "aria-hidden": "true" }, cellNodes(store, group)),
      element("div", { class: "brief", title: words }, words),
    ];
  }

  // The group

  /** Shows a group; of two calls the later one stays. */
  async look(group) {
    const { store, state } = this;
    state.group = group;
    const call = ++this.shows;
    if (group === undefined || group < 0) {
      this.detail.replaceChildren(element("p", { class: "empty" }, "No group is like that. Clear the search or release a filter."));
      return;
    }
    const found = { texts: await store.texts(group), tokens: state.paint ? await store.tokens(group) : null };
    if (call !== this.shows) return;
    this.explain(store.weightScale(store.stepOf(group)).unit);
    this.detail.replaceChildren(...groupNodes(store, group, found, state));
    this.detail.scrollTop = 0;
  }

  explain(unit) {
    if (this.state.paint) {
      this.help.replaceChildren("Tokens: ", ...paintLegend(this.state.paint), ". A token without text of its own, such as the stop token, is a small box.");
      return;
    }
    const scale = unit === 1 ? "" : ` (unit ${unit.toExponential(0)})`;
    this.help.replaceChildren(`Each card is a completion: its reward, then its weight in the update${scale}. A bar `,
      element("span", { class: "up" }, "to the right"), " makes the completion more likely, one ",
      element("span", { class: "down" }, "to the left"), " less. ", element("mark", {}, "Marked"),
      " is the first line that no completion with the group's best reward has.");
  }
}
