//! The state tree: shape, difference, storage.

use std::collections::{BTreeMap, HashMap};

use cofactor_room::{
    NodeId, SnapshotPolicy, StateEntry, StateTree,
    state::{StoreAs, decode_changes, encode_changes},
};
use proptest::prelude::*;
use ruma::{EventId, OwnedEventId};

fn hash_id(number: u64) -> OwnedEventId {
    use base64::Engine;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    EventId::new_v2_or_v3(&base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)).unwrap()
}

fn entry(key: u16, value: u64) -> StateEntry {
    let event_type = ["m.room.member", "m.room.topic", "org.example.custom"][usize::from(key % 3)];
    StateEntry::new(event_type, &format!("@user{key}:a.test"), hash_id(value), value)
}

type Model = BTreeMap<(String, String), (OwnedEventId, u64)>;

fn model_of(tree: &StateTree) -> Model {
    tree.iter()
        .map(|e| ((e.event_type().to_owned(), e.state_key().to_owned()), (e.event_id().to_owned(), e.position())))
        .collect()
}

/// Inserts (true) and removals (false) of keys out of a small range, so that they collide.
fn operations() -> impl Strategy<Value = Vec<(bool, u16, u64)>> {
    prop::collection::vec((prop::bool::weighted(0.7), 0_u16..300, 0_u64..50), 0..400)
}

fn build(operations: &[(bool, u16, u64)]) -> (StateTree, Model) {
    let (mut tree, mut model) = (StateTree::new(), Model::new());
    for (is_insert, key, value) in operations {
        let entry = entry(*key, *value);
        let slot = (entry.event_type().to_owned(), entry.state_key().to_owned());
        if *is_insert {
            let expected = model.insert(slot, (entry.event_id().to_owned(), *value)).map(|(id, _)| id);
            assert_eq!(tree.insert(entry).map(|old| old.event_id().to_owned()), expected);
        } else {
            let removed = tree.remove(&slot.0, &slot.1).is_some();
            assert_eq!(removed, model.remove(&slot).is_some());
        }
    }
    (tree, model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_behaves_as_a_sorted_map(operations in operations()) {
        let (tree, model) = build(&operations);
        prop_assert_eq!(tree.len(), model.len());
        prop_assert_eq!(model_of(&tree), model.clone());
        let keys: Vec<_> = tree.iter().map(|e| (e.event_type().to_owned(), e.state_key().to_owned())).collect();
        prop_assert!(keys.is_sorted());
        for ((event_type, key), (id, _)) in &model {
            prop_assert_eq!(tree.get_str(event_type, key).unwrap().event_id(), &**id);
        }
        let topics = model.keys().filter(|key| key.0 == "m.room.topic").count();
        prop_assert_eq!(tree.iter_type("m.room.topic").count(), topics);
    }

    #[test]
    fn the_root_depends_on_the_content_and_not_on_its_history(operations in operations(), seed in any::<u64>()) {
        use rand::{SeedableRng, seq::SliceRandom};
        let (tree, _) = build(&operations);
        let mut entries: Vec<StateEntry> = tree.iter().cloned().collect();
        entries.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
        let rebuilt: StateTree = entries.into_iter().collect();
        prop_assert_eq!(tree.root_id(), rebuilt.root_id());
        prop_assert!(tree.diff(&rebuilt).is_empty());
        let mut other = rebuilt.clone();
        other.insert(entry(9, 1_000));
        prop_assert_ne!(other.root_id(), tree.root_id());
    }

    #[test]
    fn a_difference_is_exact_and_leads_from_one_state_to_the_other(a in operations(), b in operations()) {
        let ((tree_a, model_a), (tree_b, model_b)) = (build(&a), build(&b));
        let changes = tree_a.diff(&tree_b);
        let mut keys: Vec<_> = model_a.keys().chain(model_b.keys()).collect();
        keys.sort();
        keys.dedup();
        let expected: Vec<_> = keys.into_iter().filter(|key| model_a.get(*key) != model_b.get(*key)).collect();
        let found: Vec<_> = changes.iter().map(|c| (c.event_type().to_owned(), c.state_key().to_owned())).collect();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        for change in &changes {
            let key = (change.event_type().to_owned(), change.state_key().to_owned());
            prop_assert_eq!(change.before().map(|e| e.event_id().to_owned()), model_a.get(&key).map(|v| v.0.clone()));
            prop_assert_eq!(change.after().map(|e| e.event_id().to_owned()), model_b.get(&key).map(|v| v.0.clone()));
        }
        let mut walked = tree_a.clone();
        for change in decode_changes(&encode_changes(&changes)).unwrap() {
            walked.apply(&change);
        }
        prop_assert_eq!(walked.root_id(), tree_b.root_id());
        prop_assert_eq!(model_of(&walked), model_b);
        prop_assert_eq!(model_of(&tree_a), model_a);
    }

    #[test]
    fn stored_nodes_read_back_and_only_new_ones_are_emitted(a in operations(), b in operations()) {
        let mut store: HashMap<NodeId, Vec<u8>> = HashMap::new();
        let mut old = StateTree::new();
        let mut all = a;
        for part in [Vec::new(), b] {
            all.extend(part);
            let (tree, model) = build(&all);
            for (id, bytes) in tree.new_nodes_since(&old) {
                prop_assert!(store.insert(id, bytes).is_none(), "a known node was emitted again");
            }
            let read = StateTree::decode(tree.root_id(), &|id| store.get(id).cloned()).unwrap();
            prop_assert_eq!(model_of(&read), model);
            prop_assert_eq!(read.root_id(), tree.root_id());
            prop_assert_eq!(read.len(), tree.len());
            old = tree;
        }
    }

    #[test]
    fn damaged_nodes_are_refused(operations in operations(), at in any::<prop::sample::Index>(), byte in 1_u8..) {
        let (tree, _) = build(&operations);
        let mut nodes = tree.new_nodes_since(&StateTree::new());
        prop_assume!(!nodes.is_empty());
        let last = nodes.len() - 1;
        let target = at.index(nodes[last].1.len());
        nodes[last].1[target] ^= byte;
        let store: HashMap<_, _> = nodes.into_iter().collect();
        prop_assert!(StateTree::decode(tree.root_id(), &|id| store.get(id).cloned()).is_err());
    }

    #[test]
    fn damaged_changes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_changes(&bytes);
        let _ = decode_changes(&[&[1][..], &bytes].concat());
    }
}

#[test]
fn a_missing_node_is_an_error() {
    let tree: StateTree = (0..200).map(|key| entry(key, u64::from(key))).collect();
    let mut store: HashMap<_, _> = tree.new_nodes_since(&StateTree::new()).into_iter().collect();
    let victim = *store.keys().find(|id| Some(**id) != tree.root_id()).unwrap();
    store.remove(&victim);
    assert!(StateTree::decode(tree.root_id(), &|id| store.get(id).cloned()).is_err());
}

#[test]
fn ten_thousand_members_store_small_and_one_change_emits_few_nodes() {
    let mut tree = StateTree::new();
    for number in 0..10_000_u64 {
        let key = format!("@member{number}:server.example");
        tree.insert(StateEntry::new("m.room.member", &key, hash_id(number), number));
    }
    let all: usize = tree.new_nodes_since(&StateTree::new()).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(all < 900_000, "{all} bytes");
    let before = tree.clone();
    tree.insert(StateEntry::new("m.room.member", "@member77:server.example", hash_id(1 << 40), 10_000));
    let new = tree.new_nodes_since(&before);
    assert!(new.len() <= 8, "{} nodes", new.len());
    assert_eq!(before.diff(&tree).len(), 1);
}

/// A history of 2,000 changes: what the policy stores stays small beside the state events themselves.
#[test]
fn stored_state_stays_within_the_bytes_of_the_state_events() {
    // A signed membership event with a display name is larger than this.
    const EVENT_BYTES: usize = 600;
    let mut tree = StateTree::new();
    let mut stored = tree.clone();
    let mut policy = SnapshotPolicy::new();
    let (mut state_bytes, mut event_bytes, mut snapshots) = (0_usize, 0_usize, 0);
    for number in 0..2_000_u64 {
        let before = tree.clone();
        let key = format!("@member{}:server.example", (number * 7) % 1_300);
        tree.insert(StateEntry::new("m.room.member", &key, hash_id(number), number));
        let delta = encode_changes(&before.diff(&tree));
        event_bytes += EVENT_BYTES;
        state_bytes += delta.len();
        if policy.on_change(delta.len() as u64) == StoreAs::Snapshot {
            let new: usize = tree.new_nodes_since(&stored).iter().map(|(_, bytes)| bytes.len() + 32).sum();
            let whole: usize = tree.new_nodes_since(&StateTree::new()).iter().map(|(_, bytes)| bytes.len()).sum();
            state_bytes += new;
            policy.on_snapshot(whole as u64);
            stored = tree.clone();
            snapshots += 1;
        }
    }
    assert!((3..40).contains(&snapshots), "{snapshots} snapshots");
    assert!(state_bytes + event_bytes <= 2 * event_bytes, "{state_bytes} bytes of state, {event_bytes} of events");
    assert!(state_bytes * 100 <= event_bytes * 130, "{state_bytes} bytes of state, {event_bytes} of events");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The stored forms of version 1, which must be read for ever. A change of these bytes needs a new form version.
#[test]
fn the_stored_forms_of_version_one_do_not_change() {
    let ids = [hash_id(1), EventId::parse("$text:a.test").unwrap(), hash_id(3)];
    let mut tree = StateTree::new();
    tree.insert(StateEntry::new("m.room.member", "@a:a.test", ids[0].clone(), 300));
    tree.insert(StateEntry::new("org.example.x", "", ids[1].clone(), 1));
    let before = tree.clone();
    tree.insert(StateEntry::new("m.room.topic", "", ids[2].clone(), 2));
    tree.remove("org.example.x", "");
    let changes = encode_changes(&before.diff(&tree));
    let nodes = before.new_nodes_since(&StateTree::new());
    assert_eq!(hex(&changes), GOLDEN_CHANGES);
    assert_eq!(nodes.len(), 1);
    assert_eq!(hex(&nodes[0].1), GOLDEN_NODE);
    assert_eq!(before.root_id().map(|id| hex(&id)).as_deref(), Some(GOLDEN_ROOT));
}

const GOLDEN_CHANGES: &str =
    "0102010800013f74df7d2c6da6da0000000000000000000000000000000000000000000000000200000d6f72672e6578616d706c652e7800";
const GOLDEN_NODE: &str = "010002020940613a612e7465737401157c4a7fb979379e000000000000000000000000000000000000000000000000ac02000d6f72672e6578616d706c652e7800000c24746578743a612e7465737401000000";
const GOLDEN_ROOT: &str = "1b4840004be85d817e388fbc27e5835def7074b7d24a3008f8eb1f45955cfd95";
