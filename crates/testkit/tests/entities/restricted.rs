//! Joins by the restricted join rule. <https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms>

use cofactor_rooms::{CreateRoomOptions, Preset};
use cofactor_testkit::lab::{Lab, on_both_stores, room_options};
use cofactor_wire::room::MembershipAction::{Ban, Invite, Join, Leave};
use ruma::{OwnedRoomId, RoomId, UserId};
use serde_json::{Map, Value, json};

async fn restricted(lab: &Lab, creator: &UserId, allowed: &[&RoomId], version: &str) -> OwnedRoomId {
    let allow: Vec<Value> =
        allowed.iter().map(|room_id| json!({ "type": "m.room_membership", "room_id": room_id })).collect();
    let mut rules = Map::new();
    rules.insert("join_rule".into(), "restricted".into());
    rules.insert("allow".into(), allow.into());
    let options = CreateRoomOptions {
        version: cofactor_room::room_version(version).unwrap(),
        initial_state: vec![("m.room.join_rules".into(), String::new(), rules)],
        ..room_options(creator, Preset::PrivateChat)
    };
    lab.room(&options).await
}

#[test]
fn members_of_an_allowed_room_may_join_and_nobody_else() {
    on_both_stores(async |mut lab| {
        let (alice, bob, eve) = (lab.account("alice").await, lab.account("bob").await, lab.account("eve").await);
        for version in ["8", "10", "11", "12"] {
            let space = lab.room(&room_options(&alice, Preset::PublicChat)).await;
            let room_id = restricted(&lab, &alice, &[&space], version).await;
            assert!(lab.member(&room_id, &bob, &bob, Join).await.is_err(), "{version}");
            lab.member(&space, &bob, &bob, Join).await.unwrap();
            lab.idle().await;
            lab.member(&room_id, &bob, &bob, Join).await.unwrap_or_else(|fault| panic!("{version}: {fault}"));
            // Whoever has left the allowed room stays, but does not come back.
            lab.member(&space, &bob, &bob, Leave).await.unwrap();
            lab.say(&room_id, &bob, "PHONE", version, "still here").await.unwrap();
            lab.member(&room_id, &bob, &bob, Leave).await.unwrap();
            lab.crash().await;
            assert!(lab.member(&room_id, &bob, &bob, Join).await.is_err(), "{version}");
            // An invitation needs no other room.
            lab.member(&room_id, &alice, &eve, Invite).await.unwrap();
            lab.member(&room_id, &eve, &eve, Join).await.unwrap();
        }
    });
}

#[test]
fn being_banned_or_only_invited_in_the_allowed_room_is_not_being_a_member() {
    on_both_stores(async |lab| {
        let (alice, bob, eve) = (lab.account("alice").await, lab.account("bob").await, lab.account("eve").await);
        let space = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        let room_id = restricted(&lab, &alice, &[&space], "12").await;
        lab.member(&space, &alice, &bob, Ban).await.unwrap();
        lab.member(&space, &alice, &eve, Invite).await.unwrap();
        assert!(lab.member(&room_id, &bob, &bob, Join).await.is_err());
        assert!(lab.member(&room_id, &eve, &eve, Join).await.is_err());
        // Banned here is banned, whatever one is a member of.
        lab.member(&space, &eve, &eve, Join).await.unwrap();
        lab.member(&room_id, &alice, &eve, Ban).await.unwrap();
        assert!(lab.member(&room_id, &eve, &eve, Join).await.is_err());
    });
}

#[test]
fn nobody_gets_in_when_no_member_may_invite() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let space = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        let room_id = restricted(&lab, &alice, &[&space], "11").await;
        lab.member(&space, &bob, &bob, Join).await.unwrap();
        lab.member(&room_id, &alice, &alice, Leave).await.unwrap();
        assert!(lab.member(&room_id, &bob, &bob, Join).await.is_err());
    });
}
