// Two people talk through the homeserver with matrix-js-sdk and its Rust crypto, as they would with Element.
// usage: node conversation.mjs [HOMESERVER_URL [REGISTRATION_TOKEN]]
// COFACTOR_RESTART_CMD, when set, is run in the middle of the conversation: it restarts the server.
import * as sdk from "matrix-js-sdk";

import {
    assert, begin, close, connect, decryptAttachment, encryptAttachment, eventually, fetchMedia, main, picture, quiet,
    register, restartServer, same, say, shows, texts, BASE_URL,
} from "./lib.mjs";

const run = Math.random().toString(36).slice(2, 8);
const PASSWORD = `correct horse ${run}`;

await main(async () => {
    begin("register two users");
    const aliceSession = await register(`alice-${run}`, PASSWORD);
    const bobSession = await register(`bob-${run}`, PASSWORD);
    const aliceKeys = {};
    const alice = await connect(aliceSession, aliceKeys);
    let bob = await connect(bobSession);

    begin("bootstrap cross-signing, secret storage and key backup");
    const recoveryKey = await secure(alice, PASSWORD);
    aliceKeys.any = recoveryKey.privateKey;
    await secure(bob, PASSWORD);

    const roomId = await encryptedRoom(alice, bob);
    const told = await talkBothWays(alice, bob, roomId);
    await sendPicture(alice, bob, roomId);
    await receiptsAndTyping(alice, bob, roomId);
    bob = await missWhileOffline(alice, bob, bobSession, roomId, told);
    await goOnAfterRestart(alice, bob, roomId, told);
    const second = await freshDevice(alice, recoveryKey, roomId, told);
    await trust(alice, second, bob);
    await talkToNewDevice(alice, bob, second, roomId, told);

    for (const client of [alice, bob, second]) client.stopClient();
});

/** Makes cross-signing keys (answering a password prompt if there is one), secret storage and a backup. */
async function secure(client, password) {
    const crypto = client.getCrypto();
    await crypto.bootstrapCrossSigning({
        authUploadDeviceSigningKeys: async (request) => {
            try {
                await request(null);
            } catch (error) {
                if (error.httpStatus !== 401) throw error;
                const identifier = { type: "m.id.user", user: client.getUserId() };
                await request({ type: "m.login.password", identifier, password, session: error.data.session });
            }
        },
    });
    const recoveryKey = await crypto.createRecoveryKeyFromPassphrase();
    await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => recoveryKey, setupNewKeyBackup: true });
    assert(await crypto.isCrossSigningReady(), "cross-signing is not ready");
    assert(await crypto.isSecretStorageReady(), "secret storage is not ready");
    assert(await crypto.getActiveSessionBackupVersion(), "no key backup is active");
    return recoveryKey;
}

async function encryptedRoom(alice, bob) {
    begin("create an encrypted room with a picture, invite, join");
    const avatar = await alice.uploadContent(picture(320, 240), { type: "image/png", name: "room.png" });
    const { room_id: roomId } = await alice.createRoom({
        preset: sdk.Preset.PrivateChat,
        name: "two people",
        initial_state: [
            { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            { type: "m.room.avatar", state_key: "", content: { url: avatar.content_uri } },
        ],
    });
    const [server, media] = avatar.content_uri.slice("mxc://".length).split("/");
    const thumbnail = await fetchMedia(alice, `thumbnail/${server}/${media}?width=32&height=32&method=crop`);
    assert(thumbnail.type.startsWith("image/"), `a thumbnail of type ${thumbnail.type}`);
    assert(thumbnail.bytes.length > 50 && thumbnail.bytes.length < 20_000, "the thumbnail has an odd size");

    await alice.invite(roomId, bob.getUserId());
    await eventually("bob sees the invitation", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    same(bob.getRoom(roomId).name, "two people", "the name in the invitation");
    await bob.joinRoom(roomId);
    for (const client of [alice, bob]) {
        await eventually("both are joined", () => client.getRoom(roomId)?.getJoinedMemberCount() === 2);
        await eventually("the room is known to be encrypted", () => client.getCrypto().isEncryptionEnabledInRoom(roomId));
    }
    same(bob.getRoom(roomId).currentState.getStateEvents("m.room.avatar", "").getContent().url, avatar.content_uri, "avatar");
    return roomId;
}

async function talkBothWays(alice, bob, roomId) {
    begin("talk both ways, decrypted on both sides");
    const told = [];
    for (const [speaker, body] of [[alice, "hello bob"], [bob, "hello alice"], [alice, "how are you?"], [bob, "well 🐈"]]) {
        await say(speaker, roomId, body);
        told.push(body);
        for (const listener of [alice, bob]) await shows(listener, roomId, told);
    }
    return told;
}

async function sendPicture(alice, bob, roomId) {
    begin("send an encrypted picture, download and decrypt it");
    const plain = picture(64, 48);
    const { cipher, file } = await encryptAttachment(plain);
    const { content_uri: url } = await alice.uploadContent(cipher, { type: "application/octet-stream", includeFilename: false });
    await alice.sendMessage(roomId, {
        msgtype: "m.image", body: "a.png", info: { mimetype: "image/png", w: 64, h: 48, size: plain.length }, file: { ...file, url },
    });
    const isPicture = (event) => event.getContent().msgtype === "m.image";
    const event = await eventually("bob sees the picture", () => bob.getRoom(roomId).getLiveTimeline().getEvents().find(isPicture));
    const received = event.getContent().file;
    const { bytes } = await fetchMedia(bob, `download/${received.url.slice("mxc://".length)}`);
    assert((await decryptAttachment(bytes, received)).equals(plain), "the picture changed on its way");
}

async function receiptsAndTyping(alice, bob, roomId) {
    begin("read receipts and typing are seen");
    const last = bob.getRoom(roomId).getLiveTimeline().getEvents().at(-1);
    await bob.sendReadReceipt(last);
    await eventually("alice sees bob's receipt", () => alice.getRoom(roomId).getEventReadUpTo(bob.getUserId()) === last.getId());
    const typing = () => alice.getRoom(roomId).getMember(bob.getUserId()).typing;
    await bob.sendTyping(roomId, true, 20_000);
    await eventually("alice sees bob typing", typing);
    await bob.sendTyping(roomId, false, 0);
    await eventually("alice sees bob stop", () => !typing());
}

async function missWhileOffline(alice, bob, session, roomId, told) {
    begin("one goes offline, misses more than a sync holds, and catches up in order");
    await close(bob);
    const missed = Array.from({ length: 35 }, (_, index) => `missed ${index}`);
    for (const body of missed) await say(alice, roomId, body);
    told.push(...missed);
    bob = await connect(session);
    const room = bob.getRoom(roomId);
    await eventually("bob holds the newest message", () => texts(bob, roomId).at(-1) === missed.at(-1));
    await eventually("bob paged back to the first message", async () => {
        if (texts(bob, roomId)[0] === told[0]) return true;
        await bob.scrollback(room, 50);
        return false;
    });
    await shows(bob, roomId, told);
    await shows(alice, roomId, told);
    return bob;
}

async function goOnAfterRestart(alice, bob, roomId, told) {
    begin("restart the server in the middle of the conversation");
    await say(alice, roomId, "before the restart");
    told.push("before the restart");
    if (!restartServer()) console.log("  (COFACTOR_RESTART_CMD is not set: the server stays up)");
    for (const client of [alice, bob]) client.retryImmediately();
    for (const [speaker, body] of [[alice, "after the restart"], [bob, "still here"]]) {
        await say(speaker, roomId, body);
        told.push(body);
        // A client shows its own message where it stood when it was sent, so each hears the other out first.
        for (const client of [alice, bob]) await shows(client, roomId, told, 60);
    }
}

async function freshDevice(alice, recoveryKey, roomId, told) {
    begin("a second device logs in, restores the backup and reads the history");
    await eventually("alice's keys are in the backup", async () => {
        // The SDK remembers what it was once told; the server is asked each time.
        const info = await alice.http.authedRequest(sdk.Method.Get, "/room_keys/version");
        return info.count >= 2 && info.etag;
    }, 60);
    const anonymous = sdk.createClient({ baseUrl: BASE_URL, logger: quiet });
    const session = await anonymous.loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: alice.getUserId() },
        password: PASSWORD,
        initial_device_display_name: "second",
    });
    assert(session.device_id !== alice.getDeviceId(), "the second login got the first device");
    const second = await connect(session, { any: recoveryKey.privateKey });
    await eventually("alice hears of the new device", async () => {
        const devices = await alice.getCrypto().getUserDeviceInfo([alice.getUserId()]);
        return devices.get(alice.getUserId()).has(session.device_id);
    });
    const crypto = second.getCrypto();
    // A device that has not asked for its owner's identity yet cannot import the keys of it.
    await eventually("the second device knows the identity", () => crypto.userHasCrossSigningKeys(alice.getUserId(), true));
    await crypto.bootstrapCrossSigning({});
    await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    const restored = await crypto.restoreKeyBackup();
    assert(restored.imported >= 2, `restored ${restored.imported} of ${restored.total} keys`);
    const room = second.getRoom(roomId);
    await eventually("the second device paged back", async () => {
        if (texts(second, roomId)[0] === told[0]) return true;
        await second.scrollback(room, 100);
        return false;
    });
    await shows(second, roomId, told);
    return second;
}

async function trust(alice, second, bob) {
    begin("devices are trusted through cross-signing");
    const status = (client, user, device) => client.getCrypto().getDeviceVerificationStatus(user, device);
    const userId = alice.getUserId();
    await eventually("the first device trusts the second", async () =>
        (await status(alice, userId, second.getDeviceId()))?.crossSigningVerified);
    await eventually("the second device trusts the first", async () =>
        (await status(second, userId, alice.getDeviceId()))?.crossSigningVerified);
    await eventually("bob sees that alice signed the second device", async () =>
        (await status(bob, userId, second.getDeviceId()))?.signedByOwner);
    assert(!(await status(bob, userId, second.getDeviceId())).crossSigningVerified, "bob never verified alice");
}

async function talkToNewDevice(alice, bob, second, roomId, told) {
    begin("all three devices go on talking");
    for (const [speaker, body] of [[bob, "for every device"], [second, "from the second"], [alice, "goodbye"]]) {
        await say(speaker, roomId, body);
        told.push(body);
        for (const client of [alice, bob, second]) await shows(client, roomId, told);
    }
}
