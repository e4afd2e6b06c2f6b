"""The endpoints under end-to-end encryption. The clients beside this suite test what they are for."""
import threading

import pytest

from keys import CrossSigning, base64, device_key, device_keys, fallback_key, one_time_keys
from matrix import is_error, login, register


def upload(user, **body):
    return user.post("/v3/keys/upload", body=body)["one_time_key_counts"]


def claim(user, other, device=None):
    """Claims one key of a device; its id and content, or nothing."""
    wanted = {other.id: {device or other.device: "signed_curve25519"}}
    answer = user.post("/v3/keys/claim", body={"one_time_keys": wanted})
    assert answer.get("failures", {}) == {}
    found = answer["one_time_keys"].get(other.id, {}).get(device or other.device, {})
    assert len(found) <= 1
    return next(iter(found.items()), None)


def query(user, *others):
    return user.post("/v3/keys/query", body={"device_keys": {other.id: [] for other in others}})


def test_device_keys_are_found_by_others_with_the_devices_name(alice, bob):
    keys = device_keys(alice)
    upload(alice, device_keys=keys)
    alice.put("/v3/devices/{}", alice.device, body={"display_name": "phone"})
    found = query(bob, alice)["device_keys"][alice.id][alice.device]
    unsigned = found.pop("unsigned", {})
    assert found == keys and unsigned.get("device_display_name") in (None, "phone")
    one = bob.post("/v3/keys/query", body={"device_keys": {alice.id: [alice.device]}})
    assert list(one["device_keys"][alice.id]) == [alice.device]
    none = bob.post("/v3/keys/query", body={"device_keys": {alice.id: ["NOSUCH"]}})
    assert none["device_keys"].get(alice.id, {}) == {}


def test_keys_for_another_device_or_user_are_refused(alice, bob):
    for wrong in ({"device_id": "OTHER"}, {"user_id": bob.id}):
        alice.refused((400, 403), None, "POST", "/v3/keys/upload", body={"device_keys": {**device_keys(alice), **wrong}})


def test_one_time_keys_are_counted_and_claimed_once_each(alice, bob):
    keys = one_time_keys(alice, 3)
    assert upload(alice, device_keys=device_keys(alice), one_time_keys=keys) == {"signed_curve25519": 3}
    claimed = [claim(bob, alice) for _ in range(3)]
    assert dict(claimed) == keys, "each key once, as it was uploaded"
    assert claim(bob, alice) is None
    assert upload(alice).get("signed_curve25519", 0) == 0
    assert alice.sync()["device_one_time_keys_count"].get("signed_curve25519", 0) == 0


def test_many_claims_at_once_never_share_a_key(alice, bob, carol):
    upload(alice, device_keys=device_keys(alice), one_time_keys=one_time_keys(alice, 20))
    got, lock = [], threading.Lock()

    def take(who):
        for _ in range(10):
            key = claim(who, alice)
            with lock:
                got.append(key)

    threads = [threading.Thread(target=take, args=(who,)) for who in (bob, carol, bob, carol)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [key[0] for key in got if key]
    assert len(names) == 20 and len(set(names)) == 20


def test_the_same_upload_again_is_harmless_and_a_changed_key_is_refused(alice, bob):
    keys = one_time_keys(alice, 2)
    assert upload(alice, one_time_keys=keys) == upload(alice, one_time_keys=keys)
    name = next(iter(keys))
    changed = {name: {**keys[name], "key": base64()}}
    alice.refused(400, None, "POST", "/v3/keys/upload", body={"one_time_keys": changed})


def test_a_fallback_key_is_given_again_and_again_and_marked_used(alice, bob):
    key = fallback_key(alice)
    upload(alice, device_keys=device_keys(alice), one_time_keys=one_time_keys(alice, 1), fallback_keys=key)
    assert alice.sync()["device_unused_fallback_key_types"] == ["signed_curve25519"]
    assert claim(bob, alice)[0] not in key
    for _ in range(2):
        name, content = claim(bob, alice)
        assert {name: content} == key and content["fallback"] is True
    assert alice.sync()["device_unused_fallback_key_types"] == []
    upload(alice, fallback_keys=fallback_key(alice))
    assert alice.sync()["device_unused_fallback_key_types"] == ["signed_curve25519"]


def test_a_deleted_device_leaves_no_keys(alice, bob):
    second = login(alice.id)
    upload(second, device_keys=device_keys(second), one_time_keys=one_time_keys(second, 1))
    alice.confirmed("DELETE", "/v3/devices/{}", second.device)
    assert second.device not in query(bob, alice)["device_keys"].get(alice.id, {})
    assert claim(bob, alice, second.device) is None


def changed(answer):
    return answer.get("device_lists", {}).get("changed", [])


def test_sharing_a_room_brings_news_of_devices_and_parting_ends_it(alice, bob):
    upload(alice, device_keys=device_keys(alice))
    bob.sync()
    start = bob.since
    alice = login(alice.id)  # Not yet of interest to bob.
    assert alice.id not in changed(bob.sync())
    room = alice.create_room(encryption=True, invite=[bob.id])
    bob.join(room)
    bob.sync_until("alice is new to bob", lambda answer: alice.id in changed(answer))
    upload(alice, device_keys=device_keys(alice))
    bob.sync_until("alice's new device", lambda answer: alice.id in changed(answer))
    end = bob.since
    assert alice.id in bob.get("/v3/keys/changes", **{"from": start, "to": end})["changed"]
    bob.leave(room)
    left = lambda answer: alice.id in answer.get("device_lists", {}).get("left", [])
    bob.sync_until("alice is of no more interest", left)


def test_ones_own_devices_are_news_to_ones_other_devices(alice):
    alice.sync()
    second = login(alice.id)
    upload(second, device_keys=device_keys(second))
    alice.sync_until("the own second device", lambda answer: alice.id in changed(answer))


def publish(user):
    """Makes cross-signing keys known, with the password where the server asks for it."""
    keys = CrossSigning(user)
    user.confirmed("POST", "/v3/keys/device_signing/upload", body=keys.upload())
    return keys


def test_cross_signing_keys_are_kept_and_the_user_signing_key_is_private(alice, bob):
    keys = publish(alice).upload()
    mine, theirs = query(alice, alice), query(bob, alice)
    for found in (mine, theirs):
        assert found["master_keys"][alice.id]["keys"] == keys["master_key"]["keys"]
        assert found["self_signing_keys"][alice.id] == keys["self_signing_key"]
    assert mine["user_signing_keys"][alice.id] == keys["user_signing_key"]
    assert alice.id not in theirs.get("user_signing_keys", {})
    replaced = alice.ask("POST", "/v3/keys/device_signing/upload", body=CrossSigning(alice).upload())
    assert replaced.status_code == 401, "replacing keys must ask for the password"


def test_a_cross_signing_key_that_the_master_key_did_not_sign_is_refused(alice):
    keys, other = CrossSigning(alice).upload(), CrossSigning(alice).upload()
    body = {**keys, "self_signing_key": other["self_signing_key"]}
    answer = alice.ask("POST", "/v3/keys/device_signing/upload", body=body)
    if answer.status_code == 401:
        identifier = {"type": "m.id.user", "user": alice.id}
        auth = {"type": "m.login.password", "identifier": identifier, "password": alice.password}
        auth["session"] = answer.json()["session"]
        answer = alice.ask("POST", "/v3/keys/device_signing/upload", body={**body, "auth": auth})
    is_error(answer, 400)


def test_a_signature_of_ones_device_is_seen_by_others_and_makes_news(alice, bob, room):
    own = device_keys(alice)
    upload(alice, device_keys=own)
    keys = publish(alice)
    bob.sync()
    signed = keys.self_signing.sign({key: value for key, value in own.items() if key != "signatures"})
    answer = alice.post("/v3/keys/signatures/upload", body={alice.id: {alice.device: signed}})
    assert not answer.get("failures")
    bob.sync_until("news of alice", lambda answer: alice.id in changed(answer))
    found = query(bob, alice)["device_keys"][alice.id][alice.device]["signatures"][alice.id]
    assert set(found) == {device_key(alice).name, keys.self_signing.name}


def test_a_signature_of_another_person_is_seen_by_the_signer_alone(alice, bob, carol):
    mine, theirs = publish(alice), publish(bob)
    signed = mine.user_signing.sign(theirs.body(theirs.master, "master"))
    answer = alice.post("/v3/keys/signatures/upload", body={bob.id: {theirs.master.public: signed}})
    assert not answer.get("failures")
    seen = lambda who: query(who, bob)["master_keys"][bob.id].get("signatures", {})
    assert mine.user_signing.name in seen(alice)[alice.id]
    assert alice.id not in seen(bob) and alice.id not in seen(carol)


def test_signatures_of_what_is_not_there_are_failures_each(alice):
    body = {alice.id: {"NOSUCH": {"user_id": alice.id, "device_id": "NOSUCH", "algorithms": [], "keys": {},
                                  "signatures": {alice.id: {"ed25519:x": base64(64)}}}}}
    failures = alice.post("/v3/keys/signatures/upload", body=body)["failures"]
    assert failures[alice.id]["NOSUCH"]["errcode"]


BACKUP = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": base64(), "signatures": {}}}


def backed_up(index=0, verified=False, forwarded=0):
    return {"first_message_index": index, "forwarded_count": forwarded, "is_verified": verified,
            "session_data": {"ciphertext": base64(), "ephemeral": base64(), "mac": base64(8)}}


@pytest.fixture
def version(alice):
    return alice.post("/v3/room_keys/version", body=BACKUP)["version"]


def test_a_backup_is_made_described_updated_and_deleted(alice, version):
    about = alice.get("/v3/room_keys/version")
    assert about["version"] == version and about["count"] == 0 and about["algorithm"] == BACKUP["algorithm"]
    alice.put("/v3/room_keys/version/{}", version, body={**BACKUP, "auth_data": {"public_key": "new"}, "version": version})
    assert alice.get("/v3/room_keys/version/{}", version)["auth_data"] == {"public_key": "new"}
    alice.refused(400, None, "PUT", "/v3/room_keys/version/{}", version, body={**BACKUP, "algorithm": "other"})
    alice.delete("/v3/room_keys/version/{}", version)
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/room_keys/version")
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/room_keys/version/{}", version)


def test_keys_are_backed_up_and_read_by_session_by_room_and_together(alice, version):
    one, two, three = backed_up(1), backed_up(2), backed_up(3)
    at = {"query": {"version": version}}
    first = alice.done("PUT", "/v3/room_keys/keys/{}/{}", "!a:x", "s1", body=one, **at)
    assert first["count"] == 1
    second = alice.done("PUT", "/v3/room_keys/keys/{}", "!a:x", body={"sessions": {"s2": two}}, **at)
    assert second["count"] == 2 and second["etag"] != first["etag"]
    third = alice.done("PUT", "/v3/room_keys/keys", body={"rooms": {"!b:x": {"sessions": {"s3": three}}}}, **at)
    assert third["count"] == 3
    assert alice.get("/v3/room_keys/keys/{}/{}", "!a:x", "s1", version=version) == one
    assert alice.get("/v3/room_keys/keys/{}", "!a:x", version=version)["sessions"] == {"s1": one, "s2": two}
    rooms = alice.get("/v3/room_keys/keys", version=version)["rooms"]
    assert rooms == {"!a:x": {"sessions": {"s1": one, "s2": two}}, "!b:x": {"sessions": {"s3": three}}}
    gone = alice.done("DELETE", "/v3/room_keys/keys/{}/{}", "!a:x", "s1", **at)
    assert gone["count"] == 2
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/room_keys/keys/{}/{}", "!a:x", "s1", **at)
    assert alice.done("DELETE", "/v3/room_keys/keys", **at)["count"] == 0
    assert alice.get("/v3/room_keys/keys", version=version) == {"rooms": {}}


def test_a_better_key_replaces_a_worse_and_never_the_other_way(alice, version):
    template, at = "/v3/room_keys/keys/{}/{}", {"query": {"version": version}}
    best = backed_up(index=5, verified=True, forwarded=0)
    # https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3room_keyskeysroomidsessionid: verified before unverified, then the lower first index, then the lower forwarded count.
    for key, kept in ((backed_up(9), True), (backed_up(7), True), (backed_up(8), False), (best, True),
                      (backed_up(0), False), (backed_up(5, True, 3), False)):
        alice.done("PUT", template, "!a:x", "s", body=key, **at)
        assert (alice.get(template, "!a:x", "s", version=version) == key) == kept, key


def test_only_the_newest_backup_takes_keys(alice, version):
    newer = alice.post("/v3/room_keys/version", body=BACKUP)["version"]
    assert newer != version and alice.get("/v3/room_keys/version")["version"] == newer
    refusal = alice.refused(403, "M_WRONG_ROOM_KEYS_VERSION", "PUT", "/v3/room_keys/keys/{}/{}", "!a:x", "s",
                            body=backed_up(), query={"version": version})
    assert refusal["current_version"] == newer


def test_backups_are_nobody_elses(version, bob):
    bob.refused(404, "M_NOT_FOUND", "GET", "/v3/room_keys/version/{}", version)
    bob.refused(404, "M_NOT_FOUND", "GET", "/v3/room_keys/version")


def test_a_stranger_is_queried_without_error(alice):
    other = register("quiet")
    nobody = f"@nobody:{alice.server}"
    answer = alice.post("/v3/keys/query", body={"device_keys": {other.id: [], nobody: []}})
    assert answer["device_keys"].get(other.id, {}) == {} and answer["device_keys"].get(nobody, {}) == {}
