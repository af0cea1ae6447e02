// Completions coloured token by token. Values are thousandths of a nat.

const LEVELS = 6;
const PAINTS = {
  logprobs: {
    label: "log-prob",
    strong: 6000,
    legend: ["likely", "unlikely"],
    title: (value) => `log-prob ${(value / 1000).toFixed(3)} (p = ${format(Math.exp(value / 1000))})`,
  },
  ratios: {
    label: "log-ratio to the reference",
    strong: 4000,
    legend: ["less likely than under the reference", "more likely"],
    title: (value) => `log-ratio ${signed(value / 1000, 3)}`,
  },
};

/** The class of a value: `q3` is the third of six levels of unlikely, `up3` and `down3` of ratios. */
function levelOf(paint, value) {
  const level = Math.round(LEVELS * Math.sqrt(Math.min(1, Math.abs(value) / PAINTS[paint].strong)));
  if (!level) return "";
  return (paint === "logprobs" ? "q" : value > 0 ? "up" : "down") + level;
}

function tokenNode(paint, value, number, text, scored) {
  const about = value === null ? "no value" : PAINTS[paint].title(value);
  const kinds = [value === null ? "" : levelOf(paint, value), text === "" ? "blank" : "", scored ? "" : "unscored"];
  const title = `token ${number + 1}: ${about}${scored ? "" : ", not scored"}`;
  return element("span", { class: ["token", ...kinds].filter(Boolean).join(" "), title }, text);
}

/** The text of a completion in coloured tokens; if tokens have no place in it, the plain text with a strip of tokens below. */
function paintedText(paint, text, tokens) {
  const values = tokens[paint];
  const scored = (number) => !tokens.mask || tokens.mask[number] > 0;
  if (!tokens.lengths) {
    const strip = values.map((value, number) => tokenNode(paint, value, number, "", scored(number)));
    return [text, element("div", { class: "strip" }, strip)];
  }
  let at = 0;
  return values.map((value, number) => {
    const piece = text.slice(at, at += tokens.lengths[number]);
    return tokenNode(paint, value, number, piece, scored(number));
  });
}

function paintLegend(paint) {
  const [low, high] = PAINTS[paint].legend;
  const levels = paint === "logprobs" ? ["q0", "q1", "q2", "q3", "q4", "q5", "q6"]
    : ["down6", "down4", "down2", "up0", "up2", "up4", "up6"];
  const boxes = levels.map((level) => element("span", { class: `token blank ${level}` }));
  return [low, element("span", { class: "legend", "aria-hidden": "true" }, boxes), high];
}
