//! What the token of an account in 1,000 rooms costs: `cargo bench -p cofactor-types --bench token`. How long it is,
//! the tests of `token.rs` hold.

use std::hint::black_box;

use cofactor_types::{EntityHash, Position, SyncToken, limits::TOKEN_EXCEPTIONS_MAX};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const BASE: u64 = 1_790_000_000_000_000;

/// Rooms of the account with an event since the last heartbeat but one: none, what fits into 100 bytes, and the most.
const ACTIVE: [u64; 4] = [0, 5, 50, TOKEN_EXCEPTIONS_MAX as u64];

fn token(active: u64) -> SyncToken {
    let mut token = SyncToken::new(Position(BASE));
    for room in 0..active {
        token.deliver_hash(EntityHash(u64::MAX / 1_000 * (room + 1)), Position(BASE + 200_000 - room));
    }
    token
}

fn tokens(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token");
    for active in ACTIVE {
        let (token, text) = (token(active), token(active).to_string());
        group.bench_with_input(BenchmarkId::new("write", active), &token, |bench, token| {
            bench.iter(|| black_box(token).to_string());
        });
        group.bench_with_input(BenchmarkId::new("read", active), &text, |bench, text| {
            bench.iter(|| black_box(text).parse::<SyncToken>());
        });
    }
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
