"use strict";
// Two parts: values under the pointer for the curves, and the viewer of groups.
// Texts of runs are untrusted: they only ever become text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null && child !== ""));
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

  // Curves: one pointer moves the cursor of every chart to the same step.

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

  // Groups

  const viewer = document.getElementById("groups");
  const state = { run: Math.max(0, data.runs.findIndex((run) => run.steps.length)), step: 0 };

  function choice(labels, chosen, choose) {
    const buttons = labels.map((label, index) => {
      const button = element("button", { type: "button", "aria-pressed": index === chosen }, label);
      button.addEventListener("click", () => { choose(index); render(); });
      return button;
    });
    return element("div", { class: "choice", role: "group" }, ...buttons);
  }

  function extent(values) {
    return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  }

  /** The first line that no row with the group's best reward has; -1 if the row shares no line with them. */
  function departure(row, best) {
    if (row.reward === null || !best.length || row.reward >= best[0].reward) return -1;
    const known = new Set(best.flatMap((other) => other.text.split("\n")));
    const lines = row.text.split("\n");
    if (!lines.some((line) => known.has(line))) return -1;
    return lines.findIndex((line) => !known.has(line));
  }

  function textOf(row, best) {
    const lines = row.text.split("\n");
    const wrong = departure(row, best);
    const parts = lines.flatMap((line, index) => {
      const shown = index === wrong && line !== "" ? element("mark", { title: "no better row has this line" }, line) : line;
      return index ? ["\n", shown] : [shown];
    });
    return element("div", { class: "text" }, ...parts);
  }

  function rewardOf(row, [low, high]) {
    if (row.reward === null) return row.reason ? element("span", { class: "reward none", title: row.reason }, "none") : "";
    const node = element("span", { class: "reward", title: "reward" }, format(row.reward));
    if (high > low) {
      const share = Math.round((100 * (row.reward - low)) / (high - low));
      const color = `color-mix(in oklab, var(--good) ${share}%, var(--bad))`;
      node.style.color = color;
      node.style.background = `color-mix(in srgb, ${color} 16%, transparent)`;
    }
    return node;
  }

  function pushOf(row, { weight: largest, unit }) {
    if (row.weight === null) return element("span", { class: "weight", style: "flex:1" }, "not trained on");
    const fill = element("i", { class: row.weight < 0 ? "down" : "up" });
    fill.style.width = `${largest ? (50 * Math.abs(row.weight)) / largest : 0}%`;
    const title = `weight ${row.weight}`;
    const text = signed(row.weight / unit, 2);
    return [element("span", { class: "push", title }, fill), element("span", { class: "weight", title }, text)];
  }

  function factsOf(row) {
    const parts = Object.entries(row.parts);
    const facts = [
      ...(parts.length > 1 ? parts.map(([name, value]) => [`${name} ${format(value)}`, "part of the reward"]) : []),
      ...(row.implicit === null ? [] : [[`implicit ${signed(row.implicit, 3)}`, "implicit reward: beta times the log-ratio"]]),
      [`${row.length} tokens`, "length"],
      [row.source === "live" ? "" : `${row.source}, version ${row.version}`, "where it comes from"],
    ];
    const nodes = facts.filter(([text]) => text).map(([text, title]) => element("span", { title }, text));
    if (row.finish !== "stop") nodes.push(element("span", { class: "warn" }, row.finish === "length" ? "truncated" : row.finish));
    if (row.reason) nodes.push(element("span", { class: "warn" }, row.reason));
    return element("div", { class: "facts" }, ...nodes);
  }

  function tagsOf(group, rewards) {
    const failed = group.rows.filter((row) => row.reason).length;
    const cut = group.rows.filter((row) => row.finish === "length").length;
    const [low, high] = extent(rewards);
    return [
      rewards.length > 1 && low === high ? "all rewards equal" : "",
      failed ? `${failed} failed` : "",
      cut ? `${cut} truncated` : "",
    ].filter(Boolean).map((text) => element("span", { class: "tag" }, text));
  }

  function groupOf(group, scale) {
    const rewards = group.rows.map((row) => row.reward).filter((reward) => reward !== null);
    const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
    const top = Math.max(...rewards);
    const best = group.rows.filter((row) => row.reward === top);
    const long = group.prompt.length > 90 || group.prompt.includes("\n");
    const about = element("div", { class: "about-group" },
      element("pre", { class: long ? "prompt long" : "prompt" }, group.prompt),
      ...Object.entries(group.columns).map(([name, value]) => element("span", {}, `${name} ${value}`)),
      rewards.length ? element("span", {}, `mean reward ${format(mean)}`) : "",
      ...tagsOf(group, rewards));
    const wide = group.rows.some((row) => row.text.length > 300);
    const rows = group.rows.map((row) => element("article", { class: "row" },
      element("div", { class: "top" }, rewardOf(row, scale.rewards), ...[pushOf(row, scale)].flat()),
      textOf(row, best), factsOf(row)));
    return element("section", { class: "group" }, about, element("div", { class: wide ? "rows wide" : "rows" }, ...rows));
  }

  function scaleOf(step) {
    const rows = step.groups.flatMap((group) => group.rows);
    const rewards = rows.map((row) => row.reward).filter((reward) => reward !== null);
    const weight = rows.reduce((largest, row) => Math.max(largest, Math.abs(row.weight ?? 0)), 0);
    const unit = weight > 0 && weight < 0.1 ? 10 ** Math.floor(Math.log10(weight)) : 1;
    return { rewards: extent(rewards), weight, unit };
  }

  /** Groups whose rewards differ first, as they stand in the file otherwise. */
  function ordered(groups) {
    const differs = (group) => new Set(group.rows.map((row) => row.reward).filter((reward) => reward !== null)).size > 1;
    return [...groups.filter(differs), ...groups.filter((group) => !differs(group))];
  }

  function help(unit) {
    const up = element("span", { class: "up" }, "to the right");
    const down = element("span", { class: "down" }, "to the left");
    const mark = element("mark", {}, "Marked");
    return element("p", { class: "help" }, "Each card is a completion: its reward, then its weight in the update" + (unit === 1 ? "" : ` (unit ${unit.toExponential(0)})`) + ". A bar ", up,
      " makes the completion more likely, one ", down, " less. ", mark,
      " is the first line that no completion with the group's best reward has. Groups with differing rewards come first.");
  }

  function render() {
    const run = data.runs[state.run];
    const step = run?.steps[state.step];
    const title = viewer.querySelector("h2");
    if (!step) {
      viewer.replaceChildren(title, element("p", { class: "empty" }, "No rollouts were written."));
      return;
    }
    const bar = element("div", { class: "bar" });
    if (data.runs.length > 1) {
      bar.append(choice(data.runs.map((one) => one.name), state.run, (index) => { state.run = index; state.step = 0; }));
    }
    bar.append(choice(run.steps.map((one) => `step ${one.step}`), state.step, (index) => { state.step = index; }));
    const shown = step.groups.length < step.total ? `${step.groups.length} of ${step.total} groups` : `${step.total} groups`;
    bar.append(element("span", { class: "about" }, shown));
    const scale = scaleOf(step);
    viewer.replaceChildren(title, bar, help(scale.unit), ...ordered(step.groups).map((group) => groupOf(group, scale)));
  }

  render();
})();
