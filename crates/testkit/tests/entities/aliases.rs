//! Aliases. <https://spec.matrix.org/v1.19/client-server-api/#room-aliases>

use cofactor_rooms::Preset;
use cofactor_testkit::lab::{on_both_stores, room_options};
use cofactor_types::ErrorClass;
use ruma::room_alias_id;

#[test]
fn of_many_who_want_an_alias_at_once_one_gets_it_and_keeps_it() {
    on_both_stores(async |mut lab| {
        let alice = lab.account("alice").await;
        let alias = room_alias_id!("#lounge:sim.example");
        let mut rooms = Vec::new();
        for _ in 0..10 {
            rooms.push(lab.room(&room_options(&alice, Preset::PublicChat)).await);
        }
        let tries = rooms.iter().map(|room_id| lab.core().rooms.set_alias(alias, room_id, &alice));
        let outcomes = futures::future::join_all(tries).await;
        let winners: Vec<usize> = (0..10).filter(|index| outcomes[*index].is_ok()).collect();
        assert_eq!(winners.len(), 1);
        let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        assert!(refused.into_iter().all(|fault| fault.class == ErrorClass::Conflict));
        lab.crash().await;
        let winner = &rooms[winners[0]];
        assert_eq!(lab.core().rooms.resolve_alias(alias).await.unwrap().unwrap().room_id, *winner);
        for room_id in &rooms {
            let listed = lab.core().rooms.aliases_of(room_id).await.unwrap();
            assert_eq!(listed.len(), usize::from(room_id == winner));
        }
    });
}

#[test]
fn an_alias_is_taken_away_by_its_creator_or_by_who_may_name_the_room_once() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        let alias = room_alias_id!("#den:sim.example");
        lab.core().rooms.set_alias(alias, &room_id, &alice).await.unwrap();
        assert!(lab.core().rooms.delete_alias(alias, &bob).await.is_err());
        let both = [&alice, &alice].map(|user_id| lab.core().rooms.delete_alias(alias, user_id));
        let outcomes = futures::future::join_all(both).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert_eq!(lab.core().rooms.resolve_alias(alias).await.unwrap(), None);
        lab.core().rooms.set_alias(alias, &room_id, &bob).await.unwrap();
        lab.core().rooms.delete_alias(alias, &alice).await.unwrap();
    });
}

#[test]
fn rooms_that_are_alike_and_made_at_the_same_moment_are_different_rooms() {
    on_both_stores(async |lab| {
        let alice = lab.account("alice").await;
        for version in ["10", "11", "12"] {
            let mut options = room_options(&alice, Preset::PrivateChat);
            options.version = cofactor_room::room_version(version).unwrap();
            let made = futures::future::join_all((0..8).map(|_| lab.room(&options))).await;
            let different: std::collections::BTreeSet<_> = made.iter().collect();
            assert_eq!(different.len(), 8, "{version}");
        }
    });
}
