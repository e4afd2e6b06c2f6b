//! What a viewer gets of rooms whose visibility and memberships change as they like: the same events from either end, in
//! pages of any size, and none that the specification hides. Rooms are written as rows, as their actors keep them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;

use cofactor_history::{EventFilter, History, PageRequest, PageToken, Viewpoint};
use cofactor_store::{Direction, Durability, LogKey, LogReader, Mutation, Store, model::ModelStore, record, tables};
use cofactor_types::{EntityId, Position};
use cofactor_wire::room::{EventRecord, KeyHistory, Totals, class, state_sub};
use proptest::{collection::vec, prelude::*};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, RoomId, UserId, room_id, uint, user_id};

fn the_room() -> &'static RoomId {
    room_id!("!room:example.org")
}

fn viewer() -> &'static UserId {
    user_id!("@viewer:example.org")
}

fn other() -> &'static UserId {
    user_id!("@other:example.org")
}

const VISIBILITIES: [&str; 5] = ["world_readable", "shared", "invited", "joined", "unheard-of"];
const MEMBERSHIPS: [&str; 5] = ["join", "invite", "knock", "leave", "ban"];

/// One event of a generated room.
#[derive(Clone, Copy, Debug)]
enum Step {
    Message,
    Hidden,
    Visibility(&'static str),
    Member(&'static str),
    OtherMember,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Message),
        1 => Just(Step::Hidden),
        2 => proptest::sample::select(&VISIBILITIES[..]).prop_map(Step::Visibility),
        3 => proptest::sample::select(&MEMBERSHIPS[..]).prop_map(Step::Member),
        1 => Just(Step::OtherMember),
    ]
}

/// The specification, read event by event from the room's own order.
/// <https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility>
fn visible(steps: &[Step]) -> Vec<usize> {
    let (mut visibility, mut membership) = ("shared", "leave");
    let mut seen = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let joined_later = steps[index + 1..].iter().any(|step| matches!(step, Step::Member("join")));
        let (before, was) = (visibility, membership);
        match step {
            Step::Visibility(value) => visibility = value,
            Step::Member(value) => membership = value,
            _ => {}
        }
        let allows = |visibility: &str, membership: &str| match visibility {
            "world_readable" => true,
            _ if membership == "join" => true,
            "invited" => membership == "invite",
            "joined" => false,
            _ => joined_later,
        };
        let pairs = [(before, was), (before, membership), (visibility, was), (visibility, membership)];
        if !matches!(step, Step::Hidden)
            && pairs.into_iter().any(|(visibility, membership)| allows(visibility, membership))
        {
            seen.push(index);
        }
    }
    seen
}

fn position(index: usize) -> Position {
    Position(1_000 + 10 * index as u64)
}

fn event(index: usize, step: Step) -> EventRecord {
    let (event_type, state_key) = match step {
        Step::Message | Step::Hidden => ("m.room.message", None),
        Step::Visibility(_) => ("m.room.history_visibility", Some(String::new())),
        Step::Member(_) => ("m.room.member", Some(viewer().to_string())),
        Step::OtherMember => ("m.room.member", Some(other().to_string())),
    };
    EventRecord {
        event_id: EventId::parse(format!("$event{index}")).unwrap(),
        event_type: event_type.to_owned(),
        state_key,
        sender: other().to_owned(),
        ts: MilliSecondsSinceUnixEpoch(uint!(1)),
        json: "{}".into(),
        unsigned: Default::default(),
        federation: "{}".into(),
        transaction: None,
        totals: Totals::default(),
        main: Totals::default(),
        thread: None,
        notify: false,
        highlight: false,
        extremities: Vec::new(),
        hidden: matches!(step, Step::Hidden),
        redacts: None,
    }
}

async fn write(store: &ModelStore, class: u64, sub: &str, position: Position, value: bytes::Bytes) {
    let entity = EntityId::room(the_room());
    let row = Mutation {
        table: &tables::ROOM_LOG,
        partition: LogKey::partition(&entity, 0),
        clustering: LogKey::clustering(class, &Arc::from(sub), position),
        value: Some(value),
    };
    store.write(vec![row], Durability::Synced).await.unwrap();
}

async fn room(steps: &[Step]) -> History {
    let store = ModelStore::new(1, true);
    for (index, step) in steps.iter().enumerate() {
        let at = position(index);
        write(&store, class::TIMELINE, "", at, record::encode(&event(index, *step)).unwrap()).await;
        let (sub, value) = match step {
            Step::Visibility(value) => (state_sub("m.room.history_visibility", ""), value),
            Step::Member(value) => (state_sub("m.room.member", viewer().as_str()), value),
            Step::OtherMember => (state_sub("m.room.member", other().as_str()), &"join"),
            Step::Message | Step::Hidden => continue,
        };
        let history = KeyHistory { position: Some(at), value: Some((*value).to_owned()) };
        write(&store, class::KEY_HISTORY, &sub, at, record::encode(&history).unwrap()).await;
    }
    History::new(LogReader::new(Arc::new(store)))
}

/// Every page from one end to the other, with the token of each page written and read again.
async fn pages(history: &History, viewpoint: &Viewpoint, direction: Direction, limit: usize) -> Vec<usize> {
    let start = if direction == Direction::Backward { Position::MAX } else { Position::ZERO };
    let mut from = start;
    let mut all = Vec::new();
    for _ in 0..10_000 {
        let request = PageRequest { from, to: None, direction, limit, filter: EventFilter::default() };
        let page = history.page(the_room(), viewpoint, &request).await.unwrap();
        assert!(page.events.len() <= limit);
        all.extend(page.events.iter().map(|placed| ((placed.position.0 - 1_000) / 10) as usize));
        match page.end {
            Some(end) => from = PageToken(end).to_string().parse::<PageToken>().unwrap().0,
            None => return all,
        }
    }
    panic!("the pages do not end");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn pages_of_any_size_meet_and_show_what_the_viewer_may_see(steps in vec(step(), 0..60), limit in 1_usize..20) {
        block_on(async {
            let history = room(&steps).await;
            let viewpoint = history.viewpoint(the_room(), viewer()).await.unwrap();
            let expected = visible(&steps);
            assert_eq!(pages(&history, &viewpoint, Direction::Forward, limit).await, expected);
            let mut backward = pages(&history, &viewpoint, Direction::Backward, limit).await;
            backward.reverse();
            assert_eq!(backward, expected);
        });
    }

    #[test]
    fn a_page_between_two_tokens_has_what_stands_between_them(
        steps in vec(step(), 1..40), a in 0_usize..40, b in 0_usize..40,
    ) {
        block_on(async {
            let history = room(&steps).await;
            let viewpoint = history.viewpoint(the_room(), viewer()).await.unwrap();
            let (low, high) = (a.min(b), a.max(b));
            let between = |direction, from, to| PageRequest {
                from: position(from), to: Some(position(to)), direction, limit: 1_000, filter: EventFilter::default(),
            };
            let expected: Vec<_> = visible(&steps).into_iter().filter(|index| low < *index && *index <= high).collect();
            for request in [between(Direction::Forward, low, high), between(Direction::Backward, high, low)] {
                let page = history.page(the_room(), &viewpoint, &request).await.unwrap();
                let mut found: Vec<_> = page.events.iter().map(|placed| ((placed.position.0 - 1_000) / 10) as usize).collect();
                found.sort_unstable();
                assert_eq!(found, expected);
            }
        });
    }

    #[test]
    fn tokens_come_back_as_they_went_and_anything_else_is_refused_without_panicking(number: u64, text in ".{0,40}") {
        let token = PageToken(Position(number));
        prop_assert_eq!(PageToken::read(&token.to_string(), the_room()).unwrap(), token);
        if let Ok(read) = PageToken::read(&text, the_room()) {
            // What is read at all is read as one thing only.
            prop_assert!(text.starts_with(['p', 's']), "{text:?} was read as {read:?}");
        }
        let digits = number.to_string();
        for forged in [digits.clone(), format!("t{digits}"), format!("p{digits}-"), "p".into(), "p-1".into(), "p+1".into()] {
            prop_assert!(PageToken::read(&forged, the_room()).is_err(), "{}", forged);
        }
    }
}

#[test]
fn a_run_of_hidden_events_longer_than_a_page_does_not_end_the_history() {
    let mut steps = vec![Step::Member("join"), Step::Message];
    steps.extend([Step::Hidden; 200]);
    steps.push(Step::Message);
    block_on(async {
        let history = room(&steps).await;
        let viewpoint = history.viewpoint(the_room(), viewer()).await.unwrap();
        assert_eq!(pages(&history, &viewpoint, Direction::Forward, 10).await, [0, 1, 202]);
        assert_eq!(pages(&history, &viewpoint, Direction::Backward, 10).await, [202, 1, 0]);
    });
}

/// Every way a viewer may stand to a room, by every visibility: what state it may read, and up to where.
#[test]
fn the_state_of_a_room_is_for_those_who_are_or_were_in_it_or_for_everybody() {
    for visibility in VISIBILITIES {
        let world = visibility == "world_readable";
        for (stays, expected) in [
            (vec![], world.then_some(Position::MAX)),
            (vec!["invite"], world.then_some(Position::MAX)),
            (vec!["knock"], world.then_some(Position::MAX)),
            (vec!["ban"], world.then_some(Position::MAX)),
            (vec!["invite", "leave"], world.then_some(Position::MAX)),
            (vec!["join"], Some(Position::MAX)),
            (vec!["join", "leave"], Some(if world { Position::MAX } else { position(2) })),
            (vec!["join", "ban"], Some(if world { Position::MAX } else { position(2) })),
            (vec!["join", "leave", "invite"], Some(if world { Position::MAX } else { position(2) })),
            (vec!["join", "leave", "join", "leave"], Some(if world { Position::MAX } else { position(4) })),
            (vec!["join", "leave", "join"], Some(Position::MAX)),
        ] {
            let mut steps = vec![Step::Visibility(visibility)];
            steps.extend(stays.iter().map(|stay| Step::Member(stay)));
            let viewpoint = block_on(async { room(&steps).await.viewpoint(the_room(), viewer()).await.unwrap() });
            assert_eq!(viewpoint.state_up_to(), expected, "{visibility} {stays:?}");
        }
    }
}

#[test]
fn an_empty_room_shows_nothing() {
    block_on(async {
        let history = room(&[]).await;
        let viewpoint = history.viewpoint(the_room(), viewer()).await.unwrap();
        assert!(!viewpoint.may_read());
        assert!(pages(&history, &viewpoint, Direction::Backward, 10).await.is_empty());
        assert_eq!(history.current(the_room(), "m.room.create", "").await.unwrap(), None);
    });
}
