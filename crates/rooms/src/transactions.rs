//! Transaction ids: the same request gives the same event.
//! <https://spec.matrix.org/v1.19/client-server-api/#transaction-identifiers>

use std::collections::{HashMap, VecDeque};

use cofactor_types::{Position, limits::TRANSACTION_ID_LIFE_US};
use cofactor_wire::room::Transaction;
use ruma::{OwnedEventId, OwnedUserId};

/// Transactions remembered in one room; a room with more within a day forgets the oldest.
pub(crate) const TRANSACTIONS_MAX: usize = 10_000;

type TransactionKey = (OwnedUserId, String, Transaction);

/// The transactions of the last day. They stand in the log's records, so they survive whatever happens to the actor.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    events: HashMap<TransactionKey, (OwnedEventId, Position)>,
    order: VecDeque<(TransactionKey, Position)>,
}

impl Transactions {
    pub(crate) fn get(
        &self,
        sender: &OwnedUserId,
        event_type: &str,
        transaction: &Transaction,
    ) -> Option<(OwnedEventId, Position)> {
        self.events.get(&(sender.clone(), event_type.to_owned(), transaction.clone())).cloned()
    }

    /// Notes a transaction; must be called in the order of positions.
    pub(crate) fn note(
        &mut self,
        sender: &OwnedUserId,
        event_type: &str,
        transaction: &Transaction,
        event_id: OwnedEventId,
        position: Position,
    ) {
        let key = (sender.clone(), event_type.to_owned(), transaction.clone());
        self.events.insert(key.clone(), (event_id, position));
        self.order.push_back((key, position));
        let oldest = Position(position.0.saturating_sub(TRANSACTION_ID_LIFE_US));
        while self.order.len() > TRANSACTIONS_MAX || self.order.front().is_some_and(|(_, at)| *at < oldest) {
            if let Some((key, at)) = self.order.pop_front()
                && self.events.get(&key).is_some_and(|(_, known)| *known == at)
            {
                self.events.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{event_id, user_id};

    use super::*;

    fn transaction(txn_id: &str) -> Transaction {
        Transaction { device_id: "DEVICE".into(), txn_id: txn_id.into() }
    }

    #[test]
    fn a_transaction_is_remembered_for_its_sender_type_and_device_until_a_day_has_passed() {
        let alice = user_id!("@alice:example.org").to_owned();
        let mut known = Transactions::default();
        known.note(&alice, "m.room.message", &transaction("1"), event_id!("$1").to_owned(), Position(1));
        assert!(known.get(&alice, "m.room.message", &transaction("1")).is_some());
        assert!(known.get(&alice, "m.reaction", &transaction("1")).is_none());
        let tomorrow = Position(2 + TRANSACTION_ID_LIFE_US);
        known.note(&alice, "m.room.message", &transaction("2"), event_id!("$2").to_owned(), tomorrow);
        assert!(known.get(&alice, "m.room.message", &transaction("1")).is_none());
        assert!(known.get(&alice, "m.room.message", &transaction("2")).is_some());
    }
}
