"""Send-to-device messages: https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging."""
from matrix import login, unique

SEND = "/v3/sendToDevice/{}/{}"


def send(user, messages, txn=None, kind="org.example.thing"):
    user.put(SEND, kind, txn or unique("txn"), body={"messages": messages})


def got(answer):
    return [event["content"]["n"] for event in answer.get("to_device", {}).get("events", [])]


def test_a_message_comes_until_it_is_acknowledged_and_then_no_more(alice, bob):
    bob.sync()
    before = bob.since
    send(alice, {bob.id: {bob.device: {"n": 1}}})
    answer = bob.sync_until("the message", lambda answer: got(answer) and answer)
    event = answer["to_device"]["events"][0]
    assert event == {"type": "org.example.thing", "sender": alice.id, "content": {"n": 1}}
    bob.since = before
    assert got(bob.sync()) == [1], "a token that was not acknowledged gives the message again"
    assert got(bob.sync()) == []
    bob.since = before
    assert got(bob.sync()) == [], "an acknowledged message came back"


def test_messages_come_in_order_however_many(alice, bob):
    bob.sync()
    for n in range(150):
        send(alice, {bob.id: {bob.device: {"n": n}}})
    seen = []
    while len(seen) < 150:
        batch = bob.sync_until("more", got)
        seen += batch
    assert seen == list(range(150))


def test_a_star_reaches_every_device(alice, bob):
    second = login(bob.id)
    send(alice, {bob.id: {"*": {"n": 7}}})
    for device in (bob, second):
        assert got(device.sync()) == [7]


def test_a_device_gets_only_its_own(alice, bob):
    second = login(bob.id)
    send(alice, {bob.id: {bob.device: {"n": 1}, second.device: {"n": 2}}})
    assert got(bob.sync()) == [1] and got(second.sync()) == [2]


def test_the_same_transaction_is_sent_once(alice, bob):
    for _ in range(2):
        send(alice, {bob.id: {bob.device: {"n": 1}}}, txn="same")
    assert got(bob.sync()) == [1]


def test_one_can_write_to_oneself_and_to_nobody(alice):
    second = login(alice.id)
    send(alice, {alice.id: {second.device: {"n": 1}, "NOSUCH": {"n": 2}}, f"@nobody:{alice.server}": {"*": {"n": 3}}})
    assert got(second.sync()) == [1]


def test_what_has_no_sense_is_refused(alice, bob):
    for body in ({}, {"messages": 1}, {"messages": {bob.id: 1}}, {"messages": {bob.id: {bob.device: 1}}}):
        alice.refused(400, None, "PUT", SEND, "org.example", unique("txn"), body=body)
