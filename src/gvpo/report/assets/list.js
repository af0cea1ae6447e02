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
    this.spacer.style.height = `${values.length * ITEM_HEIGHT}px`;
    this.reveal();
    this.paint();
  }

  take(at) {
    if (at === this.chosen || !this.values.length) return;
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

  paint() {
    const first = Math.max(0, Math.floor(this.node.scrollTop / ITEM_HEIGHT) - BEYOND);
    const end = Math.min(this.values.length, Math.ceil((this.node.scrollTop + this.node.clientHeight) / ITEM_HEIGHT) + BEYOND);
    const items = [];
    for (let at = first; at < end; at++) items.push(this.item(at));
    this.spacer.replaceChildren(...items);
    if (this.chosen >= first && this.chosen < end) this.node.setAttribute("aria-activedescendant", `item-${this.chosen}`);
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
