//! The place of a rule among those of its kind.

use cofactor_types::{ErrorClass, Fault};
use ruma::push::{ConditionalPushRule, PatternedPushRule, PredefinedOverrideRuleId, SimplePushRule};

/// A rule of any kind.
pub(crate) trait Placed {
    fn rule_id(&self) -> &str;
    fn enabled(&mut self) -> &mut bool;
}

impl Placed for ConditionalPushRule {
    fn rule_id(&self) -> &str {
        &self.rule_id
    }

    fn enabled(&mut self) -> &mut bool {
        &mut self.enabled
    }
}

impl Placed for PatternedPushRule {
    fn rule_id(&self) -> &str {
        &self.rule_id
    }

    fn enabled(&mut self) -> &mut bool {
        &mut self.enabled
    }
}

impl<T: AsRef<str>> Placed for SimplePushRule<T> {
    fn rule_id(&self) -> &str {
        self.rule_id.as_ref()
    }

    fn enabled(&mut self) -> &mut bool {
        &mut self.enabled
    }
}

/// Where a rule is wanted: right after one of the user's own, or right before one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) after: Option<&'a str>,
    pub(crate) before: Option<&'a str>,
}

impl Place<'_> {
    /// Puts `rule` among `set`, which stays as it is if there is no such place.
    pub(crate) fn put<T, S>(self, set: &mut S, mut rule: T) -> Result<(), Fault>
    where
        T: Placed + Clone,
        S: Clone + IntoIterator<Item = T> + FromIterator<T>,
    {
        let mut rules: Vec<T> = set.clone().into_iter().collect();
        let known = rules.iter().position(|known| known.rule_id() == rule.rule_id());
        if let Some(known) = known {
            *rule.enabled() = *rules.remove(known).enabled();
        }
        let index = match (self.index(&rules)?, known) {
            (Some(index), _) | (None, Some(index)) => index,
            // The most important of the user's own; the one rule that switches all others off stands above it.
            (None, None) => {
                let is_master = |rule: &&T| rule.rule_id() == PredefinedOverrideRuleId::Master.as_str();
                usize::from(rules.first().filter(is_master).is_some())
            }
        };
        rules.insert(index, rule);
        *set = rules.into_iter().collect();
        Ok(())
    }

    /// The place asked for among `rules`. With both neighbours it is right before `before`.
    fn index<T: Placed>(self, rules: &[T]) -> Result<Option<usize>, Fault> {
        let find = |rule_id: &str| {
            if rule_id.starts_with('.') {
                return Err(misplaced("a rule cannot be placed relative to a predefined one".to_owned()));
            }
            let found = rules.iter().position(|rule| rule.rule_id() == rule_id);
            found.ok_or_else(|| misplaced(format!("before/after rule not found: {rule_id}")))
        };
        let after = self.after.map(find).transpose()?;
        let before = self.before.map(find).transpose()?;
        match (after, before) {
            (Some(after), Some(before)) if before <= after => {
                Err(misplaced("`before` names a more important rule than `after`".to_owned()))
            }
            (_, Some(before)) => Ok(Some(before)),
            (Some(after), None) => Ok(Some(after + 1)),
            (None, None) => Ok(None),
        }
    }
}

fn misplaced(message: String) -> Fault {
    Fault::new(ErrorClass::Invalid, "M_UNKNOWN", message)
}
