//! The load test against a server whose faults are known: every fault must be reported as what it is, and a server
//! without faults must come out clean.
#![expect(clippy::unwrap_used, reason = "a test fails where an assumption does")]

mod fake;

use std::time::Duration;

use cofactor_loadtest::check::Patience;
use cofactor_loadtest::gate;
use cofactor_loadtest::progress::Progress;
use cofactor_loadtest::report::{page, table};
use cofactor_loadtest::run::{Report, run};
use cofactor_loadtest::scenario::{ALL, Context, Known, Plan};
use cofactor_loadtest::target::Target;
use cofactor_loadtest::world::{Bounds, ClientBounds, World, connect};

use fake::{Fake, Fault};

const CLIENT: ClientBounds =
    ClientBounds { connections_max: 64, time_limit: Duration::from_millis(500), i_own_this_server: false };
const BOUNDS: Bounds = Bounds { users_max: 50, rooms_max: 50 };

fn plan() -> Plan {
    Plan {
        members: vec![3],
        rooms: vec![2],
        changed: Vec::new(),
        in_flight: vec![4],
        rounds: 1,
        time: Duration::from_millis(200),
        warm_up: Duration::ZERO,
        requests_max: 60,
        open_rate_max: 500.0,
        patience: Patience { late: Duration::from_millis(300), lost: Duration::from_secs(3) },
        ..Plan::default()
    }
}

async fn world(target: Target) -> anyhow::Result<World> {
    connect(target, CLIENT, None, "u".to_owned(), BOUNDS).await
}

async fn measure(fault: Fault, name: &str, plan: Plan) -> anyhow::Result<Report> {
    let target = Fake::start(fault).await;
    let known: Vec<&Known> = ALL.iter().filter(|known| known.name == name).collect();
    let context = Context { plan, progress: Progress::silent() };
    run(&mut [world(target).await?], &known, None, &context).await
}

async fn sends(fault: Fault) -> Report {
    measure(fault, "send", plan()).await.unwrap()
}

#[tokio::test]
async fn a_server_without_faults_is_valid_and_every_member_saw_everything() {
    let report = sends(Fault::None).await;
    let findings = report.rows[0].findings.clone().unwrap();
    assert!(report.valid(), "{findings:?} {:?}", report.rows[0].invalid);
    assert!(findings.events > 60, "more than the capacity phase: {findings:?}");
    assert_eq!((findings.members, findings.deliveries), (3, 3 * findings.events));
    assert!(report.rows[0].latency_ms.is_some() && report.rows[0].failed.is_empty());
}

#[tokio::test]
async fn dropped_events_are_reported_as_lost() {
    let report = sends(Fault::Drop).await;
    let findings = report.rows[0].findings.clone().unwrap();
    assert!(findings.lost >= 6 && findings.repeated + findings.reordered == 0, "{findings:?}");
    assert!(!report.valid());
}

#[tokio::test]
async fn repeated_events_are_reported_as_repeated() {
    let report = sends(Fault::Repeat).await;
    let findings = report.rows[0].findings.clone().unwrap();
    assert!(findings.repeated >= 6 && findings.lost + findings.reordered == 0, "{findings:?}");
    assert!(!report.valid());
}

#[tokio::test]
async fn reordered_events_are_reported_as_out_of_order() {
    let report = sends(Fault::Reorder).await;
    let findings = report.rows[0].findings.clone().unwrap();
    assert!(findings.reordered >= 6 && findings.lost + findings.repeated == 0, "{findings:?}");
    assert!(!report.valid());
}

#[tokio::test]
async fn delayed_events_are_reported_as_late_and_not_as_lost() {
    let report = sends(Fault::Delay(Duration::from_millis(1000))).await;
    let findings = report.rows[0].findings.clone().unwrap();
    assert!(findings.late > 0 && findings.lost + findings.repeated + findings.reordered == 0, "{findings:?}");
    assert!(!report.valid());
}

#[tokio::test]
async fn an_acknowledged_id_that_nobody_sees_is_reported() {
    let findings = sends(Fault::WrongId).await.rows[0].findings.clone().unwrap();
    assert!(findings.repeated >= 6, "{findings:?}");
}

#[tokio::test]
async fn refusals_and_silence_are_counted_apart_and_are_no_losses() {
    let refused = sends(Fault::Refuse).await;
    let row = &refused.rows[0];
    assert!(row.failed["status 500"] >= 6 && row.timed_out == 0 && refused.valid(), "{:?}", row.invalid);
    assert!(row.latency_ms.as_ref().unwrap().p99.is_infinite(), "what failed stands behind every percentile");
    let hung = sends(Fault::Hang).await;
    let row = &hung.rows[0];
    assert!(row.timed_out >= 1 && row.failed.is_empty() && row.invalid.is_none(), "{row:?}");
}

#[tokio::test]
async fn everybody_who_waits_is_woken_once_by_each_event() {
    let plan = Plan { waiters: vec![3], ..plan() };
    let report = measure(Fault::None, "wake", plan).await.unwrap();
    let findings = report.rows[0].findings.clone().unwrap();
    assert!(report.valid(), "{findings:?}");
    assert_eq!((findings.events, findings.members, findings.deliveries), (2, 3, 6));
    assert!(report.rows[0].figures["ms until the last waiter has it"] < 1000.0);
}

#[tokio::test]
async fn a_scenario_that_cannot_be_measured_says_why_and_the_others_go_on() {
    let target = Fake::start(Fault::None).await;
    let known: Vec<&Known> = ALL.iter().filter(|known| ["media", "incremental"].contains(&known.name)).collect();
    let context = Context { plan: plan(), progress: Progress::silent() };
    let report = run(&mut [world(target).await.unwrap()], &known, None, &context).await.unwrap();
    assert!(report.failures[0].starts_with("media: preparing media upload"), "{:?}", report.failures);
    assert!(!report.valid() && report.rows.iter().all(|row| row.scenario == "incremental"));
    assert!(table::render(&report).contains("NOT MEASURED: media"));
}

#[tokio::test]
async fn work_for_each_member_is_refused_by_the_gate() {
    let target = Fake::start(Fault::WorkForEachMember(Duration::from_micros(100))).await;
    let target = Target { pids: vec![std::process::id()], ..target };
    let plan = Plan { members: vec![1, 10, 40], open: false, requests_max: 30, time: Duration::from_secs(5), ..plan() };
    let known: Vec<&Known> = ALL.iter().filter(|known| known.name == "send").collect();
    let context = Context { plan, progress: Progress::silent() };
    let report = run(&mut [world(target).await.unwrap()], &known, None, &context).await.unwrap();
    let refusal = gate::judge(&report).unwrap_err().to_string();
    assert!(refusal.contains("the CPU time grows like members^"), "{refusal}");
}

#[tokio::test]
async fn targets_take_turns_and_stand_side_by_side_in_every_report() {
    let mut targets = [Fake::start(Fault::None).await, Fake::start(Fault::Drop).await];
    targets[1].name = "lossy <b>".to_owned();
    let [first, second] = targets;
    let mut worlds = [world(first).await.unwrap(), world(second).await.unwrap()];
    let known: Vec<&Known> = ALL.iter().filter(|known| ["send", "incremental"].contains(&known.name)).collect();
    let context = Context { plan: plan(), progress: Progress::silent() };
    let report = run(&mut worlds, &known, None, &context).await.unwrap();
    assert_eq!(report.rows.len(), 6);
    let (table, page) = (table::render(&report), page::render(&report));
    assert!(table.contains("INVALID: lossy <b>: send") && !table.contains("INVALID: fake"), "{table}");
    assert!(page.contains("lossy &lt;b&gt;") && !page.contains("<b>") && page.contains("<svg"));
    assert!(!page.contains("http://") && !page.contains("<script"), "the page loads nothing");
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rows"][0]["target"], "fake");
}

#[tokio::test]
async fn what_is_wrong_with_a_target_is_said_with_what_to_change() {
    let refusal = async |fault| format!("{:#}", measure(fault, "send", plan()).await.unwrap_err());
    assert!(refusal(Fault::RegistrationClosed).await.contains("registration is closed"));
    assert!(refusal(Fault::RateLimited).await.contains("Turn the limits off"));
    assert!(refusal(Fault::NoHomeserver).await.contains("not a Matrix homeserver"));
    let mut target = Fake::start(Fault::None).await;
    target.registration_token = None;
    let mut without = world(target.clone()).await.unwrap();
    let refused = without.users(1, &Progress::silent()).await.unwrap_err().to_string();
    assert!(refused.contains("--registration-token"), "{refused}");
    let nobody = Target::parse("http://127.0.0.1:1").unwrap();
    let unreachable = world(nobody).await.err().unwrap().to_string();
    assert!(unreachable.contains("Is the server up"), "{unreachable}");
    let mut small = world(Target { registration_token: Some(fake::TOKEN.to_owned()), ..target }).await.unwrap();
    let refused = small.users(51, &Progress::silent()).await.unwrap_err().to_string();
    assert!(refused.contains("--users-max allows 50"), "{refused}");
}

#[tokio::test]
async fn a_state_file_gives_back_the_same_accounts_and_rooms() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fake.json");
    let target = Fake::start(Fault::None).await;
    let silent = Progress::silent();
    let mut made = connect(target.clone(), CLIENT, Some(file.clone()), "u".to_owned(), BOUNDS).await.unwrap();
    let room = made.room("room-3", 3, &silent).await.unwrap();
    let users = made.users(3, &silent).await.unwrap().to_vec();
    let mut again = connect(target, CLIENT, Some(file), "v".to_owned(), BOUNDS).await.unwrap();
    assert_eq!(again.room("room-3", 3, &silent).await.unwrap(), room);
    assert_eq!(again.users(3, &silent).await.unwrap(), users);
}
