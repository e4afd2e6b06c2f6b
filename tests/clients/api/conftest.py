"""Each test gets people of its own, so that no test sees another's."""
import pytest

from matrix import register


@pytest.fixture
def alice():
    return register("alice")


@pytest.fixture
def bob():
    return register("bob")


@pytest.fixture
def carol():
    return register("carol")


@pytest.fixture
def room(alice, bob):
    """A room of alice's that bob has joined."""
    room = alice.create_room(preset="private_chat", name="two", invite=[bob.id])
    bob.join(room)
    return room
