// A group: its prompt and its completions, each with reward, weight and facts.

const ROW_SORTS = {
  place: ["order of the file", (row) => row.place],
  reward: ["reward", (row) => -(row.reward ?? -Infinity)],
  weight: ["weight", (row) => -(row.weight ?? -Infinity)],
  implicit: ["implicit reward", (row) => -(row.implicit ?? -Infinity)],
  length: ["length", (row) => -row.length],
};

const MOST_CELLS = 64;

/** Colours a node from --bad at the lowest reward of the run to --good at the highest; it stays grey if there is only one reward. */
function tint(node, reward, [low, high]) {
  if (reward === null || !(high > low)) return node;
  node.style.setProperty("--share", `${Math.round((100 * (reward - low)) / (high - low))}%`);
  node.classList.add("tinted");
  return node;
}

/** A square per completion in the colour of its reward, for as many as a line has room for, and how many there are. */
function cellNodes(store, group) {
  const begin = store.rowStarts[group], size = store.sizes[group], shown = Math.min(size, MOST_CELLS);
  const cells = store.reward.slice(begin, begin + shown).map((reward) => {
    return tint(element("i", { class: reward === null ? "none" : "" }), reward, store.rewards);
  });
  const words = shown < size ? `${shown} of ${size.toLocaleString("en")} shown` : counted(size, "completion");
  return [...cells, element("span", {}, words)];
}

function rewardNode(row, extremes) {
  if (row.reward === null) return row.reason ? element("span", { class: "reward none", title: row.reason }, "no reward") : "";
  return tint(element("span", { class: "reward", title: "reward" }, format(row.reward)), row.reward, extremes);
}

function weightNodes(row, { largest, unit }) {
  if (row.weight === null) return [element("span", { class: "weight untrained" }, "not trained on")];
  const title = `weight ${row.weight}`;
  const fill = element("i", { class: row.weight < 0 ? "down" : "up" });
  fill.style.width = `${largest ? (50 * Math.abs(row.weight)) / largest : 0}%`;
  return [element("span", { class: "push", title }, fill), element("span", { class: "weight", title }, signed(row.weight / unit, 2))];
}

function sourceText(row) {
  const version = row.version === null ? [] : [`version ${row.version}`];
  const age = row.age === null ? [] : [`age ${row.age}`];
  return [row.source, ...version, ...age].join(", ");
}

function factNodes(row) {
  const facts = [
    ...row.parts.filter(([, value]) => value !== null).map(([name, value]) => [`${name} ${format(value)}`, "value of this reward function"]),
    ...(row.implicit === null ? [] : [[`implicit reward ${signed(row.implicit, 3)}`, "implicit reward: beta times the log-ratio to the reference"]]),
    [counted(row.length, "token"), "length"],
    ...(row.turns ? [[counted(row.turns, "turn"), "turns of the model"]] : []),
    [row.finish, "why the completion ended"],
    [sourceText(row), "source of the completion; version: completed steps of the policy that sampled it; age: steps since then"],
  ];
  const nodes = facts.map(([text, title]) => element("span", { title }, text));
  if (row.finish === "length") nodes.push(element("span", { class: "warn" }, "truncated"));
  if (row.reason) nodes.push(element("span", { class: "warn" }, row.reason));
  return element("div", { class: "facts" }, nodes);
}

/** The index of the first line that no completion with the group's best reward contains; -1 if the text shares no line with them. */
function departure(text, best) {
  const known = new Set(best.flatMap((other) => other.split("\n")));
  const lines = text.split("\n");
  return lines.some((line) => known.has(line)) ? lines.findIndex((line) => !known.has(line)) : -1;
}

function plainText(text, best) {
  const wrong = best.length ? departure(text, best) : -1;
  return text.split("\n").flatMap((line, index) => {
    const shown = index === wrong && line !== "" ? element("mark", { title: "No completion with the best reward contains this line." }, line) : line;
    return index ? ["\n", shown] : [shown];
  });
}

/** Colours the tokens of a card when it comes near the screen, since a group may have tens of thousands of tokens. */
const onSight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    onSight.unobserve(target);
    target.paint();
  }
}, { rootMargin: "600px" });

function textNode(text, turns, tokens, best, paint) {
  const plain = turns ? turnNodes(turns, turnTexts(turns, text)) : plainText(text, paint ? [] : best);
  const body = element("div", { class: "text" }, plain);
  if (paint && tokens?.[paint]) {
    body.paint = () => {
      const nodes = paintedText(paint, text, tokens);
      body.replaceChildren(...(turns ? turnNodes(turns, nodes) : nodes));
    };
    onSight.observe(body);
  }
  return body;
}

/** The text of a card: an episode turn by turn, or the completion. */
function bodyNode({ place }, { texts, tokens }, best, scale, paint) {
  const turns = texts.episodes[place];
  if (turns) return episodeNode(turns, texts.texts[place], tokens?.[place], best.map((other) => texts.episodes[other]).filter(Boolean), scale.weight, paint);
  return textNode(texts.texts[place], texts.turns[place], tokens?.[place], best.map((other) => texts.texts[other]), paint);
}

/** `found` is {texts, tokens}, each null if the page does not contain it; `paint` is what colours the tokens, or "". */
function completionNode(row, found, best, scale, paint) {
  const body = found.texts ? bodyNode(row, found, best, scale, paint) : "";
  const top = element("div", { class: "top" }, rewardNode(row, scale.rewards), weightNodes(row, scale.weight));
  return element("article", { class: "row", "aria-label": `completion ${row.place + 1}` }, top, body, factNodes(row));
}

/** What is unusual about the completions of a group, in words. */
function factWords(fact) {
  return Object.entries(TROUBLES).map(([name, noun]) => (fact[name] ? `${fact[name]} ${noun}` : ""));
}

function groupTags(fact) {
  return [
    fact.equal ? "all rewards are equal" : "",
    ...factWords(fact),
  ].filter(Boolean).map((text) => element("span", { class: "tag" }, text));
}

function aboutNode(store, group, texts) {
  const fact = store.facts[group];
  const prompt = texts?.prompt ?? store.excerpts[group];
  const long = prompt.length > 90 || prompt.trim().includes("\n");
  return element("div", { class: "about-group" },
    element("pre", { class: long ? "prompt long" : "prompt" }, prompt.trim() || "(empty prompt)"),
    element("span", { title: "id of the group" }, store.ids[group]),
    element("a", { href: addressOf(store, group), title: "The address of this group. Copy it to show the group to somebody." }, "link"),
    element("span", {}, `step ${store.steps[store.stepOf(group)]}`),
    Object.entries(texts?.columns ?? {}).map(([name, value]) => element("span", { class: "column", title: value }, `${name} ${value}`)),
    fact.mean === null ? "" : element("span", {}, `mean reward ${format(fact.mean)}`),
    groupTags(fact));
}

/** The reason why something that was asked for is not shown; null if everything is shown. */
function absence(store, group, found, paint) {
  if (!found.texts) return `The texts of this group were left out, to keep the page small. They are in ${store.fileOf(group)}.`;
  if (paint && !found.tokens) return `The tokens of this group were left out, to keep the page small. They are in ${store.fileOf(group)}.`;
  if (paint && !found.tokens.some((tokens) => tokens[paint])) return `The rollout file has no ${PAINTS[paint].label} for this group.`;
  return null;
}

function groupNodes(store, group, found, { paint, order }) {
  const rows = store.rows(group).sort((a, b) => ROW_SORTS[order][1](a) - ROW_SORTS[order][1](b) || a.place - b.place);
  const top = store.facts[group].best;
  const best = found.texts ? rows.filter((row) => row.reward !== null && row.reward === top).map((row) => row.place) : [];
  const scale = { rewards: store.rewards, weight: store.weightScale(store.stepOf(group)) };
  const wide = found.texts?.texts.some((text) => text.length > 300) || found.texts?.episodes.some(Boolean);
  const note = absence(store, group, found, paint);
  const cards = rows.map((row) => {
    const worse = row.reward !== null && row.reward < top;
    return completionNode(row, found, worse ? best : [], scale, paint);
  });
  return [
    aboutNode(store, group, found.texts),
    note ? element("p", { class: "empty" }, note) : null,
    element("div", { class: wide ? "rows wide" : "rows" }, cards),
  ].filter(Boolean);
}

/** How to read the cards. `unit` is the unit of their weights. */
function helpNodes(paint, unit, episodes) {
  if (paint) {
    return ["Tokens: ", ...paintLegend(paint), ". A token without text of its own, such as the stop token, is a small box."];
  }
  return [
    `Each card is a completion, with its reward and its weight in the update${unit === 1 ? "" : ` (in units of ${unit.toExponential(0)})`}. A bar `,
    element("span", { class: "up" }, "to the right"), " makes the completion more likely, a bar ",
    element("span", { class: "down" }, "to the left"), " makes it less likely. A ", element("mark", {}, "marked"),
    episodes ? " turn is the first one that no episode with the group's best reward has. Grey blocks on the right are what the environment answered; they are not trained on."
      : " line is the first one that no completion with the group's best reward contains.",
  ];
}
