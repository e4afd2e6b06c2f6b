//! Rules about one-time keys.

use std::collections::{BTreeMap, HashMap};

use super::{Found, Property};
use crate::chaos::history::{Drain, History, KeyUpload};

/// What is known of one device's keys.
#[derive(Default)]
struct Stock<'h> {
    /// Keys with the upload that they came with.
    uploaded: HashMap<&'h str, &'h KeyUpload>,
    /// How often each key was handed out.
    handed_out: HashMap<&'h str, usize>,
    /// Claims of unknown outcome: each may have taken a key.
    in_doubt: usize,
    drain: Option<&'h Drain>,
}

pub(super) fn check(history: &History, found: &mut Found) {
    let mut stocks: BTreeMap<&str, Stock<'_>> = BTreeMap::new();
    for upload in &history.key_uploads {
        let stock = stocks.entry(&upload.device).or_default();
        stock.uploaded.extend(upload.keys.iter().map(|key| (&**key, upload)));
    }
    for claim in &history.key_claims {
        let stock = stocks.entry(&claim.device).or_default();
        for key in claim.operation.answers().flatten() {
            *stock.handed_out.entry(key).or_default() += 1;
        }
        stock.in_doubt += usize::from(claim.operation.is_in_doubt());
    }
    for (device, drain) in &history.drains {
        let stock = stocks.entry(device).or_default();
        stock.drain = Some(drain);
        for key in &drain.keys {
            *stock.handed_out.entry(key).or_default() += 1;
        }
    }
    for (device, stock) in stocks {
        stock.check(device, found);
    }
}

impl Stock<'_> {
    fn check(&self, device: &str, found: &mut Found) {
        for (key, times) in &self.handed_out {
            if *times > 1 {
                found.add(Property::OneTimeKey, || format!("{key} of {device} was handed out {times} times"));
            }
            if self.uploaded.get(key).is_none_or(|upload| upload.operation.is_refused()) {
                found.add(Property::OneTimeKey, || format!("{key} of {device} was handed out and never uploaded"));
            }
        }
        let Some(drain) = self.drain else { return };
        if drain.counted != drain.keys.len() as u64 {
            found.add(Property::OneTimeKey, || {
                format!("{device} had {} keys left and was said to have {}", drain.keys.len(), drain.counted)
            });
        }
        let is_missing = |(key, upload): &(&&str, &&KeyUpload)| {
            upload.operation.acknowledged().is_some() && !self.handed_out.contains_key(**key)
        };
        let mut missing: Vec<&str> = self.uploaded.iter().filter(is_missing).map(|(key, _)| *key).collect();
        if missing.len() > self.in_doubt {
            missing.sort_unstable();
            found.add(Property::OneTimeKey, || {
                let (lost, doubt) = (missing.len(), self.in_doubt);
                format!("{lost} keys of {device} are gone and {doubt} claims may have taken one: {missing:?}")
            });
        }
    }
}
