//! Who may see an event, by the history visibility at that event.
//!
//! See <https://spec.matrix.org/v1.19/client-server-api/#server-behaviour-6>.

/// The value of `m.room.history_visibility`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HistoryVisibility {
    /// Everyone may read events sent while this holds.
    WorldReadable,
    /// Members may read everything, also what was sent before they joined.
    #[default]
    Shared,
    /// Members may read from their invitation on.
    Invited,
    /// Members may read from their join on.
    Joined,
}

impl HistoryVisibility {
    /// Reads the `history_visibility` of the content; absent or unknown means [`Self::Shared`], as specified.
    pub fn from_content(value: Option<&str>) -> Self {
        match value {
            Some("world_readable") => Self::WorldReadable,
            Some("invited") => Self::Invited,
            Some("joined") => Self::Joined,
            _ => Self::Shared,
        }
    }
}

/// A membership, as far as visibility asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Membership {
    /// In the room.
    Join,
    /// Invited, not in the room.
    Invite,
    /// Asked to be let in, not in the room.
    Knock,
    /// Left, was removed, or never was there.
    #[default]
    Leave,
    /// Banned.
    Ban,
}

impl Membership {
    /// Reads the `membership` of the content; absent or unknown means [`Self::Leave`].
    pub fn from_content(value: Option<&str>) -> Self {
        match value {
            Some("join") => Self::Join,
            Some("invite") => Self::Invite,
            Some("knock") => Self::Knock,
            Some("ban") => Self::Ban,
            _ => Self::Leave,
        }
    }
}

/// What is needed to decide whether one user may see one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventView {
    /// The history visibility in the state before the event.
    pub visibility_before: HistoryVisibility,
    /// The history visibility that the event sets, if it is an `m.room.history_visibility` state event.
    pub visibility_set: Option<HistoryVisibility>,
    /// The membership of the viewer in the state before the event.
    pub membership_before: Membership,
    /// The membership that the event sets, if it is the viewer's own `m.room.member` event.
    pub membership_set: Option<Membership>,
    /// Whether the viewer joined the room at any point after the event was sent, even if gone since.
    pub joined_later: bool,
}

/// Whether the viewer may see the event.
///
/// An event that changes the visibility, or the viewer's own membership, is shown if the value before *or* after
/// it would show it.
pub fn is_visible(view: EventView) -> bool {
    let visibilities = [Some(view.visibility_before), view.visibility_set];
    let memberships = [Some(view.membership_before), view.membership_set];
    visibilities.into_iter().flatten().any(|visibility| {
        memberships.into_iter().flatten().any(|membership| allows(visibility, membership, view.joined_later))
    })
}

/// The five numbered rules of the specification, in its order.
fn allows(visibility: HistoryVisibility, membership: Membership, joined_later: bool) -> bool {
    if visibility == HistoryVisibility::WorldReadable {
        return true;
    }
    if membership == Membership::Join {
        return true;
    }
    if visibility == HistoryVisibility::Shared && joined_later {
        return true;
    }
    membership == Membership::Invite && visibility == HistoryVisibility::Invited
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISIBILITIES: [Option<&str>; 6] =
        [None, Some("world_readable"), Some("shared"), Some("invited"), Some("joined"), Some("unheard-of")];
    const MEMBERSHIPS: [Option<&str>; 7] =
        [None, Some("join"), Some("invite"), Some("knock"), Some("leave"), Some("ban"), Some("unheard-of")];

    /// The specification read as one expression over the words of the events, apart from the code above.
    fn oracle(visibility: Option<&str>, membership: Option<&str>, joined_later: bool) -> bool {
        let shared = !matches!(visibility, Some("world_readable" | "invited" | "joined"));
        visibility == Some("world_readable")
            || membership == Some("join")
            || (shared && joined_later)
            || (membership == Some("invite") && visibility == Some("invited"))
    }

    fn view(visibility: Option<&str>, membership: Option<&str>, joined_later: bool) -> EventView {
        EventView {
            visibility_before: HistoryVisibility::from_content(visibility),
            visibility_set: None,
            membership_before: Membership::from_content(membership),
            membership_set: None,
            joined_later,
        }
    }

    #[test]
    fn every_visibility_and_membership_follows_the_numbered_rules() {
        let mut cases = 0;
        for visibility in VISIBILITIES {
            for membership in MEMBERSHIPS {
                for joined_later in [false, true] {
                    assert_eq!(
                        is_visible(view(visibility, membership, joined_later)),
                        oracle(visibility, membership, joined_later),
                        "{visibility:?} {membership:?} {joined_later}"
                    );
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 84);
    }

    #[test]
    fn a_change_of_visibility_is_seen_if_either_value_shows_it() {
        for before in VISIBILITIES {
            for after in VISIBILITIES {
                for membership in MEMBERSHIPS {
                    for joined_later in [false, true] {
                        let mut view = view(before, membership, joined_later);
                        view.visibility_set = Some(HistoryVisibility::from_content(after));
                        let expected =
                            oracle(before, membership, joined_later) || oracle(after, membership, joined_later);
                        assert_eq!(is_visible(view), expected, "{before:?} -> {after:?} {membership:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_viewers_own_membership_change_is_seen_if_either_membership_shows_it() {
        for visibility in VISIBILITIES {
            for before in MEMBERSHIPS {
                for after in MEMBERSHIPS {
                    let mut view = view(visibility, before, false);
                    view.membership_set = Some(Membership::from_content(after));
                    let expected = oracle(visibility, before, false) || oracle(visibility, after, false);
                    assert_eq!(is_visible(view), expected, "{visibility:?} {before:?} -> {after:?}");
                }
            }
        }
    }

    #[test]
    fn a_kicked_member_sees_the_kick_but_nothing_after_it() {
        let mut kick = view(Some("joined"), Some("join"), false);
        kick.membership_set = Some(Membership::Leave);
        assert!(is_visible(kick));
        assert!(!is_visible(view(Some("shared"), Some("leave"), false)));
    }
}
