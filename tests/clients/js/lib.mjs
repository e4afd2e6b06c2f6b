// What the conversation needs around matrix-js-sdk: registration, clients, waiting, sending surely, pictures.
import { execSync } from "node:child_process";
import { deflateSync } from "node:zlib";

import "fake-indexeddb/auto";
import loglevel from "loglevel";
import * as sdk from "matrix-js-sdk";

export const BASE_URL = process.argv[2] ?? process.env.COFACTOR_URL ?? "http://127.0.0.1:8008";
export const TOKEN = process.argv[3] ?? process.env.COFACTOR_TOKEN ?? "open-sesame";
const RESTART = process.env.COFACTOR_RESTART_CMD;

for (const logger of Object.values(loglevel.getLoggers())) logger.setLevel("silent");
loglevel.setLevel("silent");
// The SDK's crypto writes its trace to the console; only failures of this script are of interest.
for (const level of ["debug", "info", "warn", "error", "trace"]) console[level] = () => {};

const remarks = [];
const remark = (...words) => remarks.push(`${new Date().toISOString()} ${words.map((word) => word?.stack ?? word).join(" ")}`);

/** What the SDK says is of interest only when the script fails. */
export const quiet = {
    trace() {}, debug() {}, info: remark, warn: remark, error: remark,
    getChild() { return quiet; },
};

if (!Promise.withResolvers) throw new Error(`matrix-js-sdk needs Node 22 or later, this is ${process.version}`);

let step = "starting";
const requests = [];

/** `fetch`, which remembers what was asked and what became of it: said when the script fails. */
async function remember(url, options) {
    const request = { at: Date.now(), what: `${options?.method ?? "GET"} ${String(url).slice(BASE_URL.length, BASE_URL.length + 150)}` };
    requests.push(request);
    try {
        const response = await fetch(url, options);
        request.became = response.status;
        return response;
    } catch (error) {
        request.became = error.name;
        throw error;
    } finally {
        request.took = Date.now() - request.at;
    }
}

/** Names what happens next, on screen and in the message of a failure. */
export function begin(name) {
    step = name;
    console.log(`- ${name}`);
}

export function assert(condition, message) {
    if (!condition) throw new Error(message);
}

export function same(left, right, message) {
    const [a, b] = [JSON.stringify(left), JSON.stringify(right)];
    assert(a === b, `${message}: expected ${b}, got ${a}`);
}

/** Runs the whole script; says which step failed; never leaves a long poll open. */
export async function main(script) {
    const started = Date.now();
    const limit = setTimeout(() => fail(new Error("the script took more than five minutes")), 300_000);
    try {
        await script();
    } catch (error) {
        fail(error);
    }
    clearTimeout(limit);
    process.stdout.write(`matrix-js-sdk: all steps passed in ${((Date.now() - started) / 1000).toFixed(1)} s\n`);
    process.exit(0);
}

function fail(error) {
    process.stdout.write(`FAILED at "${step}": ${error?.stack ?? error}\nthe last requests, and those without an answer:\n`);
    for (const [index, { at, what, became, took }] of requests.entries()) {
        if (became !== undefined && index < requests.length - 40) continue;
        const outcome = became === undefined ? `no answer for ${Date.now() - at} ms` : `${became} after ${took} ms`;
        process.stdout.write(`  ${new Date(at).toISOString()} ${what}: ${outcome}\n`);
    }
    process.stdout.write(`the last remarks of the SDK:\n${remarks.slice(-20).map((line) => `  ${line}\n`).join("")}`);
    process.exit(1);
}

/** Asks until `ask` answers something true; fails after `seconds`. */
export async function eventually(what, ask, seconds = 30) {
    const end = Date.now() + seconds * 1000;
    let last;
    while (Date.now() < end) {
        try {
            const answer = await ask();
            if (answer) return answer;
        } catch (error) {
            last = error;
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error(`not within ${seconds} s: ${what}${last ? ` (${last})` : ""}`);
}

/** Registers through whatever flow the server offers: a token, or nothing at all. */
export async function register(localpart, password) {
    const client = sdk.createClient({ baseUrl: BASE_URL, logger: quiet, fetchFn: remember });
    const body = { username: localpart, password, initial_device_display_name: `${localpart} js` };
    let auth;
    for (let round = 0; round < 4; round++) {
        try {
            return await client.registerRequest({ ...body, auth });
        } catch (error) {
            if (error.httpStatus !== 401 || !error.data?.flows) throw error;
            const done = error.data.completed ?? [];
            const known = ["m.login.registration_token", "m.login.dummy"];
            const flow = error.data.flows.find(({ stages }) => stages.every((stage) => known.includes(stage)));
            assert(flow, `no flow that this script knows: ${JSON.stringify(error.data.flows)}`);
            const type = flow.stages.find((stage) => !done.includes(stage));
            auth = { type, session: error.data.session };
            if (type === "m.login.registration_token") auth.token = TOKEN;
        }
    }
    throw new Error("registration asks for more than four stages");
}

/**
 * A logged-in, syncing client. What it keeps lives in (simulated) IndexedDB under the name of its device, so that
 * connecting again with the same session is what closing and opening the application is.
 * `keys` holds its secret storage key once there is one.
 */
export async function connect(session, keys = {}) {
    const store = new sdk.IndexedDBStore({ indexedDB: globalThis.indexedDB, dbName: session.device_id, logger: quiet });
    const client = sdk.createClient({
        baseUrl: BASE_URL,
        userId: session.user_id,
        deviceId: session.device_id,
        accessToken: session.access_token,
        logger: quiet,
        fetchFn: remember,
        store,
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys: wanted }) => {
                const id = Object.keys(wanted).find((id) => keys[id] ?? keys.any);
                return id ? [id, keys[id] ?? keys.any] : null;
            },
            cacheSecretStorageKey: (id, _info, key) => { keys[id] = key; },
        },
    });
    await store.startup();
    await client.initRustCrypto({ useIndexedDB: true, cryptoDatabasePrefix: `crypto-${session.device_id}` });
    await client.startClient({ initialSyncLimit: 20, pollTimeout: 10_000 });
    try {
        await eventually("the first sync", () => client.isInitialSyncComplete() && client.getSyncState() === "SYNCING");
    } catch (error) {
        throw new Error(`${error.message}; the client is ${client.getSyncState()}`, { cause: client.getSyncStateData()?.error });
    }
    return client;
}

/** Closes the application: what was synced so far is kept. */
export async function close(client) {
    await client.store.save(true);
    client.stopClient();
}

/** The texts of a room as this client shows them, oldest first; an undecryptable one shows as such. */
export function texts(client, roomId) {
    const events = client.getRoom(roomId)?.getLiveTimeline().getEvents() ?? [];
    return events
        .filter((event) => event.getType() === "m.room.message" || event.isEncrypted())
        .filter((event) => event.getContent().msgtype !== "m.image")
        .map((event) => (event.isDecryptionFailure() ? "UNDECRYPTABLE" : event.getContent().body));
}

/** Waits until the client shows exactly these texts in this order: none lost, none doubled, all decrypted. */
export async function shows(client, roomId, expected, seconds = 30) {
    const wanted = JSON.stringify(expected);
    try {
        await eventually("", () => JSON.stringify(texts(client, roomId)) === wanted, seconds);
    } catch {
        throw new Error(`${client.getUserId()} shows ${JSON.stringify(texts(client, roomId))}, expected ${wanted}`);
    }
    const wire = client.getRoom(roomId).getLiveTimeline().getEvents();
    for (const event of wire.filter((event) => event.getContent().msgtype)) {
        same(event.getWireType(), "m.room.encrypted", "the server saw a message in clear");
    }
}

/** Sends a text, and sends it again under the same transaction id for as long as the server is away. */
export async function say(client, roomId, body) {
    const txnId = client.makeTxnId();
    try {
        return (await client.sendMessage(roomId, { msgtype: "m.text", body }, txnId)).event_id;
    } catch {
        const room = client.getRoom(roomId);
        const find = () => room.getLiveTimeline().getEvents().find((event) => event.getTxnId() === txnId);
        return await eventually(`sending "${body}" again`, async () => {
            const event = find();
            if (event?.status === "not_sent") return (await client.resendEvent(event, room)).event_id;
            return event?.status === null && event.getId();
        });
    }
}

/** Kills and starts the server by the command that the runner gave, if it gave one. */
export function restartServer() {
    if (RESTART) execSync(RESTART, { stdio: "ignore" });
    return Boolean(RESTART);
}

/** An authenticated GET of a media path; the answer's bytes. */
export async function fetchMedia(client, path) {
    const url = `${BASE_URL}/_matrix/client/v1/media/${path}`;
    const bare = await fetch(url);
    same(bare.status, 401, `media without a token (${path})`);
    const answer = await fetch(url, { headers: { authorization: `Bearer ${client.getAccessToken()}` } });
    same(answer.status, 200, `GET ${path}`);
    return { bytes: Buffer.from(await answer.arrayBuffer()), type: answer.headers.get("content-type") };
}

/** A PNG of one colour gradient, made here so that no picture need be shipped. */
export function picture(width, height) {
    const rows = [];
    for (let y = 0; y < height; y++) {
        const row = Buffer.alloc(1 + width * 3);
        for (let x = 0; x < width; x++) row.set([(x * 255) / width, (y * 255) / height, 128], 1 + x * 3);
        rows.push(row);
    }
    const header = Buffer.alloc(13);
    header.writeUInt32BE(width, 0);
    header.writeUInt32BE(height, 4);
    header.set([8, 2, 0, 0, 0], 8);
    const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
    return Buffer.concat([
        signature, chunk("IHDR", header), chunk("IDAT", deflateSync(Buffer.concat(rows))), chunk("IEND", Buffer.alloc(0)),
    ]);
}

function chunk(kind, data) {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const out = Buffer.alloc(body.length + 8);
    out.writeUInt32BE(data.length, 0);
    body.copy(out, 4);
    out.writeUInt32BE(crc32(body), body.length + 4);
    return out;
}

function crc32(bytes) {
    let crc = 0xffffffff;
    for (const byte of bytes) {
        crc ^= byte;
        for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return (crc ^ 0xffffffff) >>> 0;
}

/** Encrypts an attachment as the specification says (AES-CTR, v2). */
export async function encryptAttachment(plain) {
    const subtle = globalThis.crypto.subtle;
    const key = await subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const iv = new Uint8Array(16);
    globalThis.crypto.getRandomValues(iv.subarray(0, 8));
    const cipher = Buffer.from(await subtle.encrypt({ name: "AES-CTR", counter: iv, length: 64 }, key, plain));
    const hash = Buffer.from(await subtle.digest("SHA-256", cipher)).toString("base64").replace(/=+$/, "");
    const jwk = await subtle.exportKey("jwk", key);
    const base = { v: "v2", iv: Buffer.from(iv).toString("base64").replace(/=+$/, ""), hashes: { sha256: hash } };
    return { cipher, file: { ...base, key: { ...jwk, key_ops: ["encrypt", "decrypt"], ext: true } } };
}

export async function decryptAttachment(cipher, file) {
    const subtle = globalThis.crypto.subtle;
    const hash = Buffer.from(await subtle.digest("SHA-256", cipher)).toString("base64").replace(/=+$/, "");
    same(hash, file.hashes.sha256, "the ciphertext's hash");
    const key = await subtle.importKey("jwk", file.key, { name: "AES-CTR" }, false, ["decrypt"]);
    const counter = Buffer.from(file.iv, "base64");
    return Buffer.from(await subtle.decrypt({ name: "AES-CTR", counter, length: 64 }, key, cipher));
}
