//! Each rule, seen to fail.

use super::*;
use crate::chaos::history::{
    Chain, Drain, Ended, Entry, KeyClaim, KeyUpload, Operation, Read, Reading, Sent, Tail, Text, Try, Whisper, Write,
};

fn text(name: &str) -> Text {
    name.into()
}

fn one<T>(from: u64, until: u64, outcome: Ended<T>) -> Operation<T> {
    Operation { tries: vec![Try { invoked: Moment(from), ended: Moment(until), outcome }] }
}

fn done<T>(from: u64, until: u64, answer: T) -> Operation<T> {
    one(from, until, Ended::Acknowledged(answer))
}

fn sent(body: &str, operation: Operation<Text>) -> Sent {
    Sent { room: text("!r"), body: text(body), transaction: Some((text("a/1"), text(body))), operation }
}

fn message(body: &str) -> Entry {
    Entry { event: text(&format!("${body}")), body: Some(text(body)), member: None }
}

fn member(event: &str, user: &str, joined: bool) -> Entry {
    Entry { event: text(event), body: None, member: Some((text(user), joined)) }
}

fn events(entries: &[Entry]) -> Vec<Text> {
    entries.iter().map(|entry| entry.event.clone()).collect()
}

/// Two people in a room: a joins, b joins; m0 to m3, the last without an acknowledgement; whispers, keys, a register.
fn clean() -> History {
    let mut entries = vec![member("$ja", "@a", true), member("$jb", "@b", true)];
    entries.extend(["m0", "m1", "m2", "m3"].map(message));
    let mut history = History::default();
    for (number, body) in ["m0", "m1", "m2"].into_iter().enumerate() {
        let from = 10 * number as u64;
        history.sent.push(sent(body, done(from, from + 5, text(&format!("${body}")))));
    }
    history.sent.push(sent("m3", one(30, 35, Ended::Unknown)));
    history.sent.push(sent("refused", one(40, 45, Ended::Refused)));
    for (reader, user) in [("a/1", "@a"), ("b/1", "@b")] {
        let reading = Reading { reader: text(reader), room: text("!r"), entries: entries.clone() };
        history.readings.push(reading);
        history.tails.push(Tail { reader: text(reader), room: text("!r"), events: events(&entries[3..]) });
        let chain = Chain { user: text(user), visits: vec![events(&entries[1..])] };
        history.chains.insert((text(reader), text("!r")), chain);
    }
    for (number, body) in ["w0", "w1"].into_iter().enumerate() {
        let (from, operation) = (10 * number as u64, |from| done(from, from + 5, ()));
        let receivers = vec![text("b/1")];
        history.whispers.push(Whisper { sender: text("a/1"), receivers, body: text(body), operation: operation(from) });
    }
    history.heard.insert(text("b/1"), vec![text("w0"), text("w1")]);
    let keys = ["k0", "k1", "k2"].map(text).to_vec();
    history.key_uploads.push(KeyUpload { device: text("b/1"), keys, operation: done(0, 5, ()) });
    history.key_claims.push(KeyClaim { device: text("b/1"), operation: done(10, 15, Some(text("k0"))) });
    history.drains.insert(text("b/1"), Drain { counted: 2, keys: vec![text("k1"), text("k2")] });
    for (number, value) in ["v0", "v1"].into_iter().enumerate() {
        let from = 10 * number as u64;
        let operation = done(from, from + 5, ());
        history.writes.push(Write { register: text("x"), value: text(value), operation });
    }
    history.reads.push(read("x", Some("v0"), 12));
    history.reads.push(read("x", Some("v1"), 20));
    history.device_watchers.insert((text("a/1"), text("@b")));
    history.device_changes.push((text("@b"), done(10, 15, ())));
    history.device_news.insert((text("a/1"), text("@b")), Moment(12));
    history
}

fn read(register: &str, value: Option<&str>, at: u64) -> Read {
    Read { register: text(register), room: None, value: value.map(text), invoked: Moment(at) }
}

/// The properties that a history breaks.
#[track_caller]
fn broken(break_it: impl FnOnce(&mut History)) -> Vec<Property> {
    let mut history = clean();
    break_it(&mut history);
    let mut properties: Vec<_> = check(&history).into_iter().map(|violation| violation.property).collect();
    properties.dedup();
    properties
}

/// Takes an event out of everything that was read.
fn lose(history: &mut History, event: &str) {
    for reading in &mut history.readings {
        reading.entries.retain(|entry| &*entry.event != event);
    }
    let visits = history.chains.values_mut().flat_map(|chain| &mut chain.visits);
    for list in visits.chain(history.tails.iter_mut().map(|tail| &mut tail.events)) {
        list.retain(|known| &**known != event);
    }
}

fn visit<'h>(history: &'h mut History, reader: &str) -> &'h mut Vec<Text> {
    let chain = history.chains.get_mut(&(text(reader), text("!r"))).unwrap();
    chain.visits.last_mut().unwrap()
}

#[test]
fn a_clean_history_is_accepted() {
    assert_eq!(check(&clean()), []);
}

#[test]
fn an_event_of_unknown_outcome_may_be_missing() {
    assert_eq!(broken(|history| lose(history, "$m3")), []);
}

#[test]
fn a_lost_event_is_reported() {
    assert_eq!(broken(|history| lose(history, "$m1")), [Property::Kept]);
}

#[test]
fn an_event_under_another_id_is_reported() {
    let other = |history: &mut History| history.sent[0].operation = done(0, 5, text("$other"));
    assert_eq!(broken(other), [Property::Kept]);
}

#[test]
fn a_doubled_event_is_reported() {
    let double = |history: &mut History| {
        for reading in &mut history.readings {
            reading.entries.push(Entry { event: text("$again"), body: Some(text("m1")), member: None });
        }
        for reader in ["a/1", "b/1"] {
            visit(history, reader).push(text("$again"));
        }
        history.tails.clear();
    };
    assert!(broken(double).contains(&Property::Once));
}

#[test]
fn a_refused_event_that_appears_and_one_that_nobody_sent_are_reported() {
    for body in ["refused", "stranger"] {
        let appear = |history: &mut History| {
            history.readings.iter_mut().for_each(|reading| reading.entries.push(message(body)));
            for reader in ["a/1", "b/1"] {
                visit(history, reader).push(text(&format!("${body}")));
            }
            history.tails.clear();
        };
        assert_eq!(broken(appear), [Property::Once], "{body}");
    }
}

#[test]
fn readers_who_see_different_orders_are_reported() {
    assert_eq!(broken(|history| history.readings[1].entries.swap(3, 4)), [Property::OneOrder]);
    let short = |history: &mut History| drop(history.readings[1].entries.pop());
    assert_eq!(broken(short), [Property::OneOrder]);
    assert_eq!(broken(|history| history.tails[0].events.swap(0, 1)), [Property::OneOrder]);
}

#[test]
fn an_order_against_real_time_is_reported() {
    let swap = |history: &mut History| {
        history.readings.iter_mut().for_each(|reading| reading.entries.swap(2, 4));
        for reader in ["a/1", "b/1"] {
            visit(history, reader).swap(1, 3);
        }
        history.tails.clear();
    };
    assert_eq!(broken(swap), [Property::RealTime]);
}

#[test]
fn a_transaction_with_two_event_ids_is_reported() {
    let twice = |history: &mut History| {
        let again = Try { invoked: Moment(6), ended: Moment(8), outcome: Ended::Acknowledged(text("$other")) };
        history.sent[0].operation.tries.push(again);
    };
    assert!(broken(twice).contains(&Property::Transaction));
}

#[test]
fn a_chain_that_misses_repeats_reorders_or_invents_is_reported() {
    assert_eq!(broken(|history| drop(visit(history, "b/1").remove(2))), [Property::Chain]);
    assert_eq!(broken(|history| drop(visit(history, "b/1").pop())), [Property::Chain]);
    assert_eq!(broken(|history| visit(history, "b/1").insert(3, text("$m0"))), [Property::Chain]);
    assert_eq!(broken(|history| visit(history, "b/1").swap(2, 3)), [Property::Chain]);
    assert_eq!(broken(|history| visit(history, "b/1").push(text("$nowhere"))), [Property::Chain]);
}

/// b leaves after m0 and comes back after m1.
fn with_an_absence(visits: &[&[&str]]) -> Vec<Property> {
    broken(|history| {
        for reading in &mut history.readings {
            reading.entries.insert(3, member("$lb", "@b", false));
            reading.entries.insert(5, member("$jb2", "@b", true));
        }
        history.tails.clear();
        *visit(history, "a/1") = events(&history.readings[0].entries);
        let visits = visits.iter().map(|visit| visit.iter().map(|event| text(event)).collect());
        history.chains.get_mut(&(text("b/1"), text("!r"))).unwrap().visits = visits.collect();
    })
}

#[test]
fn an_absence_may_be_seen_afterwards_and_not_at_the_time() {
    let (first, second) = (["$jb", "$m0", "$lb"], ["$jb2", "$m2", "$m3"]);
    assert_eq!(with_an_absence(&[&first, &second]), []);
    assert_eq!(with_an_absence(&[&first, &["$m1", "$jb2", "$m2", "$m3"]]), []);
    assert_eq!(with_an_absence(&[&["$jb", "$m0", "$lb", "$m1"], &second]), [Property::Visible]);
    assert_eq!(with_an_absence(&[&["$jb", "$m0"], &second]), [Property::Chain], "the leave itself belongs to the stay");
}

#[test]
fn a_stale_an_empty_and_an_invented_value_are_reported() {
    for (value, at) in [(Some("v0"), 16), (None, 6), (Some("v9"), 12)] {
        assert_eq!(broken(|history| history.reads.push(read("x", value, at))), [Property::Fresh], "{value:?}");
    }
    assert_eq!(broken(|history| history.reads.push(read("x", Some("v0"), 14))), [], "it may still be so");
    let doubt = |history: &mut History| {
        let late = Try { invoked: Moment(0), ended: Moment(4), outcome: Ended::Unknown };
        history.writes[0].operation.tries.insert(0, late);
        history.reads.push(read("x", Some("v0"), 16));
    };
    assert_eq!(broken(doubt), [], "what is in doubt may come late");
}

#[test]
fn state_that_was_overwritten_or_is_not_in_the_history_is_reported() {
    let state = |value: &'static str, at| {
        move |history: &mut History| {
            // The values are the messages of the room, the register is "s".
            for number in 0..3 {
                let (value, from) = (history.sent[number].body.clone(), 10 * number as u64);
                history.writes.push(Write { register: text("s"), value, operation: done(from, from + 5, ()) });
            }
            history.writes.push(Write {
                register: text("s"),
                value: text("dirty"),
                operation: one(0, 9, Ended::Unknown),
            });
            history.reads.push(Read { room: Some(text("!r")), ..read("s", Some(value), at) });
        }
    };
    assert_eq!(broken(state("m0", 14)), []);
    assert_eq!(broken(state("m0", 16)), [Property::Fresh]);
    assert_eq!(broken(state("dirty", 3)), [Property::Fresh]);
}

#[test]
fn a_lost_a_doubled_and_a_late_to_device_message_are_reported() {
    let heard = |bodies: &'static [&'static str]| {
        broken(|history| drop(history.heard.insert(text("b/1"), bodies.iter().map(|body| text(body)).collect())))
    };
    assert_eq!(heard(&["w0", "w1"]), []);
    for wrong in [&["w0"][..], &[], &["w0", "w1", "w0"], &["w1", "w0"], &["w0", "w1", "w9"]] {
        assert_eq!(heard(wrong), [Property::ToDevice], "{wrong:?}");
    }
    let elsewhere = |history: &mut History| drop(history.heard.insert(text("c/1"), vec![text("w0")]));
    assert_eq!(broken(elsewhere), [Property::ToDevice]);
}

#[test]
fn a_key_handed_out_twice_lost_miscounted_or_invented_is_reported() {
    let claim = |key: &str| KeyClaim { device: text("b/1"), operation: done(20, 25, Some(text(key))) };
    for key in ["k0", "k1", "k9"] {
        assert_eq!(broken(|history| history.key_claims.push(claim(key))), [Property::OneTimeKey], "{key}");
    }
    let drain = |counted, keys: &[&str]| Drain { counted, keys: keys.iter().map(|key| text(key)).collect() };
    let lost = |history: &mut History| drop(history.drains.insert(text("b/1"), drain(1, &["k1"])));
    assert_eq!(broken(lost), [Property::OneTimeKey]);
    let miscounted = |history: &mut History| drop(history.drains.insert(text("b/1"), drain(3, &["k1", "k2"])));
    assert_eq!(broken(miscounted), [Property::OneTimeKey]);
    let in_doubt = |history: &mut History| {
        lost(history);
        history.key_claims.push(KeyClaim { device: text("b/1"), operation: one(20, 25, Ended::Unknown) });
    };
    assert_eq!(broken(in_doubt), [], "the claim may have taken it");
}

#[test]
fn a_change_of_devices_that_is_not_told_and_complaints_of_clients_are_reported() {
    assert_eq!(broken(|history| history.device_news.clear()), [Property::DeviceList]);
    let early = |history: &mut History| history.device_news.values_mut().for_each(|news| *news = Moment(9));
    assert_eq!(broken(early), [Property::DeviceList]);
    assert_eq!(broken(|history| history.complaints.push("no".to_owned())), [Property::Client]);
}

#[test]
fn of_many_violations_some_are_told_and_all_are_counted() {
    let complaints = (0..TOLD_MAX + 5).map(|number| number.to_string()).collect();
    let history = History { complaints, ..History::default() };
    let violations = check(&history);
    assert_eq!(violations.len(), TOLD_MAX + 1);
    assert!(violations.last().is_some_and(|last| last.what.contains("5 more")));
}
