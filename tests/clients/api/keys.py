"""Key objects as clients make them, really signed: a server may check any of it."""
import itertools
import json
import secrets
from base64 import b64encode

from nacl.signing import SigningKey

ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
numbers = itertools.count(1)


def encode(data):
    return b64encode(data).decode().rstrip("=")


def base64(length=32):
    return encode(secrets.token_bytes(length))


def canonical(content):
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


class Key:
    """An ed25519 key pair of a user, under the name of a device or of itself."""

    def __init__(self, user, name=None):
        self.user = user
        self.pair = SigningKey.generate()
        self.public = encode(bytes(self.pair.verify_key))
        self.name = f"ed25519:{name or self.public}"

    def sign(self, content):
        """The content with one signature more."""
        bare = {key: value for key, value in content.items() if key not in ("signatures", "unsigned")}
        signature = encode(self.pair.sign(canonical(bare)).signature)
        signatures = {user: dict(signed) for user, signed in content.get("signatures", {}).items()}
        signatures.setdefault(self.user.id, {})[self.name] = signature
        return {**content, "signatures": signatures}


def device_key(user):
    """The signing key of a session, the same each time it is asked for."""
    if not hasattr(user, "device_key"):
        user.device_key = Key(user, user.device)
    return user.device_key


def device_keys(user):
    """The identity keys of a session."""
    own = device_key(user)
    keys = {f"curve25519:{user.device}": base64(), own.name: own.public}
    return own.sign({"user_id": user.id, "device_id": user.device, "algorithms": ALGORITHMS, "keys": keys})


def signed_key(user, **more):
    return device_key(user).sign({"key": base64(), **more})


def one_time_keys(user, count):
    return {f"signed_curve25519:K{next(numbers)}": signed_key(user) for _ in range(count)}


def fallback_key(user):
    return {f"signed_curve25519:F{next(numbers)}": signed_key(user, fallback=True)}


class CrossSigning:
    """The three keys of a user: https://spec.matrix.org/v1.19/client-server-api/#cross-signing."""

    def __init__(self, user):
        self.master, self.self_signing, self.user_signing = Key(user), Key(user), Key(user)
        self.user = user

    def body(self, key, usage):
        return {"user_id": self.user.id, "usage": [usage], "keys": {key.name: key.public}}

    def upload(self):
        """The body of the request that makes them known."""
        return {
            "master_key": self.body(self.master, "master"),
            "self_signing_key": self.master.sign(self.body(self.self_signing, "self_signing")),
            "user_signing_key": self.master.sign(self.body(self.user_signing, "user_signing")),
        }
