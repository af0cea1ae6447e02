// The group viewer: controls above, and the list of groups beside the group that is shown.

class Viewer {
  /** `record(group, push)` is told which group is shown; `push` if the reader chose it. */
  constructor(host, store, record) {
    this.store = store;
    this.record = record;
    this.group = -1;
    this.state = { step: 0, all: false, filters: new Set(), query: "", sort: "spread", descending: true, order: "place", paint: "" };
    this.updates = 0;
    this.shows = 0;
    this.controls = new Controls(store, this.state, {
      list: () => this.relist(false),
      walk: () => this.relist(true),
      show: () => this.show(this.group),
    });
    this.list = new VirtualList("Groups", (group) => this.item(group), (group) => this.choose(group));
    this.notice = element("p", { class: "notice", role: "status" });
    this.status = element("p", { class: "status", role: "status" });
    this.detail = element("div", { class: "detail", role: "region", "aria-label": "Completions of the group", tabindex: "-1" });
    this.help = element("p", { class: "help" });
    host.replaceChildren(this.notice, ...this.controls.nodes, this.help,
      element("div", { class: "browser" }, element("div", { class: "side" }, this.status, this.list.node), this.detail));
  }

  // What is shown, and why

  /** Shows what an address points to, as `locate` gives it, and says what of it is not there. */
  async visit({ step, group, problem }) {
    this.controls.moveTo(step);
    this.group = group;
    this.notice.textContent = problem;
    await this.update(true);
  }

  /** The reader has changed the list: its first group is shown where it no longer has the one that was. */
  async relist(push) {
    const before = this.group;
    if (await this.update(false) && this.group !== before) this.tell(push);
  }

  async choose(group) {
    this.controls.moveTo(this.store.stepOf(group));
    await this.show(group);
    this.tell(true);
  }

  tell(push) {
    this.notice.textContent = "";
    if (this.group >= 0) this.record(this.group, push);
  }

  // The list

  /** Lists the groups that the state asks for; a later call overtakes an earlier one that still searches.
   *
   * With `keep`, controls that hide the group that is shown are released. Returns whether the list was shown. */
  async update(keep) {
    const { store, state } = this;
    const call = ++this.updates;
    const scope = scopeOf(store, state.step, state.all);
    this.controls.count(countsOf(store, scope));
    const groups = await this.matching(scope, () => call === this.updates);
    if (groups === null) return false;
    const shown = sorted(store, groups, state.sort, state.descending);
    const listed = shown.includes(this.group);
    if (keep && this.group >= 0 && !listed) {
      this.controls.release();
      return this.update(false);
    }
    const group = listed ? this.group : shown[0] ?? -1;
    this.say(this.summary(shown.length, scope));
    this.list.show(shown, group);
    await this.show(group);
    return true;
  }

  /** The groups of a scope that pass the filters and the search; null if a later call has overtaken this one. */
  async matching(scope, current) {
    const { store, state } = this;
    const groups = filtered(store, scope, state.filters);
    if (!state.query) return groups;
    return search(store, groups, state.query, (share) => this.say(`searching, ${format(share, true)}`), current);
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

  /** An entry of the list: the prompt, a square per completion, and facts in words. */
  item(group) {
    const { store, state } = this;
    const fact = store.facts[group];
    const words = [
      state.all ? `step ${store.steps[store.stepOf(group)]}` : "",
      fact.mean === null ? "no reward" : `mean ${format(fact.mean)}`,
      fact.equal ? "rewards equal" : "", ...factWords(fact),
    ].filter(Boolean).join(" · ");
    return [
      element("div", { class: "excerpt" }, store.excerpts[group] || store.ids[group]),
      element("div", { class: "cells", "aria-hidden": "true" }, cellNodes(store, group)),
      element("div", { class: "brief", title: words }, words),
    ];
  }

  // The group

  /** Shows a group; of two calls the later one stays. */
  async show(group) {
    const { store, state } = this;
    this.group = group;
    const call = ++this.shows;
    if (group < 0) {
      const narrowed = state.filters.size || state.query;
      const text = narrowed ? "No group matches. Clear the search or turn off a filter." : "The rollout file of this step has no groups.";
      this.detail.replaceChildren(element("p", { class: "empty" }, text));
      return;
    }
    const found = { texts: await store.texts(group), tokens: state.paint ? await store.tokens(group) : null };
    if (call !== this.shows) return;
    this.help.replaceChildren(...helpNodes(state.paint, store.weightScale(store.stepOf(group)).unit, found.texts?.episodes.some(Boolean)));
    this.detail.replaceChildren(...groupNodes(store, group, found, state));
    this.detail.scrollTop = 0;
  }
}
