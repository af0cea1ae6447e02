// Values under the pointer: one pointer moves the cursor of every chart to the same step.

function followPointer(data) {
  const charts = [...document.querySelectorAll(".chart")].map((figure) => {
    const svg = figure.querySelector("svg");
    const [low, high, start, end] = svg.dataset.x.split(" ").map(Number);
    return {
      figure, svg, low, high, start, end,
      width: svg.viewBox.baseVal.width,
      cursor: svg.querySelector(".cursor"),
      values: [...figure.querySelectorAll(".keys b")].map((node) => ({
        node, last: node.textContent, series: Number(node.dataset.series),
      })),
      ...data.charts[Number(figure.dataset.chart)],
    };
  });

  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle;
    }
    return x - xs[low] <= xs[high] - x ? low : high;
  }

  function point(step) {
    for (const chart of charts) {
      const inside = step >= chart.low && step <= chart.high;
      chart.figure.classList.toggle("hover", inside);
      if (!inside) continue;
      const at = chart.start + ((step - chart.low) / (chart.high - chart.low)) * (chart.end - chart.start);
      chart.cursor.setAttribute("x1", at);
      chart.cursor.setAttribute("x2", at);
      for (const value of chart.values) {
        const series = chart.series[value.series];
        const found = nearest(series.x, step);
        value.node.textContent = `${format(series.y[found], chart.percent)} @${series.x[found]}`;
      }
    }
  }

  function leave() {
    for (const chart of charts) {
      chart.figure.classList.remove("hover");
      for (const value of chart.values) value.node.textContent = value.last;
    }
  }

  for (const chart of charts) {
    chart.svg.addEventListener("pointermove", (event) => {
      const box = chart.svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * chart.width;
      const share = Math.min(1, Math.max(0, (at - chart.start) / (chart.end - chart.start)));
      point(Math.round(chart.low + share * (chart.high - chart.low)));
    });
    chart.svg.addEventListener("pointerleave", leave);
  }
}
