//! Whether what was sent arrived: at every member, once, in an order that all of them agree on and that no
//! acknowledgement contradicts. A server that is fast because it loses events is not fast.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Ask, Failure};
use crate::load::Outcome;
use crate::matrix::{Homeserver, Session, encode, send_path, sync_path};

/// How long events may take until they count as late, and how long until they count as lost.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// An event that comes so long after it was acknowledged, to somebody who asked, is late.
    pub late: Duration,
    /// One that has not arrived after this is lost.
    pub lost: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { late: Duration::from_secs(2), lost: Duration::from_secs(10) }
    }
}

/// The events that one sync may hold; more are read from the history of the room.
const TIMELINE_MAX: usize = 500;
/// The pages of history that are read to fill one gap.
const GAP_PAGES_MAX: usize = 2000;
/// Members that are read at a time.
const READERS_AT_ONCE: usize = 8;
/// Faults that are kept with their words.
const EXAMPLES_MAX: usize = 10;

/// What is known of one event that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// When the request was begun.
    pub began: Instant,
    /// The answer: its time and the event id; nothing when the outcome is unknown.
    pub acknowledged: Option<(Instant, String)>,
}

/// Every event sent to one room in one measurement, by its number.
pub struct Ledger {
    /// What marks the events of this measurement.
    mark: String,
    sent: Mutex<BTreeMap<u64, Sent>>,
}

impl Ledger {
    /// An empty ledger; `mark` must be unique among all measurements in the room, and hold no blank.
    #[must_use]
    pub fn new(mark: &str) -> Arc<Self> {
        Arc::new(Self { mark: mark.to_owned(), sent: Mutex::new(BTreeMap::new()) })
    }

    /// Sends the event of this number and keeps what came of it.
    pub async fn send(&self, server: &Homeserver, sender: &Session, room_id: &str, number: u64) -> Outcome {
        let path = send_path(room_id, &format!("{}-{number}", self.mark));
        let body = format!(
            r#"{{"msgtype":"m.text","body":"{} {number} the quick brown fox jumps over the lazy dog"}}"#,
            self.mark
        );
        let began = Instant::now();
        let answer = server.client.send(Ask::put(path, &sender.token, body)).await;
        let acknowledged = match &answer {
            Ok(answer) if answer.status == 200 => event_id(&answer.body).map(|id| (Instant::now(), id)),
            // A refusal promises that nothing happened.
            Ok(answer) if (400..500).contains(&answer.status) => return Outcome::from(Ok(answer.clone())),
            Ok(_) | Err(_) => None,
        };
        let outcome = match (&answer, &acknowledged) {
            (Ok(answer), None) if answer.status == 200 => Outcome::Failed("an answer without event_id".to_owned()),
            _ => Outcome::from(answer),
        };
        self.entries().insert(number, Sent { began, acknowledged });
        outcome
    }

    /// How many events are known to be in the room.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.entries().values().filter(|sent| sent.acknowledged.is_some()).count()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id under which an event was acknowledged.
    #[must_use]
    pub fn event_id(&self, number: u64) -> Option<String> {
        Some(self.entries().get(&number)?.acknowledged.as_ref()?.1.clone())
    }

    /// What was sent, by number.
    #[must_use]
    pub fn sent(&self) -> BTreeMap<u64, Sent> {
        self.entries().clone()
    }

    /// The number of an event of this measurement.
    #[must_use]
    pub fn number(&self, event: &Value) -> Option<u64> {
        let mut words = event["content"]["body"].as_str()?.split(' ');
        if words.next()? != self.mark { None } else { words.next()?.parse().ok() }
    }
}

#[derive(serde::Deserialize)]
struct EventId {
    event_id: String,
}

fn event_id(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<EventId>(body).ok().map(|answer| answer.event_id)
}

/// What is wrong with what arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Events whose arrival was checked.
    pub events: u64,
    /// Members at which it was checked: the most of a round.
    pub members: u64,
    /// Events that arrived, over all checked members.
    pub deliveries: u64,
    /// Acknowledged events that did not arrive.
    pub lost: u64,
    /// Events that arrived more than once, or under another id than was acknowledged.
    pub repeated: u64,
    /// Events that arrived before one that was acknowledged before they were sent, or in another order than at the
    /// first member.
    pub reordered: u64,
    /// Events that arrived, but not in time.
    pub late: u64,
    /// Some of the faults, in words.
    pub examples: Vec<String>,
}

impl Findings {
    /// Whether everything arrived everywhere, once, in order and in time.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.lost + self.repeated + self.reordered + self.late == 0
    }

    /// Adds the findings of another measurement.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.members = self.members.max(other.members);
        self.deliveries += other.deliveries;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.late += other.late;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).cloned());
    }

    fn fault(&mut self, words: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(words());
        }
    }
}

/// One event as a member saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    number: u64,
    event_id: String,
}

/// Compares what one member saw, in its order, with what was sent. `late` are the numbers that came in a later sync.
fn judge(member: &str, sent: &BTreeMap<u64, Sent>, seen: &[Seen], reference: &[u64], late: &[u64]) -> Findings {
    let mut findings = Findings { deliveries: seen.len() as u64, ..Findings::default() };
    let mut first: HashMap<u64, &str> = HashMap::new();
    let mut order = Vec::with_capacity(seen.len());
    for event in seen {
        let acknowledged = sent.get(&event.number).and_then(|sent| sent.acknowledged.as_ref());
        let other_id = acknowledged.is_some_and(|(_, id)| *id != event.event_id);
        if first.insert(event.number, &event.event_id).is_some() || other_id {
            findings.repeated += 1;
            findings.fault(|| format!("{member} saw event {} twice or under another id", event.number));
        } else {
            order.push(event.number);
        }
    }
    for (number, event) in sent {
        if event.acknowledged.is_some() && !first.contains_key(number) {
            findings.lost += 1;
            findings.fault(|| format!("{member} never saw event {number}"));
        }
    }
    findings.late = late.len() as u64;
    for number in late.iter().take(1) {
        findings.fault(|| format!("{member} saw event {number} late"));
    }
    findings.reordered = contradictions(sent, &order) + disagreements(&order, reference);
    if findings.reordered > 0 {
        let reordered = findings.reordered;
        findings.fault(|| format!("{member} saw {reordered} events out of order"));
    }
    findings
}

/// Events placed behind one that was sent only after they had been acknowledged.
fn contradictions(sent: &BTreeMap<u64, Sent>, order: &[u64]) -> u64 {
    let mut latest_begin: Option<Instant> = None;
    let mut found = 0;
    for event in order.iter().filter_map(|number| sent.get(number)) {
        if let (Some((acknowledged, _)), Some(begin)) = (&event.acknowledged, latest_begin) {
            found += u64::from(*acknowledged < begin);
        }
        latest_begin = latest_begin.max(Some(event.began));
    }
    found
}

/// Events whose successor is another one than at the reference, of those that both have.
fn disagreements(order: &[u64], reference: &[u64]) -> u64 {
    let places: HashMap<u64, usize> = reference.iter().enumerate().map(|(place, number)| (*number, place)).collect();
    let common: Vec<usize> = order.iter().filter_map(|number| places.get(number).copied()).collect();
    common.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64
}

/// A member that is checked, and up to where it has read.
#[derive(Debug, Clone)]
pub struct Reader {
    session: Session,
    since: String,
}

fn filter(room_id: &str, timeline: usize) -> Value {
    let nothing = json!({ "not_types": ["*"] });
    json!({
        "presence": nothing, "account_data": nothing,
        "room": {
            "rooms": [room_id], "timeline": { "limit": timeline }, "state": { "lazy_load_members": true },
            "ephemeral": nothing, "account_data": nothing,
        },
    })
}

impl Reader {
    /// Members that have read everything up to now.
    ///
    /// # Errors
    /// When a sync is refused.
    pub async fn start(server: &Homeserver, members: &[Session], room_id: &str) -> Result<Vec<Self>> {
        let filter = filter(room_id, 1);
        let filter = &filter;
        stream::iter(members)
            .map(|session| async move {
                let since = server.position(session, Some(filter)).await?;
                Ok(Self { session: session.clone(), since })
            })
            .buffered(READERS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Reads on until every event of the ledger that is known to be in the room has arrived, or patience ends.
    async fn read(
        &mut self,
        server: &Homeserver,
        room_id: &str,
        ledger: &Ledger,
        patience: Patience,
    ) -> Result<(Vec<Seen>, Vec<u64>)> {
        let filter = filter(room_id, TIMELINE_MAX);
        let begun = Instant::now();
        let wanted = ledger.acknowledged();
        let mut asked_before = None;
        let (mut seen, mut late) = (Vec::new(), Vec::new());
        loop {
            let missing = wanted > seen.iter().map(|event: &Seen| event.number).collect::<HashSet<_>>().len();
            let wait = if missing { patience.lost.saturating_sub(begun.elapsed()) } else { Duration::ZERO };
            let asked = Instant::now();
            let path = sync_path(Some(&self.since), wait, Some(&filter));
            let ask = Ask::get(path, &self.session.token);
            let answer = server.client.send_within(ask, wait + patience.lost).await;
            let look = Look { asked, answered: Instant::now(), asked_before: asked_before.replace(asked) };
            let answer = match answer {
                Ok(answer) if answer.status == 200 => serde_json::from_slice::<Value>(&answer.body)?,
                Ok(answer) => anyhow::bail!("{}: a sync was refused with {}", server.name, answer.status),
                Err(Failure::TimedOut) if missing => break,
                Err(failure) => return Err(failure).context("a sync that checks arrivals"),
            };
            let timeline = &answer["rooms"]["join"][room_id]["timeline"];
            let mut arrived = Vec::new();
            if timeline["limited"].as_bool() == Some(true) {
                arrived = self.gap(server, room_id, ledger, timeline).await?;
            }
            arrived.extend(timeline["events"].as_array().into_iter().flatten().filter_map(|event| one(ledger, event)));
            late.extend(too_late(ledger, &arrived, look, patience));
            let nothing = arrived.is_empty();
            seen.extend(arrived);
            self.since = answer["next_batch"].as_str().context("a sync has no next_batch")?.to_owned();
            // One more empty look after the last event, so that what arrives twice is seen.
            if nothing && (!missing || begun.elapsed() >= patience.lost) {
                break;
            }
        }
        Ok((seen, late))
    }

    /// What lies between the last sync and a timeline that was cut, oldest first.
    async fn gap(&self, server: &Homeserver, room_id: &str, ledger: &Ledger, timeline: &Value) -> Result<Vec<Seen>> {
        let mut from = timeline["prev_batch"].as_str().context("a cut timeline has no prev_batch")?.to_owned();
        let mut backwards = Vec::new();
        for _ in 0..GAP_PAGES_MAX {
            let path = format!(
                "/_matrix/client/v3/rooms/{}/messages?dir=b&limit={TIMELINE_MAX}&from={}&to={}",
                encode(room_id),
                encode(&from),
                encode(&self.since)
            );
            let page = server.expect("read a gap", Ask::get(path, &self.session.token)).await?;
            let chunk: Vec<&Value> = page["chunk"].as_array().into_iter().flatten().collect();
            backwards.extend(chunk.iter().filter_map(|event| one(ledger, event)));
            // Servers may ignore `to`: an event of anybody else is from before the measurement.
            let before = chunk.iter().any(|event| ledger.number(event).is_none());
            match page["end"].as_str() {
                Some(end) if !before && !chunk.is_empty() => end.clone_into(&mut from),
                _ => break,
            }
        }
        backwards.reverse();
        Ok(backwards)
    }
}

fn one(ledger: &Ledger, event: &Value) -> Option<Seen> {
    Some(Seen { number: ledger.number(event)?, event_id: event["event_id"].as_str()?.to_owned() })
}

/// One sync: when it was asked for and answered, and when the one before it was asked for.
#[derive(Clone, Copy)]
struct Look {
    asked: Instant,
    answered: Instant,
    asked_before: Option<Instant>,
}

/// Those that a sync waited for though they had long been acknowledged, or that the sync before should have held.
fn too_late(ledger: &Ledger, arrived: &[Seen], look: Look, patience: Patience) -> Vec<u64> {
    let sent = ledger.entries();
    let late = |number: &u64| {
        let acknowledged = sent.get(number).and_then(|sent| sent.acknowledged.as_ref()).map(|(at, _)| *at);
        acknowledged.is_some_and(|at| {
            let waited = look.answered.saturating_duration_since(at.max(look.asked)) > patience.late;
            waited || look.asked_before.is_some_and(|before| before.saturating_duration_since(at) > patience.late)
        })
    };
    arrived.iter().map(|event| event.number).filter(late).collect()
}

/// Lets readers read on, and says what is wrong with what they saw. When all of them together would read more than
/// `deliveries_max` events, evenly spread ones of them do.
///
/// # Errors
/// When a sync fails; events that do not arrive are findings, not errors.
pub async fn verify(
    server: &Homeserver,
    room_id: &str,
    ledger: &Ledger,
    readers: &mut [Reader],
    patience: Patience,
    deliveries_max: usize,
) -> Result<Findings> {
    let affordable = (deliveries_max / ledger.acknowledged().max(1)).max(1);
    let every = readers.len().div_ceil(affordable).max(1);
    let mut saw = Vec::with_capacity(readers.len());
    {
        let mut reading = stream::iter(readers.iter_mut().step_by(every))
            .map(|reader| async move {
                let (seen, late) = reader.read(server, room_id, ledger, patience).await?;
                anyhow::Ok((reader.session.user_id.clone(), seen, late))
            })
            .buffered(READERS_AT_ONCE);
        while let Some(one) = reading.next().await {
            saw.push(one?);
        }
    }
    let sent = ledger.entries().clone();
    let reference: Vec<u64> =
        saw.first().map(|(_, seen, _)| seen.iter().map(|event| event.number).collect()).unwrap_or_default();
    let mut findings = Findings { events: sent.len() as u64, members: saw.len() as u64, ..Findings::default() };
    for (member, seen, late) in &saw {
        findings.add(&judge(member, &sent, seen, &reference, late));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three events, each sent after the one before was acknowledged.
    fn three() -> BTreeMap<u64, Sent> {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        (0..3)
            .map(|number| {
                let acknowledged = Some((at(number * 10 + 5), format!("${number}")));
                (number, Sent { began: at(number * 10), acknowledged })
            })
            .collect()
    }

    fn seen(numbers: &[u64]) -> Vec<Seen> {
        numbers.iter().map(|number| Seen { number: *number, event_id: format!("${number}") }).collect()
    }

    #[test]
    fn what_arrives_once_and_in_order_is_clean() {
        let findings = judge("@a", &three(), &seen(&[0, 1, 2]), &[0, 1, 2], &[]);
        assert!(findings.clean() && findings.deliveries == 3, "{findings:?}");
    }

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let lost = judge("@a", &three(), &seen(&[0, 2]), &[0, 1, 2], &[]);
        assert_eq!((lost.lost, lost.repeated, lost.reordered), (1, 0, 0));
        let repeated = judge("@a", &three(), &seen(&[0, 1, 1, 2]), &[0, 1, 2], &[]);
        assert_eq!((repeated.lost, repeated.repeated, repeated.reordered), (0, 1, 0));
        let reordered = judge("@a", &three(), &seen(&[1, 0, 2]), &[1, 0, 2], &[]);
        assert_eq!((reordered.lost, reordered.repeated, reordered.reordered), (0, 0, 1));
        let late = judge("@a", &three(), &seen(&[0, 1, 2]), &[0, 1, 2], &[2]);
        assert!(late.late == 1 && !late.clean() && late.examples.len() == 1);
    }

    #[test]
    fn another_id_than_was_acknowledged_is_a_second_event() {
        let mut other = seen(&[0, 1, 2]);
        other[1].event_id = "$9".to_owned();
        assert_eq!(judge("@a", &three(), &other, &[0, 1, 2], &[]).repeated, 1);
    }

    #[test]
    fn members_must_agree_on_events_that_were_under_way_together() {
        let mut together = three();
        let start = together[&0].began;
        for event in together.values_mut() {
            event.began = start;
        }
        assert!(judge("@a", &together, &seen(&[2, 0, 1]), &[2, 0, 1], &[]).clean());
        assert_eq!(judge("@b", &together, &seen(&[0, 1, 2]), &[2, 0, 1], &[]).reordered, 1);
    }

    #[test]
    fn an_unknown_outcome_may_arrive_or_not_but_only_once() {
        let mut sent = three();
        sent.get_mut(&1).unwrap().acknowledged = None;
        assert!(judge("@a", &sent, &seen(&[0, 2]), &[0, 2], &[]).clean());
        assert!(judge("@a", &sent, &seen(&[0, 1, 2]), &[0, 1, 2], &[]).clean());
        assert_eq!(judge("@a", &sent, &seen(&[0, 1, 2, 1]), &[0, 1, 2], &[]).repeated, 1);
    }
}
