//! The token that `/sync` hands to clients.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{EntityHash, EntityId, Position, limits::TOKEN_EXCEPTIONS_MAX};

/// One position `T`, plus the few entities already delivered beyond it.
///
/// `T` is the lowest closed position over the shards of the user's entities: nothing at or below it can still appear.
/// The lower bound of what an entity still has to deliver is its exception, or `T`. Nothing about a token is stored;
/// any sync worker serves any token, and the same token asked twice gives the same events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncToken {
    base: Position,
    to_device: Position,
    exceptions: BTreeMap<EntityHash, Position>,
}

/// Why a string is not a token of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The form is wrong: another server's token, or a cut one.
    #[error("the token was not made by this server")]
    Malformed,
}

/// The first character tells the version, so that later releases may change the form and still read this one.
const VERSION_1: char = 's';

impl SyncToken {
    /// A token that says: everything up to `base` was delivered.
    pub fn new(base: Position) -> Self {
        Self { base, to_device: base, exceptions: BTreeMap::new() }
    }

    /// The position up to which every entity was delivered.
    pub fn base(&self) -> Position {
        self.base
    }

    /// The position up to which the device's to-device messages were delivered. They come in bounded portions, so it may be
    /// below the base.
    pub fn to_device(&self) -> Position {
        self.to_device
    }

    /// Sets [`Self::to_device`].
    pub fn set_to_device(&mut self, position: Position) {
        self.to_device = position;
    }

    /// Notes that `entity` was delivered up to `position`; nothing is kept unless that is beyond the base.
    pub fn deliver(&mut self, entity: &EntityId, position: Position) {
        self.deliver_hash(entity.hash64(), position);
    }

    /// As [`Self::deliver`], by hash.
    pub fn deliver_hash(&mut self, entity: EntityHash, position: Position) {
        if position > self.base {
            let known = self.exceptions.entry(entity).or_insert(position);
            *known = position.max(*known);
        }
    }

    /// The position up to which `entity` was delivered.
    pub fn lower_bound(&self, entity: &EntityId) -> Position {
        self.lower_bound_hash(entity.hash64())
    }

    /// As [`Self::lower_bound`], by hash.
    pub fn lower_bound_hash(&self, entity: EntityHash) -> Position {
        self.exceptions.get(&entity).copied().unwrap_or(self.base)
    }

    /// The entities delivered beyond the base.
    pub fn exceptions(&self) -> impl Iterator<Item = (EntityHash, Position)> + '_ {
        self.exceptions.iter().map(|(entity, position)| (*entity, *position))
    }

    /// How many exceptions there are.
    pub fn exceptions_len(&self) -> usize {
        self.exceptions.len()
    }

    /// The highest position delivered for any entity.
    pub fn highest(&self) -> Position {
        self.exceptions.values().copied().max().unwrap_or_default().max(self.base)
    }

    /// Raises the base, dropping the exceptions that it now covers. A lower base is ignored: tokens are monotone.
    pub fn raise(&mut self, base: Position) {
        if base > self.base {
            self.base = base;
            self.exceptions.retain(|_, position| *position > base);
        }
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(10 + self.exceptions.len() * 12);
        put_varint(&mut bytes, self.base.0);
        put_varint(&mut bytes, zigzag(self.to_device.0.wrapping_sub(self.base.0)));
        for (entity, position) in &self.exceptions {
            bytes.extend_from_slice(&entity.0.to_be_bytes());
            put_varint(&mut bytes, position.0 - self.base.0);
        }
        write!(f, "{VERSION_1}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for SyncToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.strip_prefix(VERSION_1).ok_or(TokenError::Malformed)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Malformed)?;
        let mut rest = bytes.as_slice();
        let base = take_varint(&mut rest)?;
        let to_device = base.wrapping_add(unzigzag(take_varint(&mut rest)?));
        let mut exceptions = BTreeMap::new();
        while !rest.is_empty() {
            let (hash, tail) = rest.split_first_chunk::<8>().ok_or(TokenError::Malformed)?;
            rest = tail;
            let beyond = take_varint(&mut rest)?;
            let position = base.checked_add(beyond).filter(|_| beyond > 0).ok_or(TokenError::Malformed)?;
            exceptions.insert(EntityHash(u64::from_be_bytes(*hash)), Position(position));
            if exceptions.len() > TOKEN_EXCEPTIONS_MAX {
                return Err(TokenError::Malformed);
            }
        }
        Ok(Self { base: Position(base), to_device: Position(to_device), exceptions })
    }
}

/// Small distances in either direction become small numbers.
fn zigzag(distance: u64) -> u64 {
    (distance << 1) ^ (((distance as i64) >> 63) as u64)
}

fn unzigzag(coded: u64) -> u64 {
    (coded >> 1) ^ (coded & 1).wrapping_neg()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, TokenError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first().ok_or(TokenError::Malformed)?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(TokenError::Malformed);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{EntityKind, limits::HEARTBEAT_MS};

    proptest! {
        #[test]
        fn token_round_trips(base in any::<u32>(), to_device in any::<u64>(), entities in proptest::collection::btree_map(any::<u64>(), 1_u64..1_000_000, 0..50)) {
            let mut token = SyncToken::new(Position(u64::from(base) << 20));
            for (hash, beyond) in entities {
                token.deliver_hash(EntityHash(hash), Position((u64::from(base) << 20) + beyond));
            }
            token.set_to_device(Position(to_device));
            prop_assert_eq!(token.to_string().parse::<SyncToken>(), Ok(token));
        }

        #[test]
        fn forged_tokens_never_panic(text in ".{0,200}") {
            let _ = text.parse::<SyncToken>();
            let _ = format!("s{text}").parse::<SyncToken>();
        }
    }

    #[test]
    fn raising_the_base_drops_only_what_it_covers() {
        let mut token = SyncToken::new(Position(10));
        token.deliver_hash(EntityHash(1), Position(15));
        token.deliver_hash(EntityHash(2), Position(25));
        token.deliver_hash(EntityHash(3), Position(9));
        token.raise(Position(20));
        assert_eq!(token.exceptions().collect::<Vec<_>>(), [(EntityHash(2), Position(25))]);
        assert_eq!(token.lower_bound_hash(EntityHash(1)), Position(20));
        token.raise(Position(5));
        assert_eq!(token.base(), Position(20));
    }

    #[test]
    fn an_idle_account_has_a_token_of_one_number() {
        let token = SyncToken::new(Position(1_790_000_000_000_000));
        assert!(token.to_string().len() <= 18, "{token}");
    }

    /// The token of an account in 1,000 rooms of which `active` had an event since the last heartbeat but one.
    fn of_a_busy_account(active: u64) -> SyncToken {
        let base = 1_790_000_000_000_000;
        let mut token = SyncToken::new(Position(base));
        // To-device messages come in portions: the position may be anywhere below the base.
        token.set_to_device(Position(base - 3_600_000_000));
        for room in 0..active {
            let hash = EntityHash(u64::MAX / 1_000 * (room + 1));
            token.deliver_hash(hash, Position(base + 2 * HEARTBEAT_MS * 1_000 - room));
        }
        token
    }

    #[test]
    fn a_token_of_an_account_in_1000_rooms_has_less_than_100_bytes() {
        // Nothing of the rooms that are silent is in it, however many they are.
        assert!(of_a_busy_account(0).to_string().len() <= 22);
        // Between two heartbeats, five rooms of one account: at fifty events a second in its rooms.
        assert!(of_a_busy_account(5).to_string().len() < 100, "{}", of_a_busy_account(5));
    }

    #[test]
    fn a_token_grows_by_15_bytes_for_each_active_room_up_to_a_bound() {
        let bytes = |active| of_a_busy_account(active).to_string().len();
        assert!(bytes(200) - bytes(100) <= 1_500);
        assert!(bytes(TOKEN_EXCEPTIONS_MAX as u64) < 4_096);
    }

    #[test]
    fn tokens_at_ten_events_a_second_in_1000_rooms_have_less_than_100_bytes() {
        // Ten events a second, each answered at once; what is older than two heartbeats is closed.
        let rooms: Vec<EntityId> =
            (0..1_000).map(|room| EntityId::new(EntityKind::Room, format!("!{room}:x"))).collect();
        let mut random = 1_u64;
        let mut next = |below: u64| {
            // Knuth's MMIX generator; the high bits are the good ones.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut now = 1_790_000_000_000_000;
        let mut token = SyncToken::new(Position(now));
        let (mut longest, mut long) = (0, 0);
        for _ in 0..100_000 {
            // Between two events, 100 ms on average.
            now += next(200_000);
            token.raise(Position(now / 100_000 * 100_000 - 100_000));
            token.deliver(&rooms[next(1_000) as usize], Position(now));
            let bytes = token.to_string().len();
            longest = bytes.max(longest);
            long += u32::from(bytes >= 100);
        }
        assert!(long < 1_000, "{long} of 100,000 tokens have 100 bytes or more");
        assert!(longest < 250, "{longest} bytes");
    }
}
