// Starts the page, and shows what its address names.

class Report {
  constructor(runs, place) {
    this.runs = runs;
    this.host = element("div");
    this.address = new Address();
    this.run = -1;
    this.opened = 0;
    this.viewer = null;
    this.picker = runs.length > 1 ? choice("Run", runs, 0, (number) => this.choose(number)) : null;
    place.append(...(this.picker ? [this.picker.node] : []), this.host);
  }

  /** Opens the groups of a run, at an address within it; of two calls the later one stays. */
  async open(number, address, problem = "") {
    const call = ++this.opened;
    const several = this.runs.length > 1;
    if (number !== this.run) {
      const store = new Store(number, await unpack(`index-${number}`), several);
      if (call !== this.opened) return;
      this.run = number;
      this.viewer = store.count ? new Viewer(this.host, store, (group, push) => this.address.record(addressOf(store, group), push)) : null;
    }
    this.picker?.press(number);
    if (!this.viewer) {
      this.host.replaceChildren(element("p", { class: "empty" }, [problem, "The run has written no rollouts."].filter(Boolean).join(" ")));
      return;
    }
    const found = locate(this.viewer.store, address);
    await this.viewer.visit(problem ? { ...found, problem } : found);
  }

  /** The reader has chosen a run. */
  async choose(number) {
    await this.open(number, {});
    this.viewer?.tell(true);
  }

  /** Shows what the address of the page names. An address without a group leaves the groups as they are, and none shows the first. */
  async follow() {
    const address = readAddress(location.hash);
    if (!address && this.run >= 0 && location.hash) return goToSection(location.hash);
    const number = address?.run ? this.runs.indexOf(address.run) : 0;
    if (number < 0) await this.open(0, {}, `This page has no run “${address.run}”. The run “${this.runs[0]}” is shown.`);
    else await this.open(number, address ?? {});
    if (address) this.reveal();
    else goToSection(location.hash);
  }

  /** Scrolls to the groups, unless they are in view. */
  reveal() {
    const section = document.getElementById("groups");
    const box = section.getBoundingClientRect();
    if (box.top > innerHeight / 2 || box.bottom < innerHeight / 2) section.scrollIntoView();
  }
}

async function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  followPointer(data);
  const place = document.getElementById("viewer");
  if (typeof DecompressionStream === "undefined") {
    place.append(element("p", { class: "empty" }, "This browser is too old to show the groups. Any browser from 2023 or later can."));
    return;
  }
  const report = new Report(data.runs, place);
  report.address.listen(() => report.follow());
  await report.follow();
  performance.mark("groups-shown");
}

start();
