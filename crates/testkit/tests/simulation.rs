//! Seeds of the simulation. `COFACTOR_SEED=n` runs one.

use cofactor_entity::Planted;
use cofactor_testkit::simulation::run;

const SEEDS: u64 = 100;

#[test]
fn nothing_acknowledged_is_lost_doubled_or_reordered_whatever_fails() {
    let only = option_env!("COFACTOR_SEED").and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let outcome = run(seed, Planted::Nothing);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 4] {
        assert_eq!(run(seed, Planted::Nothing), run(seed, Planted::Nothing), "seed {seed}");
    }
}

#[test]
fn an_acknowledgement_before_the_commit_is_caught() {
    assert!((0..SEEDS).any(|seed| run(seed, Planted::AcknowledgeBeforeCommit).violation.is_some()));
}

#[test]
fn an_unknown_append_tried_again_as_new_is_caught() {
    assert!((0..SEEDS).any(|seed| run(seed, Planted::RetryUnknownAsNew).violation.is_some()));
}
