"""Key objects of the right shape, signed by nobody: what a server may check of them is their form."""
import itertools
import secrets
from base64 import b64encode

ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
numbers = itertools.count(1)


def base64(length=32):
    return b64encode(secrets.token_bytes(length)).decode().rstrip("=")


def device_keys(user):
    """The identity keys of a session."""
    keys = {f"curve25519:{user.device}": base64(), f"ed25519:{user.device}": base64()}
    signatures = {user.id: {f"ed25519:{user.device}": base64(64)}}
    return {"user_id": user.id, "device_id": user.device, "algorithms": ALGORITHMS, "keys": keys, "signatures": signatures}


def signed_key(user, **more):
    return {"key": base64(), "signatures": {user.id: {f"ed25519:{user.device}": base64(64)}}, **more}


def one_time_keys(user, count):
    return {f"signed_curve25519:K{next(numbers)}": signed_key(user) for _ in range(count)}


def fallback_key(user):
    return {f"signed_curve25519:F{next(numbers)}": signed_key(user, fallback=True)}
