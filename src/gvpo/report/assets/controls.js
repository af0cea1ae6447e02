// The controls above the groups: which step, which groups, their order, and how completions look.

const SEARCH_DELAY = 150; // milliseconds after the last key

class Controls {
  /** `state` is what the controls set. They call `list` when other groups are to be listed, and `show` when the group looks different. */
  constructor(store, state, { list, show, walk }) {
    Object.assign(this, { store, state, list, show, walk });
    this.nodes = [this.where(), this.which(), this.how()];
    this.moveTo(state.step);
  }

  // What the viewer sets

  moveTo(step) {
    const text = `${this.store.steps[step]}`;
    this.state.step = step;
    this.slider.value = step;
    this.slider.setAttribute("aria-valuetext", `step ${text}`);
    this.label.textContent = `${text} (${step + 1} of ${this.store.steps.length})`;
  }

  /** Turns every filter off and empties the search. */
  release() {
    this.state.filters.clear();
    this.state.query = this.box.value = "";
    for (const node of this.filters) node.setAttribute("aria-pressed", "false");
  }

  count(counts) {
    for (const node of this.filters) node.querySelector("b").textContent = counts[node.dataset.filter].toLocaleString("en");
  }

  // What the reader sets

  /** Step and scope. */
  where() {
    const slide = (event) => {
      this.widen(false);
      this.moveTo(Number(event.target.value));
      this.walk();
    };
    const widen = () => {
      this.widen(this.all.checked);
      this.list();
    };
    this.label = element("output", { for: "step" });
    this.slider = element("input", { type: "range", id: "step", min: 0, max: this.store.steps.length - 1, on: { input: slide } });
    this.all = element("input", { type: "checkbox", id: "all-steps", on: { change: widen } });
    this.bar = element("div", { class: "bar" },
      element("label", { class: "slide" }, element("span", {}, "step"), this.slider, this.label),
      element("label", {}, this.all, "all steps"));
    return this.bar;
  }

  widen(wide) {
    this.state.all = this.all.checked = wide;
    this.bar.classList.toggle("wide", wide);
  }

  /** Search, filters and the order of groups. */
  which() {
    let waiting;
    const type = (event) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.change({ query: event.target.value }), SEARCH_DELAY);
    };
    this.box = element("input", { type: "search", id: "search", placeholder: "prompt, completion, id or reason", on: { input: type } });
    this.filters = Object.entries(FILTERS)
      .filter(([name]) => this.store.episodes || !OF_EPISODES.includes(name))
      .map(([name, [label]]) => this.filter(name, label));
    const orders = Object.entries(SORTS).map(([value, [label]]) => [value, label]);
    return element("div", { class: "bar" },
      element("label", { class: "find" }, element("span", {}, "search"), this.box),
      element("div", { class: "filters", role: "group", "aria-label": "Show only groups with" }, this.filters),
      element("span", { class: "pair" }, select("sort groups by", orders, this.state.sort, (sort) => this.change({ sort })), this.turn()));
  }

  filter(name, label) {
    const press = (event) => {
      const { filters } = this.state;
      if (!filters.delete(name)) filters.add(name);
      event.currentTarget.setAttribute("aria-pressed", String(filters.has(name)));
      this.list();
    };
    return element("button", { type: "button", "data-filter": name, "aria-pressed": "false", on: { click: press } }, label, " ", element("b", {}));
  }

  /** The button that reverses the order of groups. */
  turn() {
    const press = (event) => {
      const descending = !this.state.descending;
      event.currentTarget.setAttribute("aria-pressed", String(descending));
      event.currentTarget.textContent = descending ? "\u2193" : "\u2191";
      this.change({ descending });
    };
    return element("button", { type: "button", class: "turn", title: "reverse the order", "aria-label": "descending", "aria-pressed": "true", on: { click: press } }, "\u2193");
  }

  change(values) {
    Object.assign(this.state, values);
    this.list();
  }

  /** How the group that is shown looks. */
  how() {
    const paints = [["", "nothing"], ...Object.entries(PAINTS).map(([value, { label }]) => [value, label])];
    const orders = Object.entries(ROW_SORTS).map(([value, [label]]) => [value, label]);
    const set = (name) => (value) => {
      this.state[name] = value;
      this.show();
    };
    return element("div", { class: "bar" },
      select("colour tokens by", paints, this.state.paint, set("paint")),
      select("sort completions by", orders, this.state.order, set("order")));
  }
}
