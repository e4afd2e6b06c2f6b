//! Runs one seed of the simulation and prints its trace.

use std::io::Write;

use cofactor_entity::Planted;
use cofactor_testkit::simulation::run;

fn main() {
    let seed = std::env::args().nth(1).and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let outcome = run(seed, Planted::Nothing);
    let _ = writeln!(std::io::stdout(), "{}\n{:?}", outcome.trace, outcome.violation);
}
