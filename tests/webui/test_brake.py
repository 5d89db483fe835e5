"""Limits on guessing passwords, which do not lock out the right person behind a proxy."""

import base64

import httpx
import pytest

from tests.helpers.ui_server import Server
from webui.server.brake import FREE_GUESSES, FREE_GUESSES_BEHIND_PROXY, LONGEST_WAIT_SECONDS, Brake, network_of
from webui.server.security import PASSWORD_VARIABLE, Guard

PASSWORD = "correct horse, é"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(clock):
    return Guard(None, PASSWORD, clock=clock)


def status(guard, password: str | None, peer: str = "10.0.0.1", user: str = "lora", **headers: str) -> int:
    named = {"host": "lora.example.com", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if password is not None:
        named["authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    refused = guard.refusal("GET", "/config", named, peer)
    return 200 if refused is None else refused[0]


def test_after_some_wrong_passwords_each_guess_has_to_wait_longer(guard, clock):
    assert [status(guard, "wrong") for _ in range(FREE_GUESSES)] == [401] * FREE_GUESSES
    waits = []
    for _ in range(12):
        assert status(guard, "wrong") == status(guard, PASSWORD) == 429, "the right one may not be found meanwhile"
        waits.append(guard.brake.wait_seconds("10.0.0.1"))
        clock.now += waits[-1]
        assert status(guard, "wrong") == 401
    assert waits == sorted(waits) and waits[0] >= 1 and waits[-1] == LONGEST_WAIT_SECONDS
    assert status(guard, PASSWORD, peer="10.0.0.2") == 200, "others are not kept out"
    clock.now += LONGEST_WAIT_SECONDS
    assert status(guard, PASSWORD) == 200


def test_what_brings_no_password_is_no_guess(guard):
    assert {status(guard, None) for _ in range(100)} == {401}
    assert status(guard, PASSWORD) == 200


def test_the_users_name_counts(guard):
    assert [status(guard, PASSWORD, user=user) for user in ("someone", "", "Lora")] == [401] * 3
    assert status(guard, PASSWORD) == 200


def test_a_browser_that_knew_the_password_is_not_kept_out_by_others_at_its_address(guard):
    for _ in range(FREE_GUESSES + 1):
        status(guard, "wrong")
    assert status(guard, PASSWORD) == 429
    assert status(guard, PASSWORD, cookie=f"other=1; {guard.known_browser}") == 200
    assert status(guard, "wrong", cookie=guard.known_browser) == 401, "it still needs the password"
    assert status(guard, PASSWORD, cookie="sdxl_lora_known=guessed") == 429


def test_a_proxy_of_this_machine_tells_addresses_apart_and_cannot_invent_them_without_end(guard):
    def through_proxy(address: str, password: str = "wrong") -> int:
        return status(guard, password, peer="127.0.0.1", x_forwarded_for=f"1.2.3.4, {address}")

    assert [through_proxy("10.0.0.1") for _ in range(FREE_GUESSES + 1)][-2:] == [401, 429]
    assert through_proxy("10.0.0.2", PASSWORD) == 200
    answers = [through_proxy(f"10.0.1.{number}") for number in range(2 * FREE_GUESSES_BEHIND_PROXY)]
    assert answers.count(401) == FREE_GUESSES_BEHIND_PROXY - FREE_GUESSES and answers[-1] == 429
    far = [status(guard, "wrong", peer="10.9.9.9", x_forwarded_for=f"10.0.0.{number}") for number in range(20)]
    assert far[-1] == 429, "only who is on this machine is believed"


def test_a_network_of_ipv6_counts_as_one_address():
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("fe80::1%eth0") == network_of("[fe80::2]") and network_of("x" * 9000) == "unknown"


def test_the_brake_remembers_neither_for_ever_nor_without_end(clock, monkeypatch):
    monkeypatch.setattr("webui.server.brake.MOST_ADDRESSES", 3)
    brake = Brake(clock)
    for address in "abcda":
        brake.wrong(address)
    assert len(brake._wrong) == 3
    clock.now += 4000
    assert brake.wrong("d") == 1


def test_a_page_refuses_guesses_with_429_and_writes_them_down_without_the_password(tmp_path):
    server = Server(tmp_path, **{PASSWORD_VARIABLE: PASSWORD})
    try:
        answers = [httpx.get(server.url + "/theme.css", auth=("lora", f"guess-{n}")) for n in range(20)]
        codes = [answer.status_code for answer in answers]
        assert codes[:FREE_GUESSES] == [401] * FREE_GUESSES
        # On a busy machine a wait may be over before the next guess, which is heard then: the next wait is longer.
        assert 429 in codes[FREE_GUESSES:] and set(codes[FREE_GUESSES:]) <= {401, 429}
        refused = answers[codes.index(429)]
        assert int(refused.headers["retry-after"]) > 0 and "seconds" in refused.text
        log = server.log.read_text()
        assert log.count("wrong password from 127.0.0.1") == codes.count(401) and "guess" not in log
    finally:
        server.kill()
