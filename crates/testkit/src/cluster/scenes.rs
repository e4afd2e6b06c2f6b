//! Scenes without trouble.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use cofactor_entity::Planted;
use cofactor_types::SyncToken;
use serde_json::Value;
use tokio::time::timeout;

use super::{MACHINES, found, people};
use crate::{lab::user, simulation::system};

/// How long the syncs of these scenes want to be held.
const HELD: Duration = Duration::from_secs(30);

/// How soon they are answered once the node ends.
const SOON: Duration = Duration::from_secs(1);

fn next_batch(answer: &Bytes) -> SyncToken {
    let answer: Value = serde_json::from_slice(answer).expect("JSON");
    answer["next_batch"].as_str().and_then(|token| token.parse().ok()).expect("a token")
}

#[test]
fn whoever_waits_through_a_node_that_leaves_is_answered_whoever_holds_the_sync() {
    system(1).block_on(async {
        let (world, _witness) = found(1, Planted::Nothing, MACHINES - 1).await;
        // So many that the sync workers of some are other nodes.
        let everybody: Vec<_> = (0..8).map(|number| user(&format!("user{number}"))).collect();
        people::prepare(&world, &everybody, 1).await;
        // By now the nodes know of each other.
        tokio::time::sleep(HELD / 10).await;
        let node = Rc::clone(&world.nodes()[0]);
        let mut waiting = Vec::new();
        for person in &everybody {
            let first = people::sync_request(person, None, Duration::ZERO);
            let answer = node.core.sync.sync(first).await.expect("an answer");
            let request = people::sync_request(person, Some(next_batch(&answer)), HELD);
            let node = Rc::clone(&node);
            waiting.push(actix_rt::spawn(async move {
                let answer = node.core.sync.sync(request).await.expect("an answer");
                next_batch(&answer)
            }));
        }
        tokio::time::sleep(HELD / 10).await;
        assert!(waiting.iter().all(|one| !one.is_finished()), "all wait");
        assert!(world.nodes()[1..].iter().any(|node| node.core.sync.load().expect("a service").waiting > 0));
        node.send_home();
        for one in waiting {
            timeout(SOON, one).await.expect("an answer soon").expect("no panic");
        }
    });
}
