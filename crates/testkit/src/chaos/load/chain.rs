//! Chains of `/sync` tokens.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    rc::Rc,
    time::Duration,
};

use rand::{RngExt, rngs::StdRng};
use serde_json::json;

use super::registers::{DATA, account_data_registers, data_register, receipt_register};
use crate::chaos::{
    client::{Data, Event, Page, Request, SyncAnswer, SyncRoom, read},
    history::{Chain, Ended, Moment, Read, Text},
    world::{Device, Phase, Refusal, World, one_more},
};

/// How long a request waits for news, in milliseconds: not at all, shortly, or as clients do.
const WAITS_MS: [u64; 3] = [0, 1_000, 8_000];

/// How long somebody is offline, in milliseconds at most.
const OFFLINE_MS_MAX: u64 = 3_000;

/// Events of one timeline. Few, so that there are gaps to fill.
const TIMELINE_LIMIT: usize = 12;

/// Events of one page when a gap is filled.
const PAGE_LIMIT: &str = "50";

/// Pages of one gap at most: more than a whole run.
const PAGES_MAX: usize = 10_000;

/// Answers without news after which a chain is at its end.
const QUIET: usize = 3;

/// Answers of an ending chain at most.
const FINISH_MAX: usize = 500;

/// What one chain knows of a room.
#[derive(Default)]
struct Known {
    events: HashSet<Text>,
    /// The user has left; what comes next belongs to another stay.
    left: bool,
}

/// Somebody who follows all that happens, over every crash.
pub(crate) struct Follower {
    world: Rc<World>,
    device: Rc<Device>,
    rng: StdRng,
    since: Option<String>,
    rooms: BTreeMap<Text, Known>,
    /// Values of registers as the chain delivered them last.
    registers: BTreeMap<Text, Text>,
}

impl Follower {
    /// A chain of `device` that has not begun.
    pub(crate) fn new(world: &Rc<World>, device: &Rc<Device>) -> Self {
        let rng = world.choices(&format!("chain {}", device.label));
        let (world, device) = (Rc::clone(world), Rc::clone(device));
        Self { world, device, rng, since: None, rooms: BTreeMap::new(), registers: BTreeMap::new() }
    }

    /// One answer: when it was asked for, and whether it brought events. `None` if there was none.
    pub(crate) async fn step(&mut self, wait_ms: u64) -> Option<(Moment, bool)> {
        let filter = json!({ "room": { "timeline": { "limit": TIMELINE_LIMIT } }, "presence": { "types": [] } });
        let mut request = Request::get(&["sync"])
            .with("timeout", wait_ms.to_string())
            .with("filter", filter.to_string())
            .by(&self.device.token)
            .waiting(Duration::from_millis(wait_ms));
        if let Some(since) = &self.since {
            request = request.with("since", since);
        }
        let (one, _) = self.world.attempt(&request, Refusal::Wrong, read::<SyncAnswer>).await;
        let Ended::Acknowledged(answer) = one.outcome else {
            self.world.pause(&mut self.rng, 50).await;
            return None;
        };
        if self.rng.random_ratio(1, 25) {
            // An answer that gets lost on its way: the same token must give it again.
            return None;
        }
        let has_news = self.digest(answer, one.ended).await?;
        Some((one.invoked, has_news))
    }

    /// Follows until the load has ended and there is nothing new.
    pub(crate) async fn follow(mut self) {
        let mut finishing = 0;
        let mut quiet = 0;
        while quiet < QUIET {
            let is_finishing = *self.world.phase.borrow() == Phase::Finish;
            if !is_finishing {
                self.follow_once().await;
                continue;
            }
            let step = self.step(0).await;
            finishing += 1;
            if finishing == FINISH_MAX {
                self.world.complain(format!("the chain of {} does not come to its end", self.device.label));
                return;
            }
            quiet = match step {
                Some((_, false)) => quiet + 1,
                Some((_, true)) => 0,
                None => quiet,
            };
            if let Some((invoked, false)) = step
                && quiet == QUIET
            {
                self.read_registers(invoked);
            }
        }
    }

    /// One answer, or a time offline, unless the end comes first.
    async fn follow_once(&mut self) {
        let mut phase = self.world.phase.subscribe();
        let is_offline = self.rng.random_ratio(1, 40);
        let offline_ms = self.rng.random_range(0..=OFFLINE_MS_MAX);
        let wait_ms = WAITS_MS[self.rng.random_range(0..WAITS_MS.len())];
        let once = async {
            if is_offline && self.world.is_loading() {
                tokio::time::sleep(Duration::from_millis(offline_ms)).await;
            }
            self.step(wait_ms).await;
        };
        // A step changes nothing before its last wait is over, so that it can be given up at any of them.
        tokio::select! {
            () = once => {}
            _ = phase.wait_for(|phase| *phase == Phase::Finish) => {}
        }
    }

    async fn digest(&mut self, answer: SyncAnswer, ended: Moment) -> Option<bool> {
        let mut has_news = !answer.to_device.events.is_empty();
        // A gap that cannot be filled leaves the token where it was.
        let mut rooms = Vec::new();
        for (is_joined, of_kind) in [(true, answer.rooms.join), (false, answer.rooms.leave)] {
            for (id, mut room) in of_kind {
                has_news |= !room.timeline.events.is_empty();
                if let Some(mut gap) = self.gap(&id, &room).await? {
                    gap.append(&mut room.timeline.events);
                    room.timeline.events = gap;
                }
                rooms.push((id, room, is_joined));
            }
        }
        for (id, room, is_joined) in rooms {
            self.data(&room.account_data.events, Some(&id));
            self.receipts(&room.ephemeral.events, &id);
            self.timeline(id, room.timeline.events, is_joined);
        }
        self.data(&answer.account_data.events, None);
        let bodies = answer.to_device.events.iter().filter_map(|event| event.content["body"].as_str());
        for body in bodies.map(Text::from) {
            self.note_probe(&body);
            self.world.history.borrow_mut().heard.entry(self.device.label.clone()).or_default().push(body);
        }
        for user in answer.device_lists.changed {
            let mut history = self.world.history.borrow_mut();
            history.device_news.insert((self.device.label.clone(), user), ended);
        }
        self.since = Some(answer.next_batch);
        Some(has_news)
    }

    fn note_probe(&self, body: &Text) {
        if body.starts_with("probe") {
            self.world.probes.borrow_mut().insert((self.device.label.clone(), body.clone()));
        }
    }

    /// What is missing between what is known of a room and a limited timeline, oldest first.
    async fn gap(&self, id: &Text, room: &SyncRoom) -> Option<Option<Vec<Event>>> {
        let Some(known) = self.rooms.get(id).filter(|known| !known.events.is_empty()) else { return Some(None) };
        let timeline = &room.timeline;
        if !timeline.limited || timeline.events.iter().any(|event| known.events.contains(&event.event_id)) {
            return Some(None);
        }
        one_more(&self.world.counts.gaps);
        let mut missing = Vec::new();
        let mut from = timeline.prev_batch.clone();
        for _ in 0..PAGES_MAX {
            let Some(token) = from else { break };
            let path = ["rooms", id, "messages"];
            let request = Request::get(&path)
                .with("dir", "b")
                .with("from", token)
                .with("limit", PAGE_LIMIT)
                .by(&self.device.token);
            let page: Page = self.world.fetch(&request).await?;
            for event in page.chunk {
                if known.events.contains(&event.event_id) {
                    missing.reverse();
                    return Some(Some(missing));
                }
                missing.push(event);
            }
            from = page.end;
        }
        let label = &self.device.label;
        self.world.complain(format!("{label} cannot fill a gap of {id}: nothing known lies before it"));
        missing.reverse();
        Some(Some(missing))
    }

    fn timeline(&mut self, id: Text, events: Vec<Event>, is_joined: bool) {
        let known = self.rooms.entry(id.clone()).or_default();
        let user = &self.device.user;
        // Who left and came back between two answers gets the room as a new one.
        let came_back = !known.events.is_empty()
            && is_joined
            && events
                .iter()
                .any(|event| event.member() == Some((user, true)) && !known.events.contains(&event.event_id));
        let label = &self.device.label;
        let mut history = self.world.history.borrow_mut();
        let chain = history.chains.entry((label.clone(), id.clone()));
        let chain = chain.or_insert_with(|| Chain { user: user.clone(), visits: Vec::new() });
        if known.left || came_back || chain.visits.is_empty() {
            chain.visits.push(Vec::new());
        }
        known.left = !is_joined;
        let ids: Vec<_> = events.iter().map(|event| event.event_id.clone()).collect();
        known.events.extend(ids.iter().cloned());
        if let Some(last) = ids.last() {
            self.world.latest.borrow_mut().insert((label.clone(), id), last.clone());
        }
        if let Some(visit) = chain.visits.last_mut() {
            visit.extend(ids);
        }
        drop(history);
        for body in events.into_iter().filter_map(|event| event.content.body) {
            self.note_probe(&body);
        }
    }

    fn data(&mut self, events: &[Data], room: Option<&Text>) {
        for event in events.iter().filter(|event| event.kind == DATA) {
            if let Some(value) = event.content["value"].as_str() {
                self.registers.insert(data_register(&self.device.user, room), value.into());
            }
        }
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#receipts>
    fn receipts(&mut self, events: &[Data], room: &Text) {
        for event in events.iter().filter(|event| event.kind == "m.receipt") {
            for (event_id, kinds) in event.content.as_object().into_iter().flatten() {
                for user in kinds["m.read"].as_object().into_iter().flat_map(|users| users.keys()) {
                    self.registers.insert(receipt_register(user, room), event_id.as_str().into());
                }
            }
        }
    }

    /// What the chain knows at its end is what a read at that moment would give.
    fn read_registers(&self, invoked: Moment) {
        let mut names = BTreeSet::new();
        for place in account_data_registers(&self.world) {
            names.insert(data_register(&self.device.user, place.as_ref()));
            let Some(room) = place else { continue };
            names.extend(self.world.people.iter().map(|person| receipt_register(&person.user, &room)));
        }
        let reads = names.into_iter().map(|register| {
            let value = self.registers.get(&register).cloned();
            Read { register, room: None, value, invoked }
        });
        self.world.history.borrow_mut().reads.extend(reads);
    }
}
