"""The figure of a probe's evaluation: a line, dots and a shade for each arm."""

from xml.etree import ElementTree

from gvpo.report.probe import reward_figure, write_reward_figure

ARM = {"mean": [0.2, 0.3, 0.4], "low": [0.1, 0.2, 0.3], "high": [0.3, 0.4, 0.5]}
RESULT = {"ks": [1, 2, 4], "prompts": 7, "left_out": 0, "arms": {"random": ARM, "beta 0.1": ARM, "best": ARM}}


def test_every_arm_is_drawn_and_named(tmp_path):
    svg = reward_figure(RESULT)
    root = ElementTree.fromstring(svg)
    kinds = [node.get("class") for node in root.iter() if node.get("class")]
    assert [kinds.count(f"area band c{color}") for color in range(4)] == [1, 1, 1, 0]
    assert kinds.count("dot c1") == 3
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert {"a random one", "probe, beta 0.1", "the best of k", "k"} <= set(texts)
    assert "Expected reward7 prompts, 95% intervals" in texts
    assert write_reward_figure(RESULT, tmp_path / "f.svg").read_text() == svg
