// Values under the pointer: one pointer moves the cursor of every chart to the same step.

/** A linear scale from the text "low high start end". */
function readScale(text) {
  const [low, high, start, end] = text.split(" ").map(Number);
  return {
    low, high, start, end,
    place: (value) => start + ((value - low) / (high - low)) * (end - start),
    value: (place) => low + ((place - start) / (end - start)) * (high - low),
  };
}

/** A chart of the page: shows the values at a step in its legend, where each value has room of a fixed width. */
class Curves {
  constructor(figure, { percent, series }) {
    this.figure = figure;
    this.percent = percent;
    this.series = series;
    this.svg = figure.querySelector("svg");
    this.across = readScale(this.svg.dataset.x);
    this.up = readScale(this.svg.dataset.y);
    const cursor = this.svg.querySelector(".cursor");
    this.line = cursor.querySelector("line");
    this.label = cursor.querySelector("text");
    this.dots = [...cursor.querySelectorAll("circle")];
    this.values = [...figure.querySelectorAll(".keys b")].map((node) => ({ node, last: node.textContent }));
  }

  /** The step under a place of the window. */
  stepAt(clientX) {
    const box = this.svg.getBoundingClientRect();
    const place = ((clientX - box.left) / box.width) * this.svg.viewBox.baseVal.width;
    const inside = Math.min(this.across.end, Math.max(this.across.start, place));
    return Math.round(this.across.value(inside));
  }

  show(step) {
    const inside = step >= this.across.low && step <= this.across.high;
    this.figure.classList.toggle("hover", inside);
    if (!inside) return this.rest();
    const place = this.across.place(step);
    this.line.setAttribute("x1", place);
    this.line.setAttribute("x2", place);
    this.label.setAttribute("x", place);
    this.label.textContent = step;
    for (const { node } of this.values) this.read(node, Number(node.dataset.series), step);
  }

  /** Writes a series' value at the measured step nearest to `step`, and marks that point. */
  read(node, number, step) {
    const { x, y } = this.series[number];
    const at = nearest(x, step);
    node.textContent = format(y[at], this.percent);
    const dot = this.dots[number];
    if (!dot) return;
    dot.toggleAttribute("hidden", y[at] === null);
    dot.setAttribute("cx", this.across.place(x[at]));
    dot.setAttribute("cy", this.up.place(y[at] ?? this.up.low));
  }

  /** Shows the last values again. */
  rest() {
    this.figure.classList.remove("hover");
    for (const { node, last } of this.values) node.textContent = last;
  }
}

function followPointer(data) {
  const charts = [...document.querySelectorAll(".chart")].map((figure) => new Curves(figure, data.charts[Number(figure.dataset.chart)]));
  for (const chart of charts) {
    chart.svg.addEventListener("pointermove", (event) => {
      const step = chart.stepAt(event.clientX);
      for (const each of charts) each.show(step);
    });
    chart.svg.addEventListener("pointerleave", () => charts.forEach((each) => each.rest()));
  }
}
