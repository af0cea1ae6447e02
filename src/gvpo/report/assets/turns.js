// Completions of several turns: what the model wrote, and what it was told in between.

/** Puts the nodes of a text, each with a part of it, into a block per turn. `turns` are lengths, negative where the model was told something. */
function turnNodes(turns, nodes) {
  const rest = nodes.map((node) => (typeof node === "string" ? document.createTextNode(node) : node));
  let number = 0;
  return turns.map((length, index) => {
    const inside = [], last = index === turns.length - 1;
    let left = Math.abs(length);
    while (rest.length && (last || left > 0)) left -= (inside[inside.push(rest.shift()) - 1]).textContent.length;
    const own = length > 0;
    const title = own ? "The model wrote this, and it is trained on." : "The model was told this. It is not trained on.";
    return element("div", { class: own ? "said own" : "said", title }, element("b", {}, own ? `turn ${++number}` : "told"), inside);
  });
}

/** The text of each turn. */
function turnTexts(turns, text) {
  let at = 0;
  return turns.map((length) => text.slice(at, at += Math.abs(length)));
}
