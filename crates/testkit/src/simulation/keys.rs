//! One-time keys: one device uploads, others claim.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use cofactor_wire::user_command::{UserCommand, UserReply};
use ruma::{OwnedUserId, device_id};

use super::World;

/// Uploads of one run.
const UPLOADS: usize = 4;

/// Keys of one upload.
const KEYS: usize = 3;

/// Claims while uploads go on.
const CLAIMS: usize = 8;

const ALGORITHM: &str = "signed_curve25519";

/// Uploads keys, each until it is acknowledged.
pub(super) async fn upload(world: Rc<World>, person: OwnedUserId) {
    for number in 0..UPLOADS {
        world.pause(150).await;
        let one_time: BTreeMap<String, Bytes> =
            (0..KEYS).map(|key| (format!("{ALGORITHM}:{number}.{key}"), Bytes::from_static(b"{}"))).collect();
        let names: Vec<_> = one_time.keys().cloned().collect();
        world.seen.borrow_mut().keys.tried.extend(names.iter().cloned());
        let device_id = device_id!("PHONE").to_owned();
        let command = UserCommand::UploadKeys { device_id, device_keys: None, one_time, fallback: BTreeMap::new() };
        world.insist(async |node| node.core.users.ask(&person, command.clone()).await).await;
        world.seen.borrow_mut().keys.acknowledged.extend(names);
    }
}

/// Claims keys of `person`.
pub(super) async fn claim(world: Rc<World>, person: OwnedUserId) {
    for _ in 0..CLAIMS {
        world.pause(150).await;
        claim_one(&world, &person).await;
    }
}

/// Claims keys of `person` until there is none.
pub(super) async fn claim_rest(world: &World, person: &OwnedUserId) {
    while claim_one(world, person).await {}
}

/// Claims one key; whether there was one. A claim whose answer is lost may have taken one with it.
async fn claim_one(world: &World, person: &OwnedUserId) -> bool {
    let command = UserCommand::ClaimKeys { keys: vec![(device_id!("PHONE").to_owned(), ALGORITHM.to_owned())] };
    let asked = Cell::new(0);
    let ask = async |node: Rc<super::SimNode>| {
        asked.set(asked.get() + 1);
        node.core.users.ask(person, command.clone()).await
    };
    let reply = world.insist(ask).await;
    let mut seen = world.seen.borrow_mut();
    seen.keys.unanswered += asked.get() - 1;
    let UserReply::Claimed(claimed) = reply else { return false };
    seen.keys.claimed.extend(claimed.iter().map(|(_, key_id, _)| key_id.clone()));
    !claimed.is_empty()
}
