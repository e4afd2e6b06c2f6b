//! Runs seeds of a simulation. One seed prints its trace, several only what they violate.

use std::{
    io::{self, Write},
    time::Instant,
};

use clap::{Parser, ValueEnum};
use cofactor_entity::Planted;
use cofactor_testkit::{cluster, simulation};

/// What is simulated.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum World {
    /// One node.
    Node,
    /// Some nodes.
    Cluster,
}

/// A bug to plant.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Bug {
    #[default]
    Nothing,
    AcknowledgeBeforeCommit,
    RetryUnknownAsNew,
    TakeUnknownForFailed,
    NoFence,
    IgnoreBusGaps,
    TokenFromMemory,
    ForgetTransactions,
}

/// Run seeds of a simulation; RUST_LOG shows what the nodes log.
#[derive(Debug, Parser)]
struct Args {
    /// What is simulated.
    world: World,
    /// The first seed.
    #[arg(default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(default_value_t = 1)]
    count: u64,
    /// A bug to plant.
    #[arg(long, value_enum, default_value_t)]
    planted: Bug,
    /// End with the first seed that violates something.
    #[arg(long)]
    first: bool,
}

fn main() -> io::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let args = Args::parse();
    let planted = match args.planted {
        Bug::Nothing => Planted::Nothing,
        Bug::AcknowledgeBeforeCommit => Planted::AcknowledgeBeforeCommit,
        Bug::RetryUnknownAsNew => Planted::RetryUnknownAsNew,
        Bug::TakeUnknownForFailed => Planted::TakeUnknownForFailed,
        Bug::NoFence => Planted::NoFence,
        Bug::IgnoreBusGaps => Planted::IgnoreBusGaps,
        Bug::TokenFromMemory => Planted::TokenFromMemory,
        Bug::ForgetTransactions => Planted::ForgetTransactions,
    };
    let mut out = io::stdout();
    let (mut violated, began) = (0, Instant::now());
    for seed in args.seed..args.seed + args.count {
        let outcome = match args.world {
            World::Node => simulation::run(seed, planted),
            World::Cluster => cluster::run(seed, planted),
        };
        if args.count == 1 {
            writeln!(out, "{}", outcome.trace)?;
        }
        if let Some(violation) = outcome.violation {
            violated += 1;
            writeln!(out, "seed {seed}: {}", violation.chars().take(600).collect::<String>())?;
            if args.first {
                break;
            }
        }
    }
    writeln!(out, "{violated} of {} seeds violate something, in {:?}", args.count, began.elapsed())
}
