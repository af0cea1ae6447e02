// Starts the page.

let opened = 0;

/** Shows the groups of a run; of two calls the later one stays. */
async function openRun(host, number) {
  const call = ++opened;
  const store = new Store(number, await unpack(`index-${number}`));
  if (call !== opened) return;
  if (!store.count) {
    host.replaceChildren(element("p", { class: "empty" }, "No rollouts were written."));
    return;
  }
  await new Viewer(host, store).update();
}

async function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  followPointer(data);
  const place = document.getElementById("viewer");
  const host = element("div");
  place.append(host);
  if (data.runs.length > 1) host.before(choice("Run", data.runs, 0, (number) => openRun(host, number)));
  if (typeof DecompressionStream === "undefined") {
    host.append(element("p", { class: "empty" }, "This browser cannot unpack the groups; one from 2023 or later can."));
    return;
  }
  await openRun(host, 0);
  performance.mark("groups-shown");
}

start();
