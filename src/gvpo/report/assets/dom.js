// Nodes and numbers. Texts of runs are untrusted: they only ever become text nodes and attributes.

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listen] of Object.entries(value)) node.addEventListener(event, listen);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== ""));
  return node;
}

function format(value, percent = false) {
  if (value === null || value === undefined) return "none";
  if (percent) return `${Number((100 * value).toPrecision(3))}%`;
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  if (size >= 1e4) return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 4 }).replace("K", "k");
  return String(Number(value.toPrecision(4)));
}

function signed(value, digits) {
  return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
}

function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** [smallest, largest] of the numbers among some values; [Infinity, -Infinity] without any. */
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** The index of the number in a rising list that is nearest to `x`. */
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

/** A drop-down list of [value, label] pairs. */
function select(label, options, chosen, choose) {
  const nodes = options.map(([value, text]) => element("option", { value, selected: value === chosen }, text));
  return element("label", {}, element("span", {}, label), element("select", { on: { change: (event) => choose(event.target.value) } }, nodes));
}

/** Buttons of which one is pressed: their node, and `press(index)`, which presses one without telling `choose`. */
function choice(label, texts, chosen, choose) {
  const buttons = texts.map((text, index) => element("button", { type: "button", on: { click: () => choose(index) } }, text));
  const press = (index) => buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === index)));
  press(chosen);
  return { node: element("div", { class: "choice", role: "group", "aria-label": label }, buttons), press };
}
