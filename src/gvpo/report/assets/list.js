// A list of any length that contains only the items in view: all have one height, and their numbers place them.

const ITEM_HEIGHT = 68;
const BEYOND = 6;

class VirtualList {
  /** `draw(value)` returns the content of an item; `choose(value)` is called with the one that was chosen. */
  constructor(label, draw, choose) {
    this.draw = draw;
    this.choose = choose;
    this.values = [];
    this.chosen = -1;
    this.drawn = new Map(); // items in view by their place
    this.spacer = element("div", { class: "spacer", role: "presentation" });
    this.node = element("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": label }, this.spacer);
    this.node.addEventListener("scroll", () => this.paint());
    this.node.addEventListener("keydown", (event) => this.press(event));
    this.node.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.take(Number(item.dataset.at));
    });
    new ResizeObserver(() => this.paint()).observe(this.node);
  }

  /** Shows other values, with the chosen one among them, without calling `choose`. */
  show(values, chosen) {
    this.values = values;
    this.chosen = values.indexOf(chosen);
    this.drawn.clear();
    this.spacer.replaceChildren();
    this.spacer.style.height = `${values.length * ITEM_HEIGHT}px`;
    this.reveal();
    this.paint();
  }

  take(at) {
    if (at === this.chosen || !this.values.length) return;
    this.drawn.get(this.chosen)?.setAttribute("aria-selected", "false");
    this.drawn.get(at)?.setAttribute("aria-selected", "true");
    this.chosen = at;
    this.reveal();
    this.paint();
    this.choose(this.values[at]);
  }

  press(event) {
    const page = Math.max(1, Math.floor(this.node.clientHeight / ITEM_HEIGHT) - 1);
    const last = this.values.length - 1;
    const to = {
      ArrowDown: this.chosen + 1, ArrowUp: this.chosen - 1, PageDown: this.chosen + page, PageUp: this.chosen - page,
      Home: 0, End: last,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.take(Math.min(last, Math.max(0, to)));
  }

  reveal() {
    const top = Math.max(0, this.chosen) * ITEM_HEIGHT;
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    const bottom = top + ITEM_HEIGHT - this.node.clientHeight;
    if (bottom > this.node.scrollTop) this.node.scrollTop = bottom;
  }

  /** Draws what has come into view and removes what has left it; the other nodes stay, since a click may be under way on one. */
  paint() {
    const first = Math.max(0, Math.floor(this.node.scrollTop / ITEM_HEIGHT) - BEYOND);
    const end = Math.min(this.values.length, Math.ceil((this.node.scrollTop + this.node.clientHeight) / ITEM_HEIGHT) + BEYOND);
    for (const [at, node] of this.drawn) {
      if (at >= first && at < end) continue;
      node.remove();
      this.drawn.delete(at);
    }
    let next = this.spacer.firstChild;
    for (let at = first; at < end; at++) {
      if (this.drawn.has(at)) next = this.drawn.get(at).nextSibling;
      else this.drawn.set(at, this.spacer.insertBefore(this.item(at), next));
    }
    if (this.drawn.has(this.chosen)) this.node.setAttribute("aria-activedescendant", `item-${this.chosen}`);
    else this.node.removeAttribute("aria-activedescendant");
  }

  item(at) {
    const node = element("div", {
      class: "item", role: "option", id: `item-${at}`, "data-at": at, "aria-selected": String(at === this.chosen),
      "aria-posinset": at + 1, "aria-setsize": this.values.length,
    }, this.draw(this.values[at]));
    node.style.top = `${at * ITEM_HEIGHT}px`;
    return node;
  }
}
