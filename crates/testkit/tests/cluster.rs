//! Seeds of the simulated cluster: `cargo run -p cofactor-testkit --example simulate -- cluster SEED 1` shows one.

use cofactor_entity::Planted;
use cofactor_testkit::cluster::run;

/// Seeds in which a planted bug must be caught.
const SEEDS: u64 = 300;

fn holds(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        assert_eq!(run(seed, Planted::Nothing).violation, None, "seed {seed}");
    }
}

fn is_caught(planted: Planted) {
    // From the end: of these seeds it is one of the last that needs a fence.
    assert!((0..SEEDS).rev().any(|seed| run(seed, planted).violation.is_some()), "{planted:?} is not caught");
}

#[test]
fn nothing_is_lost_doubled_or_reordered_first_hundred() {
    holds(0..100);
}

#[test]
fn nothing_is_lost_doubled_or_reordered_second_hundred() {
    holds(100..200);
}

#[test]
fn nothing_is_lost_doubled_or_reordered_third_hundred() {
    holds(200..300);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2] {
        assert_eq!(run(seed, Planted::Nothing), run(seed, Planted::Nothing), "seed {seed}");
    }
}

#[test]
fn a_log_without_fences_is_caught() {
    is_caught(Planted::NoFence);
}

#[test]
fn an_unknown_append_taken_for_a_failed_one_is_caught() {
    is_caught(Planted::TakeUnknownForFailed);
}

#[test]
fn a_listener_that_ignores_gaps_is_caught() {
    is_caught(Planted::IgnoreBusGaps);
}

#[test]
fn tokens_out_of_memory_are_caught() {
    is_caught(Planted::TokenFromMemory);
}

#[test]
fn transactions_that_a_crash_forgets_are_caught() {
    is_caught(Planted::ForgetTransactions);
}
