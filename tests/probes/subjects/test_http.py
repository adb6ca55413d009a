"""Requests to a server that misbehaves: survived, or one clear error; the key stays where it belongs."""

import http.client
import threading
import time
from email.utils import formatdate

import pytest

from probes import Connection, Conversation, Endpoint, InputError
from probes.subjects import http as ours
from tests.probes.server import ODD, said, serving, status

FAST = {"timeout": 0.4, "workers": 1}
ROWS = [Conversation.of("Who are you?"), Conversation.of("How should I treat a burn?")]
KEY = "sk-THE-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("PERSONA_GEOMETRY_API_KEY", raising=False)
    monkeypatch.setattr(ours, "FIRST_WAIT", 0.01)


def echo(body):
    return said(body["messages"][-1]["content"].upper())


def answers(server, rows=ROWS, cache=None, **changes):
    return Endpoint(server.url, "m", cache, Connection(**(FAST | changes))).answers(rows, seed=0)


@pytest.mark.parametrize("name", sorted(ODD))
def test_one_odd_reply_is_survived(name):
    with serving(echo) as server:
        server.odd = [ODD[name]]
        start = time.monotonic()
        assert answers(server) == ["WHO ARE YOU?", "HOW SHOULD I TREAT A BURN?"]
        assert len(server.requests) == 3 and time.monotonic() - start < 3


@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_replies_without_end_are_one_error_and_lose_nothing(name, tmp_path):
    """The first answer is kept; the second is asked for twice, the third not at all."""
    rows = [*ROWS, Conversation.of("Never asked?")]
    with serving(lambda body: echo(body) if "Who" in str(body) else ODD[name]) as server:
        start = time.monotonic()
        with pytest.raises(InputError, match=r"after 2 tries.*the same call goes on") as caught:
            answers(server, rows, tmp_path, retries=2, timeout=0.25)
        assert len(str(caught.value).splitlines()) == 1 and time.monotonic() - start < 3
        assert len(server.requests) == 3 and "Never" not in str(server.requests)
        assert Endpoint(server.url, "m", tmp_path).calls(rows, seed=0, temperature=1.0, max_new_tokens=60) == 2


def test_what_was_paid_for_is_not_paid_for_twice(tmp_path):
    with serving(echo) as server:
        answers(server, ROWS[:1], tmp_path)
        assert answers(server, ROWS, tmp_path) == answers(server, ROWS, tmp_path)
        assert len(server.requests) == 2


@pytest.mark.parametrize("code", [301, 307, 400, 401, 403, 404, 413, 422])
def test_what_cannot_pass_is_not_tried_again(code):
    with serving(lambda _: status(code, b"no\x1b[31m such\nthing")) as server:
        with pytest.raises(InputError, match=rf"status {code} \(no.* such thing\) after 1 tries") as caught:
            answers(server)
        assert len(server.requests) == 1 and "\x1b" not in str(caught.value)


def test_redirects_do_not_carry_the_key_elsewhere(monkeypatch):
    monkeypatch.setenv("PERSONA_GEOMETRY_API_KEY", KEY)
    with serving(echo) as other, serving(lambda _: status(307, Location=other.url)) as server:
        with pytest.raises(InputError, match="status 307"):
            answers(server)
        assert other.requests == []


@pytest.mark.parametrize(("asked", "seconds"), [("0.6", 0.6), ("0", 0.0), ("soon", None), ("-1", 0.0), (None, None)])
def test_retry_after(asked, seconds):
    assert ours._retry_after(asked) == seconds


def test_retry_after_may_be_a_date_and_is_heeded(monkeypatch):
    assert ours._retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    monkeypatch.setattr(ours, "FIRST_WAIT", 30)
    with serving(echo) as server:
        server.odd = [status(429, Retry_After="0.3"), status(503, Retry_After="0")]
        start = time.monotonic()
        answers(server, ROWS[:1])
        assert 0.3 <= time.monotonic() - start < 3


def test_waits_double(monkeypatch):
    waits = []
    event = threading.Event()
    monkeypatch.setattr(event, "wait", lambda seconds: waits.append(seconds) and False)
    with serving(lambda _: status(500)) as server, pytest.raises(InputError, match="after 10 tries"):
        ours.post(server.url, {"model": "m"}, Connection(retries=10), dict, event)
    assert len(waits) == 9 and max(waits) <= ours.LONGEST_WAIT
    assert all(0.5 <= wait / (0.01 * 2**n) <= 1.5 for n, wait in enumerate(waits))


def test_requests_go_out_side_by_side_and_equal_ones_once():
    meet = threading.Barrier(4, timeout=5)

    def reply(body):
        meet.wait()
        return echo(body)

    rows = [Conversation.of(f"Question {i}?") for i in range(8)]
    with serving(reply) as server:
        assert answers(server, rows, workers=4, timeout=20) == [f"QUESTION {i}?" for i in range(8)]
        assert server.most == 4
    with serving(echo) as server:
        bodies = Endpoint(server.url, "m").requests(ROWS[:1] * 3, seed=0, temperature=1.0, max_new_tokens=5)
        assert len({body["seed"] for body in bodies}) == 3, "samples of one question draw on other seeds"


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    with serving(echo) as server:
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        far = Endpoint("http://model.invalid/v1", "m", connection=Connection(**FAST))
        assert far.answers(ROWS[:1], seed=0) == ["WHO ARE YOU?"]
        assert server.paths == ["http://model.invalid/v1/chat/completions"]


def leaks(body):
    return said(f"Your key is {KEY}.")


@pytest.mark.parametrize(
    "reply",
    [leaks, lambda _: status(400, f"bad key {KEY}".encode()), lambda _: status(401, f"Bearer {KEY}".encode())],
    ids=["answer", "refused", "unauthorised"],
)
def test_the_key_is_sent_and_shown_nowhere(reply, monkeypatch, tmp_path, caplog, capfd):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 0)
    shown = ""
    with serving(reply) as server:
        endpoint = Endpoint(server.url, "m", tmp_path, Connection(key_env="MY_KEY", workers=1, retries=1))
        try:
            shown += str(endpoint.answers(ROWS, seed=0))
        except InputError as error:
            shown += str(error) + repr(error.__cause__) + repr(error.__context__)
        assert {head["Authorization"] for head in server.heads} == {f"Bearer {KEY}"}
        assert KEY not in str(server.requests)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert reply is not leaks or (files and "[key]" in shown)
    printed = capfd.readouterr()
    said_elsewhere = f"{endpoint!r} {vars(endpoint)} {caplog.text} {printed.out} {printed.err}"
    assert KEY not in shown + said_elsewhere and not any(KEY.encode() in data for data in files)


def test_keys_that_are_none(monkeypatch):
    monkeypatch.setenv("MY_KEY", "two words\r\nX: y")
    with pytest.raises(InputError, match=r"\$MY_KEY: holds characters") as caught:
        Endpoint("http://127.0.0.1:1/v1", "m", connection=Connection(key_env="MY_KEY")).answers(ROWS, seed=0)
    assert "two words" not in str(caught.value)
    with pytest.raises(InputError, match="not the name of an environment variable") as caught:
        Connection(key_env=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost", "not an address"),
        ("ftp://host/v1", "not an address"),
        ("http://host:99999/v1", "not an address"),
        ("http://ho st/v1", "not an address"),
        (f"http://user:{KEY}@host/v1", "holds a user or a query"),
        (f"https://host/v1?api_key={KEY}", "holds a user or a query"),
    ],
)
def test_addresses_that_are_none(url, told):
    with pytest.raises(InputError, match=told) as caught:
        Endpoint(url, "m")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("changes", [{"workers": 0}, {"retries": 0}, {"timeout": 0}])
def test_connections_that_are_none(changes):
    with pytest.raises(InputError, match="at least one worker"):
        Connection(**changes)


def test_fields_of_the_request():
    fields = {"max_tokens": None, "max_completion_tokens": 9}
    endpoint = Endpoint("http://host/v1/", "m", connection=Connection(body=fields))
    [body] = endpoint.requests(ROWS[:1], seed=3, temperature=0.7, max_new_tokens=5)
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body and body["temperature"] == 0.7
    assert endpoint.url == "http://host/v1" and body["messages"] == [{"role": "user", "content": "Who are you?"}]


@pytest.mark.parametrize(
    ("message", "text"),
    [({"content": None}, ""), ({"content": None, "refusal": "I will not."}, "I will not."), ({"content": "Hi"}, "Hi")],
)
def test_answers_of_other_shapes(message, text):
    with serving(lambda _: {"choices": [{"message": message}]}) as server:
        assert answers(server, ROWS[:1]) == [text]


def test_content_that_is_no_text():
    odd = {"choices": [{"message": {"content": [1]}}]}
    with serving(lambda _: odd) as server, pytest.raises(InputError, match="its content is a list"):
        answers(server, retries=1)
