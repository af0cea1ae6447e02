"""Environments on a server of OpenEnv: a small server that follows its protocol (openenv-core 0.3.0)."""

import contextlib
import json
import threading

import pytest

from gvpo.environments import EnvironmentPool, Start, load_environment
from gvpo.environments.reward import EnvironmentReward
from gvpo.errors import EpisodeError, EpisodeLost
from gvpo.types import EpisodeTurn

pytest.importorskip("websockets")


class Server:
    """Counts the words that a session has said; closes, raises or refuses when told so."""

    def __init__(self, sessions):
        self.sessions, self.live, self.resets, self.seen = sessions, 0, [], []

    def serve(self, socket):
        self.live += 1
        try:
            if self.live > self.sessions:
                socket.send(error("CAPACITY_REACHED", "Server at capacity: 2/2 sessions active"))
                return
            self.session(socket)
        finally:
            self.live -= 1

    def session(self, socket):
        words = 0
        for message in map(json.loads, socket):
            self.seen.append(message["type"])
            if message["type"] == "close":
                return
            if message["type"] == "reset":
                self.resets.append(message["data"])
                socket.send(observation({"said": f"seed {message['data']['seed']}", "words": 0}))
                continue
            if set(message["data"]) != {"message"}:
                wrong = {"type": "missing", "loc": ["message"], "msg": "Field required"}
                socket.send(error("VALIDATION_ERROR", "Invalid message", errors=[wrong]))
                continue
            text = message["data"]["message"]
            if text == "leave":
                return
            if text == "raise":
                socket.send(error("EXECUTION_ERROR", "no such move"))
            elif text == "":
                wrong = {"type": "string_too_short", "loc": ["message"], "msg": "String is too short"}
                socket.send(error("VALIDATION_ERROR", "Invalid message", errors=[wrong]))
            elif text == "nonsense":
                socket.send("[]")
            else:
                words += len(text.split())
                socket.send(observation({"said": f"{words} words", "words": words}, words / 2, words > 3))


def observation(said, reward=None, done=False):
    return json.dumps({"type": "observation", "data": {"observation": said, "reward": reward, "done": done}})


def error(code, message, **more):
    return json.dumps({"type": "error", "data": {"message": message, "code": code, **more}})


@contextlib.contextmanager
def serving(sessions=2):
    """Run a server; give it and its address."""
    from websockets.sync.server import serve

    server = Server(sessions)
    with serve(server.serve, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{listening.socket.getsockname()[1]}"
        finally:
            listening.shutdown()
            thread.join()


def test_an_episode_is_a_session():
    with serving() as (server, url):
        spec = load_environment("openenv", {"url": f"{url}/"})
        assert (spec.blames, spec.replayable, spec.pays) == ("environment", False, True)
        first, second = spec.make(), spec.make()
        assert [first.reset(seed=3, level="hard"), second.reset(seed=4)] == ["seed 3", "seed 4"]
        turn = first.step("one two")
        assert (turn.say, turn.reward, turn.done) == ("2 words", 1.0, False)
        assert second.step("one").say == "1 words"  # a session of its own
        turn = first.step("three four")
        assert (turn.say, turn.reward, turn.done) == ("4 words", 2.0, True)
        assert server.live == 1
        del second
        assert server.live == 0
    (one, other) = server.resets
    assert (one["seed"], one["level"]) == (3, "hard")
    assert len({one["episode_id"], other["episode_id"]}) == 2
    assert server.seen.count("close") == 2


def test_an_option_chooses_the_text_of_an_observation():
    with serving() as (_, url):
        number = load_environment("openenv", {"url": url, "observation": "words"}).make()
        assert (number.reset(seed=0), number.step("a b").say) == ("0", "2")
        wrong = load_environment("openenv", {"url": url, "observation": "text"}).make()
        with pytest.raises(EpisodeLost, match="has no field 'text'; set the option observation to one of said, words"):
            wrong.reset(seed=0)


def test_the_policy_hears_what_the_server_refuses_and_the_session_continues():
    with serving() as (_, url):
        environment = load_environment("openenv", {"url": url}).make()
        environment.reset(seed=0)
        with pytest.raises(EpisodeError, match=r"^no such move$"):
            environment.step("raise")
        with pytest.raises(EpisodeError, match="refused: message: String is too short"):
            environment.step("")
        assert environment.step("go").say == "1 words"


@pytest.mark.parametrize(("text", "reason"), [("leave", "closed the session"), ("nonsense", "sent no message")])
def test_a_session_that_is_over_is_lost(text, reason):
    with serving() as (_, url):
        environment = load_environment("openenv", {"url": url}).make()
        environment.reset(seed=0)
        with pytest.raises(EpisodeLost, match=reason):
            environment.step(text)


def test_an_action_with_a_wrong_field_is_no_mistake_of_the_policy():
    with serving() as (_, url):
        environment = load_environment("openenv", {"url": url, "action": "text"}).make()
        environment.reset(seed=0)
        with pytest.raises(EpisodeLost, match=r"other fields \(message: Field required\); set the option action"):
            environment.step("go")


def test_a_server_that_is_full_says_so():
    with serving(sessions=1) as (_, url):
        make = load_environment("openenv", {"url": url}).make
        environment = make()
        environment.reset(seed=0)
        with pytest.raises(EpisodeLost, match="larger max_concurrent_envs"):
            make().reset(seed=0)
        assert environment.step("go").say == "1 words"


def test_a_lost_episode_has_no_reward_and_others_continue():
    with serving() as (_, url):
        spec = load_environment("openenv", {"url": url})
        with EnvironmentPool(spec, workers=1, timeout=20.0) as pool:
            pool.reset([Start("a", 0, {}), Start("b", 1, {})])
            first, second = pool.step({"a": "leave", "b": "go"}).values()
            assert (first.outcome, second.outcome, second.say) == ("lost", "ok", "1 words")
            assert pool.step({"b": "one two three"})["b"].done
    turn = EpisodeTurn(0, 3, 3, outcome=first.outcome, detail=first.detail)
    (verdict,) = EnvironmentReward(spec, "sum").verdicts([[turn]])
    assert verdict.reward is None
    assert "closed the session" in verdict.reason


def test_a_run_does_not_begin_without_a_server():
    spec = load_environment("openenv", {"url": "http://127.0.0.1:9"})
    with (
        EnvironmentPool(spec, workers=1, timeout=20.0) as pool,
        pytest.raises(EpisodeError, match=r"no OpenEnv server answers at ws://127.0.0.1:9/ws .*start it"),
    ):
        pool.reset([Start("a", 0, {})])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://"])
def test_an_address_without_http_or_host_is_refused(url):
    with pytest.raises(EpisodeError, match="write http://HOST:PORT"):
        load_environment("openenv", {"url": url})
