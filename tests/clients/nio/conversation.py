#!/usr/bin/env python3
"""Two people talk through the homeserver with matrix-nio, encrypted, and look closely at what it answers.

usage: conversation.py [HOMESERVER_URL [REGISTRATION_TOKEN]]
"""
import asyncio
import os
import sys
import tempfile
import time
import traceback
import uuid

from nio import (
    AsyncClient, AsyncClientConfig, JoinError, KeysUploadResponse, LoginResponse, MegolmEvent, MessageDirection,
    RedactionEvent, RegisterResponse, RoomContextResponse, RoomCreateResponse, RoomMessagesResponse, RoomMessageText,
    RoomRedactResponse, RoomSendResponse, SyncResponse, ToDeviceResponse, UploadFilterResponse,
)
from nio.event_builders import ToDeviceMessage

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("COFACTOR_URL", "http://127.0.0.1:8008")
TOKEN = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("COFACTOR_TOKEN", "open-sesame")
RUN = uuid.uuid4().hex[:6]
PASSWORD = f"correct horse {RUN}"
LAZY = {"room": {"timeline": {"limit": 5}, "state": {"lazy_load_members": True}}, "presence": {"not_types": ["*"]}}

step = "starting"


def begin(name):
    global step
    step = name
    print(f"- {name}", flush=True)


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def expect(response, kind):
    check(isinstance(response, kind), f"expected {kind.__name__}, got {response!r}")
    return response


async def register(localpart, store):
    """Registers by token or, where the server asks for none, without; then logs in on a client of its own."""
    first = AsyncClient(URL, localpart)
    answer = await first.register_with_token(localpart, PASSWORD, TOKEN, device_name="nio")
    expect(answer, RegisterResponse)
    await first.logout()
    await first.close()
    config = AsyncClientConfig(store_sync_tokens=True, encryption_enabled=True)
    client = AsyncClient(URL, answer.user_id, store_path=store, config=config)
    expect(await client.login(PASSWORD, device_name="nio again"), LoginResponse)
    return client


async def settle(client, timeout=0, **options):
    """One sync and what it asks of the client: keys to upload, to query and to claim, to-device messages to send."""
    response = expect(await client.sync(timeout=timeout, **options), SyncResponse)
    if client.should_upload_keys:
        expect(await client.keys_upload(), KeysUploadResponse)
    if client.should_query_keys:
        await client.keys_query()
    if client.should_claim_keys:
        await client.keys_claim(client.get_users_for_key_claiming())
    await client.send_to_device_messages()
    return response


async def until(client, what, found, seconds=20, **options):
    """Syncs until `found` says something true about an answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = found(await settle(client, timeout=1000, **options))
        if answer:
            return answer
    raise AssertionError(f"not within {seconds} s: {what}")


def texts(response, room_id):
    room = response.rooms.join.get(room_id)
    return [event.body for event in room.timeline.events if isinstance(event, RoomMessageText)] if room else []


async def say(client, room_id, body):
    content = {"msgtype": "m.text", "body": body}
    sent = await client.room_send(room_id, "m.room.message", content, ignore_unverified_devices=True)
    return expect(sent, RoomSendResponse).event_id


async def encrypted_room(alice, bob):
    begin("upload keys, create an encrypted room, invite, join")
    for client in (alice, bob):
        first = await settle(client, full_state=True)
        check(not first.rooms.join, "a new account is in a room")
    counts = [(await settle(client)).device_key_count.signed_curve25519 for client in (alice, bob)]
    check(all(count and count >= 10 for count in counts), f"uploaded key counts: {counts}")
    encryption = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    created = await alice.room_create(name="nio", invite=[bob.user_id], initial_state=[encryption], is_direct=True)
    room_id = expect(created, RoomCreateResponse).room_id
    await until(bob, "the invitation", lambda answer: room_id in answer.rooms.invite)
    check(not isinstance(await bob.join(room_id), JoinError), "bob could not join")
    await until(bob, "bob's own join", lambda answer: room_id in answer.rooms.join)
    await until(alice, "bob's join", lambda _: bob.user_id in alice.rooms[room_id].users)
    for client in (alice, bob):
        check(client.rooms[room_id].encrypted, "the room is not known to be encrypted")
        await until(client, "both devices are known", lambda _: client.device_store.active_user_devices(
            bob.user_id if client is alice else alice.user_id))
    return room_id


async def talk(alice, bob, room_id):
    begin("megolm messages both ways")
    before = (await settle(bob)).device_key_count.signed_curve25519
    for speaker, listener, body in ((alice, bob, "hello bob"), (bob, alice, "hello alice"), (alice, bob, "snow ☃")):
        event_id = await say(speaker, room_id, body)
        await until(listener, f"{body!r} decrypted", lambda answer: body in texts(answer, room_id))
        raw = (await listener.room_get_event(room_id, event_id)).event
        check(isinstance(raw, MegolmEvent) or getattr(raw, "decrypted", False), f"not encrypted on the wire: {raw!r}")
    claimed = before - (await settle(bob)).device_key_count.signed_curve25519
    check(claimed in (0, 1), f"one session was made, yet {claimed} one-time keys of bob are gone")


async def to_device(alice, bob):
    begin("to-device messages arrive once, in order")
    for number in range(5):
        message = ToDeviceMessage("org.cofactor.test", bob.user_id, bob.device_id, {"number": number})
        expect(await alice.to_device(message), ToDeviceResponse)
    got = []
    for _ in range(4):
        answer = await settle(bob, timeout=500)
        got += [event.source["content"]["number"] for event in answer.to_device_events
                if event.source["type"] == "org.cofactor.test"]
    check(got == list(range(5)), f"to-device messages: {got}")


async def unread(alice, bob, room_id):
    begin("unread counts rise and fall")
    last = None
    for body in ("one", "two", "three"):
        last = await say(alice, room_id, body)
    await until(bob, "the third message", lambda answer: "three" in texts(answer, room_id))
    check(bob.rooms[room_id].unread_notifications >= 3, f"unread: {bob.rooms[room_id].unread_notifications}")
    await bob.update_receipt_marker(room_id, last)
    await until(bob, "no unread messages", lambda _: bob.rooms[room_id].unread_notifications == 0)
    await alice.update_receipt_marker(room_id, last)
    await say(alice, room_id, "four")
    await until(alice, "her own message", lambda answer: "four" in texts(answer, room_id))
    check(alice.rooms[room_id].unread_notifications == 0, "one's own messages count as unread")


async def redact(alice, bob, room_id):
    begin("a redacted message is empty for everyone")
    event_id = await say(alice, room_id, "regret")
    await until(bob, "the message", lambda answer: "regret" in texts(answer, room_id))
    expect(await alice.room_redact(room_id, event_id, reason="second thoughts"), RoomRedactResponse)
    await until(bob, "the redaction", lambda answer: room_id in answer.rooms.join and any(
        isinstance(event, RedactionEvent) for event in answer.rooms.join[room_id].timeline.events))
    source = (await bob.room_get_event(room_id, event_id)).event.source
    check(source["content"] == {} and "redacted_because" in source["unsigned"], f"not redacted: {source}")


async def page(client, room_id, start, direction):
    """Every event id from `start` to the end of the room in that direction."""
    seen = []
    for _ in range(200):
        answer = expect(await client.room_messages(room_id, start, direction=direction, limit=4), RoomMessagesResponse)
        seen += [event.event_id for event in answer.chunk]
        if not answer.end or (answer.end == start and not answer.chunk):
            return seen
        start = answer.end
    raise AssertionError("pagination does not end")


async def paginate(alice, bob, room_id):
    begin("pages backwards and forwards meet, and so does the context of an event")
    since = bob.next_batch
    for number in range(12):
        last = await say(alice, room_id, f"page {number}")
    short = {"room": {"timeline": {"limit": 5}}}

    def ends_with_last(answer):
        room = answer.rooms.join.get(room_id)
        return room and room.timeline.events[-1].event_id == last and answer

    # What alice was told is sent may reach bob a moment later; he asks from the same place until all of it is there.
    gap = await until(bob, "a limited timeline", ends_with_last, sync_filter=short, since=since)
    timeline = gap.rooms.join[room_id].timeline
    check(timeline.limited and len(timeline.events) == 5, f"limited: {timeline.limited}, {len(timeline.events)} events")
    backwards = await page(bob, room_id, timeline.prev_batch, MessageDirection.back)
    newest_first = [event.event_id for event in reversed(timeline.events)] + backwards
    check(len(set(newest_first)) == len(newest_first), "an event was paged twice")
    from_now = await page(bob, room_id, bob.next_batch, MessageDirection.back)
    check(from_now == newest_first, "the timeline and its pages differ from the pages alone")
    forwards = await page(bob, room_id, since, MessageDirection.front)
    check(forwards == list(reversed(newest_first))[-len(forwards):], "forwards is not backwards reversed")
    check(len(forwards) == 12, f"{len(forwards)} events since the token, not 12")
    middle = newest_first[len(newest_first) // 2]
    context = expect(await bob.room_context(room_id, middle, limit=6), RoomContextResponse)
    check(context.event.event_id == middle, "the context is about another event")
    around = [e.event_id for e in reversed(context.events_after)] + [middle] + [e.event_id for e in context.events_before]
    at = newest_first.index(middle) - len(context.events_after)
    check(around == newest_first[at:at + len(around)], "the context disagrees with the pages")


async def lazy_and_filters(alice, bob, room_id):
    begin("filters and lazy loading")
    uploaded = await bob.upload_filter(room={"timeline": {"limit": 1, "types": ["m.room.message", "m.room.encrypted"]}})
    filter_id = expect(uploaded, UploadFilterResponse).filter_id
    fresh = AsyncClient(URL, bob.user_id)
    expect(await fresh.login(PASSWORD), LoginResponse)
    answer = expect(await fresh.sync(sync_filter=filter_id), SyncResponse)
    check(len(answer.rooms.join[room_id].timeline.events) == 1, "the filter's limit of 1 was not kept")
    fresh.next_batch = None
    answer = expect(await fresh.sync(sync_filter=LAZY), SyncResponse)
    members = {e.state_key for e in answer.rooms.join[room_id].state if e.source["type"] == "m.room.member"}
    senders = {e.sender for e in answer.rooms.join[room_id].timeline.events}
    check(senders == {alice.user_id}, f"senders in the timeline: {senders}")
    # https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members: senders, and oneself.
    check(members == {alice.user_id, bob.user_id}, f"lazily loaded members: {members}")
    await fresh.logout()
    await fresh.close()


async def script(alice, bob):
    room_id = await encrypted_room(alice, bob)
    await talk(alice, bob, room_id)
    await to_device(alice, bob)
    await unread(alice, bob, room_id)
    await redact(alice, bob, room_id)
    await paginate(alice, bob, room_id)
    await lazy_and_filters(alice, bob, room_id)


async def main():
    started = time.monotonic()
    clients = []
    with tempfile.TemporaryDirectory() as store:
        try:
            begin("register and log in two users")
            for name in ("carol", "dave"):
                clients.append(await register(f"{name}-{RUN}", store))
            await asyncio.wait_for(script(*clients), 180)
        except Exception:
            traceback.print_exc()
            print(f"FAILED at {step!r}")
            return 1
        finally:
            for client in clients:
                await client.close()
    print(f"matrix-nio: all steps passed in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
