//! Shards of one slice go from node to node.
//!
//! Who gives asks who shall have them first, while its own actors finish: a node that says yes looks after these shards from
//! then on, whatever becomes of the one that asked. Then one conditional write makes them its own. Where it says no, or
//! nothing, they are given back to nobody, and whoever shall have them takes them by a write of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cofactor_shard::View;
use cofactor_types::{Epoch, Fault, NodeId, ShardId};
use cofactor_wire::node::{Call, ShardCall, Target};
use futures::future::join_all;
use tokio::time::Instant;

use crate::{
    Env,
    keeper::ShardHost,
    takeover::{self, Given, Leases, Taken},
};

/// How long the actors of a slice may take to finish before it is handed over all the same.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The same for the last slices of a node that goes, when those before them have used up its time.
const DRAIN_MIN: Duration = Duration::from_millis(200);

/// How long actors are waited for altogether by a node that goes: whoever asked it to go soon kills it.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(8);

/// How long another node is waited for when it is asked to look after shards: nobody serves them meanwhile.
const ASK_MAX: Duration = Duration::from_millis(300);

/// How long another node is waited for when it is told of released shards.
const TELL_MAX: Duration = Duration::from_secs(1);

/// Lets the actors of these shards, all of one slice, finish, gives the shards to who shall have them, and tells it so. `end`:
/// when a node that goes has waited for long enough.
pub(crate) async fn give(
    env: &Env,
    host: &dyn ShardHost,
    slice: Vec<(ShardId, Epoch)>,
    view: &View,
    end: Option<Instant>,
) -> Vec<(ShardId, Epoch, Given)> {
    let Some(number) = slice.first().map(|(shard, _)| takeover::slice(*shard)) else { return Vec::new() };
    let shards: BTreeSet<ShardId> = slice.iter().map(|(shard, _)| *shard).collect();
    // Of what is in doubt nobody knows in which epoch it would be the next one's.
    let held: Vec<_> = slice.iter().filter(|(shard, epoch)| env.ownership().holds(*shard, *epoch)).copied().collect();
    shards.iter().for_each(|shard| env.ownership().set(*shard, None));
    let untouched = held.iter().filter(|(shard, epoch)| !env.ownership().is_touched(*shard, *epoch));
    let untouched = untouched.map(|(shard, _)| *shard).collect();
    let drained = async {
        tokio::select! {
            () = host.drain(&shards) => true,
            () = patience(end) => false,
        }
    };
    let (heirs, rows, drained) = tokio::join!(ask(env, held, view), takeover::read_slice(env, number), drained);
    if !drained {
        tracing::warn!(?shards, "actors did not finish in time; their shards are handed over all the same");
    }
    let given = takeover::give(env, slice, rows, &heirs, &untouched).await;
    let mut by_owner: BTreeMap<&str, Vec<ShardId>> = BTreeMap::new();
    let gone = given.iter().filter(|(.., given)| *given == Given::Away).map(|(shard, ..)| *shard);
    let mut count = 0;
    for shard in gone {
        count += 1;
        env.ownership().note_owner(shard, heirs.get(&shard).copied());
        if let Some(owner) = view.owner(shard) {
            by_owner.entry(&owner.address).or_default().push(shard);
        }
    }
    for (address, shards) in by_owner {
        tell(env, address.to_owned(), shards);
    }
    metrics::counter!("cofactor_shards_released_total").increment(count);
    given
}

/// Ends when the actors of a slice have had their time.
async fn patience(end: Option<Instant>) {
    let end = async {
        match end {
            Some(end) => tokio::join!(tokio::time::sleep_until(end), tokio::time::sleep(DRAIN_MIN)),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = end => {}
        () = tokio::time::sleep(DRAIN_MAX) => {}
    }
}

/// Asks those who shall have the shards to look after them; who will have which.
async fn ask(env: &Env, shards: Vec<(ShardId, Epoch)>, view: &View) -> BTreeMap<ShardId, NodeId> {
    let mut by_owner: BTreeMap<NodeId, Vec<(ShardId, Epoch)>> = BTreeMap::new();
    for (shard, epoch) in shards {
        if let Some(owner) = view.owner(shard) {
            by_owner.entry(owner.node).or_default().push((shard, takeover::next(epoch)));
        }
    }
    let asked = by_owner.into_iter().map(|(owner, shards)| async move {
        let address = &view.member(owner)?.address;
        let heirs: Vec<_> = shards.iter().map(|(shard, _)| (*shard, owner)).collect();
        let answer = call(env, address, &ShardCall::Coming { shards }, ASK_MAX).await;
        answer
            .inspect_err(|fault| tracing::debug!(%owner, error = %fault, "shards are given to nobody in particular"))
            .ok()
            .map(|()| heirs)
    });
    join_all(asked).await.into_iter().flatten().flatten().collect()
}

/// Tells the next owner, which would notice by itself a look later.
fn tell(env: &Env, address: String, shards: Vec<ShardId>) {
    let env = env.clone();
    actix_rt::spawn(async move {
        if let Err(fault) = call(&env, &address, &ShardCall::Released { shards }, TELL_MAX).await {
            tracing::debug!(%address, error = %fault, "the next owner was not told");
        }
    });
}

async fn call(env: &Env, address: &str, said: &ShardCall, timeout: Duration) -> Result<(), Fault> {
    let Some(transport) = env.transport() else {
        return Err(Fault::unavailable("this node cannot call other nodes"));
    };
    let frame = cofactor_wire::encode(said)?;
    transport.call(address, Call { target: Target::Shards, frame, timeout, trace: None }).await.map(drop)
}

/// Takes those of the shards, all of one slice, that can be had.
pub(crate) async fn take(env: &Env, slice: Vec<ShardId>, leases: &Leases) -> Vec<(ShardId, Taken)> {
    let taken = takeover::take(env, slice, leases).await;
    for (shard, taken) in &taken {
        match taken {
            Taken::Ours(unfinished) => {
                metrics::counter!("cofactor_shards_taken_total").increment(1);
                unfinished.iter().for_each(|entity| env.wake(entity));
            }
            Taken::Held | Taken::Missed => {}
            Taken::Failed(error) | Taken::Doubtful(_, error) => {
                tracing::warn!(%shard, %error, "a shard could not be taken; trying again");
            }
        }
    }
    taken
}
