// Episodes turn by turn: what the model said on the left, what the environment answered on the right.

/** The nodes of some tokens of a completion, coloured; without their places in the text, the text and a strip of tokens. */
function paintedPart(paint, tokens, [begin, end], places, text, plain) {
  const nodes = tokens[paint].slice(begin, end).map((value, index) => {
    const number = begin + index;
    const piece = places ? text.slice(places[number], places[number + 1]) : "";
    return tokenNode(paint, value, number, piece, !tokens.mask || tokens.mask[number] > 0);
  });
  return places ? nodes : [plain, element("div", { class: "strip" }, nodes)];
}

/** The number of the first turn that no episode with the best reward has; -1 if they share no turn. */
function firstOwnTurn(turns, best) {
  const known = new Set(best.flatMap((other) => other.map((turn) => turn.own)));
  return turns.some((turn) => known.has(turn.own)) ? turns.findIndex((turn) => !known.has(turn.own)) : -1;
}

function turnHead(turn, number, scale) {
  const chip = turn.reward === null ? "" : element("span", { class: "chip", title: "reward of this turn" }, `reward ${format(turn.reward)}`);
  const push = turn.weight === null ? [] : weightNodes(turn, scale);
  return element("b", {}, element("span", {}, `turn ${number + 1}`), chip, push);
}

function ownNode(turn, number, marked, inside, scale) {
  const trained = turn.weight === null ? "It was not trained on." : "It is trained on.";
  const text = marked ? element("mark", { title: "No episode with the best reward has this turn." }, inside) : inside;
  return element("div", { class: "said own", title: `The model wrote this. ${trained}` }, turnHead(turn, number, scale), text);
}

function heardNode(turn, role, inside) {
  const read = turn.at[2] > turn.at[1];
  const title = read ? "The model was told this. It is not trained on." : "The model has not read this, because the episode had ended.";
  const head = element("b", {},
    element("span", {}, role),
    turn.outcome ? element("span", { class: "warn", title: turn.detail }, turn.outcome) : "",
    turn.time ? element("small", { title: "time of the environment" }, turn.time) : "");
  return element("div", { class: "said heard", title }, head, inside);
}

/** The environment's part of a turn; `painted` are the coloured tokens that the model was told, or null. */
function heardNodes(turn, painted) {
  if (painted) return [heardNode(turn, "told", painted)];
  if (turn.heard.length) return turn.heard.map(([role, text]) => heardNode(turn, role, text));
  return turn.outcome ? [heardNode(turn, "environment", turn.detail)] : [];
}

/** The blocks of an episode. `painter` colours the tokens from one place to another, or is null. */
function episodeNodes(turns, marked, scale, painter) {
  return turns.flatMap((turn, number) => {
    const [start, stop, end] = turn.at;
    const own = painter ? painter([start, stop], turn.own) : turn.own;
    const told = painter && end > stop ? painter([stop, end], turn.heard.map(([, text]) => text).join("\n")) : null;
    return [ownNode(turn, number, number === marked, own, scale), ...heardNodes(turn, told)];
  });
}

/** The text of a card that is an episode. `best` are the episodes with the group's best reward, if this is none of them. */
function episodeNode(turns, text, tokens, best, scale, paint) {
  const marked = best.length && !paint ? firstOwnTurn(turns, best) : -1;
  const body = element("div", { class: "text episode" }, episodeNodes(turns, marked, scale, null));
  if (paint && tokens?.[paint]) {
    const places = tokens.lengths && begins(tokens.lengths);
    const painter = (part, plain) => paintedPart(paint, tokens, part, places, text, plain);
    body.paint = () => body.replaceChildren(...episodeNodes(turns, marked, scale, painter));
    onSight.observe(body);
  }
  return body;
}
