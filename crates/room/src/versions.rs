//! The room versions this server speaks: one table, one row each.

use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};

/// Whether a room version may be used for new rooms without a warning.
///
/// See <https://spec.matrix.org/v1.19/client-server-api/#mroom_versions-capability>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Specified and safe to use.
    Stable,
    /// Experimental: only on explicit request.
    Unstable,
}

impl Stability {
    /// The word used in `/capabilities`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Unstable => "unstable",
        }
    }
}

/// A supported room version: its name, its stability and the rules that hold in it.
///
/// There is one value for each version, in a static table; code passes `&'static RoomVersion` around.
#[derive(Debug)]
pub struct RoomVersion {
    name: &'static str,
    stability: Stability,
    rules: RoomVersionRules,
}

/// The name of the version of a room created without an explicit one.
///
/// See <https://spec.matrix.org/v1.19/rooms/#complete-list-of-room-versions>.
const DEFAULT_ROOM_VERSION: usize = 11;

/// Every supported room version. A new version is one more row.
static TABLE: [RoomVersion; 12] = [
    stable("1", RoomVersionRules::V1),
    stable("2", RoomVersionRules::V2),
    stable("3", RoomVersionRules::V3),
    stable("4", RoomVersionRules::V4),
    stable("5", RoomVersionRules::V5),
    stable("6", RoomVersionRules::V6),
    stable("7", RoomVersionRules::V7),
    stable("8", RoomVersionRules::V8),
    stable("9", RoomVersionRules::V9),
    stable("10", RoomVersionRules::V10),
    stable("11", RoomVersionRules::V11),
    stable("12", RoomVersionRules::V12),
];

const fn stable(name: &'static str, rules: RoomVersionRules) -> RoomVersion {
    RoomVersion { name, stability: Stability::Stable, rules }
}

impl RoomVersion {
    /// The name of the version, as in `content.room_version` of `m.room.create`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The version as an identifier.
    pub fn id(&self) -> RoomVersionId {
        // A known name is never empty and never too long, the only two reasons to fail.
        RoomVersionId::try_from(self.name).unwrap_or(RoomVersionId::V12)
    }

    /// Whether the version is stable.
    pub fn stability(&self) -> Stability {
        self.stability
    }

    /// The rules that hold in rooms of this version.
    pub fn rules(&self) -> &RoomVersionRules {
        &self.rules
    }

    /// Whether events carry their own id (versions 1 and 2) instead of being named by their hash.
    ///
    /// See <https://spec.matrix.org/v1.19/rooms/v3/#event-ids>.
    pub fn event_id_in_event(&self) -> bool {
        self.rules.event_format.require_event_id
    }

    /// Whether the room id is the hash of the create event (from version 12 on).
    ///
    /// See <https://spec.matrix.org/v1.19/rooms/v12/#event-format-1>.
    pub fn room_id_is_create_hash(&self) -> bool {
        self.rules.authorization.room_create_event_id_as_room_id
    }

    /// Whether a redaction names its target in `content.redacts` (from version 11 on).
    ///
    /// See <https://spec.matrix.org/v1.19/rooms/v11/#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property>.
    pub fn redacts_in_content(&self) -> bool {
        self.rules.redaction.content_field_redacts
    }
}

impl PartialEq for RoomVersion {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for RoomVersion {}

/// The supported version of that name, if there is one.
pub fn room_version(name: &str) -> Option<&'static RoomVersion> {
    TABLE.iter().find(|version| version.name == name)
}

/// The version of a room created without an explicit one.
pub fn default_room_version() -> &'static RoomVersion {
    &TABLE[DEFAULT_ROOM_VERSION]
}

/// All supported versions, oldest first.
pub fn supported_room_versions() -> &'static [RoomVersion] {
    &TABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_name_and_keeps_it_as_identifier() {
        for version in supported_room_versions() {
            assert_eq!(room_version(version.name()), Some(version));
            assert_eq!(version.id().as_str(), version.name());
            assert!(version.id().rules().is_some());
        }
        assert_eq!(supported_room_versions().len(), 12);
    }

    #[test]
    fn the_default_version_is_twelve_and_stable() {
        assert_eq!(default_room_version().name(), "12");
        assert_eq!(default_room_version().stability(), Stability::Stable);
    }

    #[test]
    fn an_unknown_version_is_not_found() {
        for name in ["", "0", "13", "org.example.unknown", "01"] {
            assert!(room_version(name).is_none(), "{name}");
        }
    }
}
