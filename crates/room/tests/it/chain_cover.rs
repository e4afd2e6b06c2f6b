//! The chain cover index against a plain walk.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use cofactor_room::{ChainCover, chain_cover::CommonState};
use proptest::prelude::*;
use ruma::{EventId, OwnedEventId};

/// Events by number; each has a slot and cites earlier numbers.
type Graph = Vec<(u8, Vec<usize>)>;

fn id(number: usize) -> OwnedEventId {
    EventId::parse(format!("$event{number}")).unwrap()
}

fn slot(number: u8) -> (&'static str, String) {
    match number {
        0 => ("m.room.power_levels", String::new()),
        1 => ("m.room.join_rules", String::new()),
        _ => ("m.room.member", format!("@user{number}:a.test")),
    }
}

fn index(graph: &Graph) -> ChainCover {
    let mut chains = ChainCover::new();
    for (number, (slot_number, cited)) in graph.iter().enumerate() {
        let (event_type, key) = slot(*slot_number);
        let cited: Vec<_> = cited.iter().map(|cited| id(*cited)).collect();
        chains.insert(&id(number), event_type, &key, cited.iter().map(|id| &**id)).unwrap();
    }
    chains
}

fn ancestors(graph: &Graph, start: usize) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut pending = graph[start].1.clone();
    while let Some(number) = pending.pop() {
        if seen.insert(number) {
            pending.extend(&graph[number].1);
        }
    }
    seen
}

fn graphs() -> impl Strategy<Value = Graph> {
    prop::collection::vec((0_u8..8, prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 1..60).prop_map(
        |events| {
            let cite = |(number, (slot, cited)): (usize, (u8, Vec<prop::sample::Index>))| {
                let cited: BTreeSet<usize> =
                    cited.into_iter().filter(|_| number > 0).map(|index| index.index(number.max(1))).collect();
                (slot, cited.into_iter().collect())
            };
            events.into_iter().enumerate().map(cite).collect()
        },
    )
}

/// Shares the events of a fixed set.
struct Common(BTreeSet<OwnedEventId>);

impl CommonState for Common {
    fn contains(&self, _: &str, _: &str, event_id: &EventId) -> bool {
        self.0.contains(event_id)
    }

    fn all(&self) -> Vec<OwnedEventId> {
        self.0.iter().cloned().collect()
    }
}

fn numbers(ids: impl AsRef<[OwnedEventId]>) -> BTreeSet<usize> {
    let ids = ids.as_ref();
    let count = ids.len();
    let set: BTreeSet<usize> = ids.iter().map(|id| id.as_str().trim_start_matches("$event").parse().unwrap()).collect();
    assert_eq!(set.len(), count, "an event was named twice");
    set
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reachability_equals_the_walk(graph in graphs()) {
        let chains = index(&graph);
        for event in 0..graph.len() {
            let expected = ancestors(&graph, event);
            for target in 0..graph.len() {
                prop_assert_eq!(chains.reaches(&id(event), &id(target)).unwrap(), expected.contains(&target));
            }
            prop_assert_eq!(numbers(chains.auth_chain([&*id(event)]).unwrap()), expected);
        }
    }

    #[test]
    fn the_auth_difference_equals_the_walk_also_with_common_state(
        graph in graphs(),
        sets in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..5), 2..4),
        common in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let chains = index(&graph);
        let pick = |list: &[prop::sample::Index]| -> BTreeSet<usize> {
            list.iter().map(|index| index.index(graph.len())).collect()
        };
        let common = pick(&common);
        let sets: Vec<BTreeSet<usize>> = sets.iter().map(|set| pick(set)).collect();
        let full: Vec<BTreeSet<usize>> = sets
            .iter()
            .map(|set| set.iter().chain(&common).flat_map(|event| ancestors(&graph, *event)).collect())
            .collect();
        let union: BTreeSet<usize> = full.iter().flatten().copied().collect();
        let expected: BTreeSet<usize> =
            union.into_iter().filter(|event| !full.iter().all(|chain| chain.contains(event))).collect();
        let ids: Vec<Vec<OwnedEventId>> = sets.iter().map(|set| set.iter().map(|n| id(*n)).collect()).collect();
        let refs: Vec<Vec<&EventId>> = ids.iter().map(|set| set.iter().map(|id| &**id).collect()).collect();
        let common = Common(common.into_iter().map(id).collect());
        prop_assert_eq!(numbers(chains.auth_chain_difference(&refs, &common).unwrap()), expected);
    }

    #[test]
    fn the_subgraph_equals_all_paths(graph in graphs(), set in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let chains = index(&graph);
        let set: BTreeSet<usize> = set.iter().map(|index| index.index(graph.len())).collect();
        let below: BTreeSet<usize> =
            set.iter().flat_map(|event| ancestors(&graph, *event)).chain(set.iter().copied()).collect();
        let is_above = |event: &usize| set.contains(event) || ancestors(&graph, *event).iter().any(|a| set.contains(a));
        let expected: BTreeSet<usize> = below.into_iter().filter(is_above).collect();
        let ids: Vec<OwnedEventId> = set.into_iter().map(id).collect();
        prop_assert_eq!(numbers(chains.subgraph(ids.iter().map(|id| &**id)).unwrap()), expected);
    }
}

#[test]
fn an_event_that_cites_an_unknown_one_is_refused_and_changes_nothing() {
    let mut chains = ChainCover::new();
    assert!(chains.insert(&id(1), "m.room.member", "@a:a.test", [&*id(0)]).is_err());
    assert!(chains.is_empty());
    assert!(!chains.contains(&id(1)));
}

/// Event 1 has thousands of descendants, none of them shared, so that looking for a shared one above it is given up.
#[test]
fn a_common_state_that_few_probes_do_not_find_is_asked_as_a_whole() {
    let mut graph: Graph = vec![(0, vec![]), (1, vec![0])];
    graph.extend((0..5_000).map(|_| (7, vec![1])));
    let chains = {
        let mut chains = ChainCover::new();
        for (number, (_, cited)) in graph.iter().enumerate() {
            let cited: Vec<_> = cited.iter().map(|cited| id(*cited)).collect();
            let key = number.to_string();
            chains.insert(&id(number), "m.room.member", &key, cited.iter().map(|id| &**id)).unwrap();
        }
        chains
    };
    let (left, right) = (id(2), id(0));
    for (common, expected) in [(vec![], vec![0, 1]), (vec![1], vec![1]), (vec![3], vec![])] {
        let common = Common(common.into_iter().map(id).collect());
        let difference = chains.auth_chain_difference(&[vec![&left], vec![&right]], &common).unwrap();
        assert_eq!(numbers(difference), expected.into_iter().collect());
    }
}

/// Builds a graph of 100,000 events and asks it the three questions, within a budget that a walk for each event, or
/// memory for each pair, could not meet.
fn within_budget(name: &str, cited: impl Fn(usize) -> Vec<usize>, slot_of: impl Fn(usize) -> (&'static str, String)) {
    const EVENTS: usize = 100_000;
    let started = Instant::now();
    let mut chains = ChainCover::new();
    for number in 0..EVENTS {
        let (event_type, key) = slot_of(number);
        let cited: Vec<_> = cited(number).into_iter().map(id).collect();
        chains.insert(&id(number), event_type, &key, cited.iter().map(|id| &**id)).unwrap();
    }
    let last = id(EVENTS - 1);
    let other = id(EVENTS - 2);
    assert!(chains.reaches(&last, &id(0)).unwrap());
    let common = Common(BTreeSet::from([id(EVENTS - 3)]));
    chains.auth_chain_difference(&[vec![&last], vec![&other]], &common).unwrap();
    chains.subgraph([&*last, &*other, &*id(0)]).unwrap();
    let (chain_count, link_count) = chains.size();
    assert!(link_count <= 10 * EVENTS, "{name}: {link_count} links in {chain_count} chains");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{name}: {took:?}");
}

#[test]
fn a_hundred_thousand_events_in_a_line_stay_within_the_budget() {
    within_budget(
        "line of power levels",
        |n| n.checked_sub(1).into_iter().collect(),
        |_| ("m.room.power_levels", String::new()),
    );
    within_budget(
        "line of invitations",
        |n| n.checked_sub(1).into_iter().collect(),
        |n| ("m.room.member", format!("@user{n}:a.test")),
    );
}

#[test]
fn a_hundred_thousand_events_side_by_side_stay_within_the_budget() {
    within_budget(
        "wide",
        |n| if n == 0 { vec![] } else { vec![0] },
        |n| if n == 0 { ("m.room.create", String::new()) } else { ("m.room.member", format!("@user{n}:a.test")) },
    );
}

#[test]
fn a_hundred_thousand_braided_events_stay_within_the_budget() {
    within_budget(
        "braid",
        |n| [1, 7, 50, 101, 997].iter().filter_map(|back| n.checked_sub(*back)).collect(),
        |n| ("m.room.member", format!("@user{}:a.test", n % 1_000)),
    );
}

#[test]
fn memberships_of_a_large_room_make_one_chain_each_and_no_more_links_than_citations() {
    let mut chains = ChainCover::new();
    chains.insert(&id(0), "m.room.create", "", []).unwrap();
    chains.insert(&id(1), "m.room.power_levels", "", [&*id(0)]).unwrap();
    chains.insert(&id(2), "m.room.join_rules", "", [&*id(0), &*id(1)]).unwrap();
    let mut own: HashMap<usize, usize> = HashMap::new();
    for number in 3..3_003 {
        let member = number % 1_000;
        let mut cited = vec![id(0), id(1), id(2)];
        cited.extend(own.insert(member, number).map(id));
        let key = format!("@user{member}:a.test");
        chains.insert(&id(number), "m.room.member", &key, cited.iter().map(|id| &**id)).unwrap();
    }
    let (chain_count, link_count) = chains.size();
    assert_eq!(chain_count, 1_003);
    assert_eq!(link_count, 3 + 3 * 1_000);
}
