//! Rules about to-device messages.

use std::collections::{BTreeMap, HashMap};

use super::{Found, Property, Span, out_of_time};
use crate::{
    chaos::history::{History, Text, Whisper},
    checker::places,
};

pub(super) fn check(history: &History, found: &mut Found) {
    let whispers: HashMap<&str, &Whisper> = history.whispers.iter().map(|whisper| (&*whisper.body, whisper)).collect();
    let mut heard_by: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
    for (receiver, heard) in &history.heard {
        let (heard_once, repeated) = places(heard.iter().map(|body| &**body));
        for body in repeated {
            found.add(Property::ToDevice, || format!("{receiver} got {body} again"));
        }
        heard_by.insert(receiver, heard_once);
        one_receiver(receiver, heard, &whispers, found);
    }
    for whisper in history.whispers.iter().filter(|whisper| whisper.operation.acknowledged().is_some()) {
        for receiver in &whisper.receivers {
            if heard_by.get(&**receiver).is_none_or(|heard| !heard.contains_key(&*whisper.body)) {
                found.add(Property::ToDevice, || {
                    format!("{} was acknowledged and never reached {receiver}", whisper.body)
                });
            }
        }
    }
}

/// Each message is for the receiver, was not refused, and comes in the order of its sender.
fn one_receiver(receiver: &Text, heard: &[Text], whispers: &HashMap<&str, &Whisper>, found: &mut Found) {
    let mut by_sender: BTreeMap<&str, Vec<&Whisper>> = BTreeMap::new();
    for body in heard {
        match whispers.get(&**body) {
            Some(whisper) if whisper.receivers.contains(receiver) && !whisper.operation.is_refused() => {
                by_sender.entry(&whisper.sender).or_default().push(whisper);
            }
            Some(_) => found
                .add(Property::ToDevice, || format!("{receiver} got {body}, which was refused or for somebody else")),
            None => found.add(Property::ToDevice, || format!("{receiver} got {body}, which nobody sent")),
        }
    }
    for (sender, order) in by_sender {
        let spans: Vec<Span> =
            order.iter().map(|whisper| (whisper.operation.invoked(), whisper.operation.acknowledged())).collect();
        for (earlier, later) in out_of_time(&spans) {
            found.add(Property::ToDevice, || {
                let (earlier, later) = (&order[earlier].body, &order[later].body);
                format!("{receiver} got {earlier} of {sender} before {later}, which had been acknowledged first")
            });
        }
    }
}
