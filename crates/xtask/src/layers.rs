//! `cargo xtask layers`: every edge between workspace crates stands in one table, and so does every user of a
//! library that belongs to one crate.
//!
//! To add a crate, give it a row in [`HOUSE`]. To let a crate see another, name it in that row: the tests below
//! refuse a row that breaks the rules of the house.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One crate of the house: the layer it lies in, and the crates it may depend on.
struct Row {
    name: &'static str,
    layer: u8,
    sees: &'static [&'static str],
}

const fn row(layer: u8, name: &'static str, sees: &'static [&'static str]) -> Row {
    Row { name, layer, sees }
}

/// The house. A crate named here need not exist yet; a crate of the workspace must be named here.
const HOUSE: &[Row] = &[
    row(0, "types", &[]),
    row(0, "telemetry", &[]),
    row(0, "golden", &[]),
    row(1, "room", &["types"]),
    row(1, "shard", &["types"]),
    row(1, "wire", &["types"]),
    row(1, "store", &["types", "telemetry"]),
    row(1, "bus", &["types", "telemetry"]),
    row(2, "entity", &["types", "telemetry", "shard", "wire", "store", "bus"]),
    row(2, "store-embedded", &["types", "telemetry", "store"]),
    row(2, "store-cql", &["types", "telemetry", "store"]),
    row(2, "bus-redis", &["types", "telemetry", "bus"]),
    row(2, "rpc", &["types", "telemetry", "wire"]),
    row(2, "history", &["types", "telemetry", "room", "wire", "store"]),
    row(3, "rooms", &["types", "telemetry", "room", "shard", "wire", "history", "store", "bus", "entity"]),
    row(3, "users", &["types", "telemetry", "shard", "wire", "store", "bus", "entity"]),
    row(3, "sync", &["types", "telemetry", "room", "shard", "wire", "history", "store", "bus", "entity"]),
    row(3, "federation", &["types", "telemetry", "room", "shard", "wire", "history", "store", "bus", "entity"]),
    row(3, "push", &["types", "telemetry", "shard", "wire", "store", "bus", "entity"]),
    row(3, "appservices", &["types", "telemetry", "shard", "wire", "store", "bus", "entity"]),
    row(3, "media", &["types", "telemetry", "wire", "store", "bus", "entity"]),
    row(4, "http", &["types", "telemetry", "wire"]),
    row(5, "api", BELOW_API),
    row(6, "node", BELOW_NODE),
    row(7, "server", &["types", "telemetry", "node"]),
    row(7, "testkit", BELOW_TESTKIT),
    row(7, "loadtest", &[]),
    row(7, "xtask", &[]),
];

/// What the tests of every crate may see.
const FOR_TESTS: &[&str] = &["testkit", "golden"];

#[rustfmt::skip]
const BELOW_API: &[&str] = &[
    "types", "telemetry", "room", "wire", "store", "bus", "history", "rooms", "users", "sync", "federation", "push",
    "appservices", "media", "http",
];

#[rustfmt::skip]
const BELOW_NODE: &[&str] = &[
    "types", "telemetry", "room", "shard", "wire", "store", "bus", "entity", "store-embedded", "store-cql",
    "bus-redis", "rpc", "history", "rooms", "users", "sync", "federation", "push", "appservices", "media", "http", "api",
];

#[rustfmt::skip]
const BELOW_TESTKIT: &[&str] = &[
    "types", "telemetry", "room", "shard", "wire", "store", "bus", "entity", "store-embedded", "store-cql",
    "bus-redis", "rpc", "history", "rooms", "users", "sync", "federation", "push", "appservices", "media", "http", "api", "node",
];

/// A library from outside that only some crates may name.
struct Wrapped {
    library: &'static str,
    crates: &'static [&'static str],
    /// Crates that may name it for their tests only.
    in_tests: &'static [&'static str],
}

/// One crate for each outside system. `deny.toml` holds the same for what arrives through others.
const WRAPPED: &[Wrapped] = &[
    Wrapped { library: "actix-web", crates: &["http"], in_tests: &[] },
    Wrapped { library: "actix-http", crates: &["http"], in_tests: &[] },
    Wrapped { library: "actix", crates: &["entity"], in_tests: &[] },
    Wrapped { library: "actix-rt", crates: &["entity", "http", "node", "server", "testkit"], in_tests: &["api"] },
    Wrapped { library: "fjall", crates: &["store-embedded"], in_tests: &[] },
    Wrapped { library: "scylla", crates: &["store-cql"], in_tests: &[] },
    Wrapped { library: "redis", crates: &["bus-redis"], in_tests: &[] },
    Wrapped { library: "tonic", crates: &["rpc"], in_tests: &[] },
    Wrapped { library: "tonic-health", crates: &["rpc"], in_tests: &[] },
    Wrapped { library: "tonic-prost", crates: &["rpc"], in_tests: &[] },
    Wrapped { library: "tonic-prost-build", crates: &["rpc"], in_tests: &[] },
    Wrapped { library: "protox", crates: &["rpc"], in_tests: &[] },
];

/// Libraries that run things; the room rules are pure and reach none of them, however indirectly.
const RUNTIMES: &[&str] = &["tokio", "actix", "actix-rt", "actix-web", "async-std", "smol", "mio", "hyper"];

/// An edge of the dependency graph as Cargo reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    /// Whether `to` is a crate of the workspace; `http` names one inside and one outside.
    inside: bool,
    for_tests: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Checks the workspace at `root`. Fails if an edge is not in the table, or if the room rules reach a runtime.
pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata = cargo(root, &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata is not what it was")?;
    let (crates, edges) = graph(&metadata);
    let mut complaints = check(&crates, &edges);
    let tree = cargo(root, &["tree", "-p", "cofactor-room", "-e", "normal", "--prefix", "none"])?;
    complaints.extend(runtimes_in(&tree));
    crate::verdict("layers", &complaints)
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("cargo").args(arguments).current_dir(root).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("cargo answered in bytes that are not UTF-8")
}

/// `cofactor-rooms` lives in `crates/rooms`; the binary `cofactor` in `crates/server`.
fn room_name(package: &str) -> String {
    match package {
        "cofactor" => "server".to_owned(),
        other => other.strip_prefix("cofactor-").unwrap_or(other).to_owned(),
    }
}

fn graph(metadata: &Metadata) -> (BTreeSet<String>, Vec<Edge>) {
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let crates = members.iter().map(|package| room_name(package)).collect();
    let edges = metadata.packages.iter().flat_map(|package| {
        package.dependencies.iter().map(|dependency| {
            let inside = members.contains(dependency.name.as_str());
            Edge {
                from: room_name(&package.name),
                to: if inside { room_name(&dependency.name) } else { dependency.name.clone() },
                inside,
                for_tests: dependency.kind.as_deref() == Some("dev"),
            }
        })
    });
    (crates, edges.collect())
}

/// The complaints about a graph; none if it keeps to the tables.
fn check(crates: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let house: BTreeMap<&str, &Row> = HOUSE.iter().map(|row| (row.name, row)).collect();
    let mut complaints: Vec<String> = crates
        .iter()
        .filter(|name| !house.contains_key(name.as_str()))
        .map(|name| format!("crate `{name}` has no row in xtask's HOUSE: give it a layer"))
        .collect();
    for edge in edges {
        let Some(row) = house.get(edge.from.as_str()) else { continue };
        let serves_tests = edge.for_tests && FOR_TESTS.contains(&edge.to.as_str());
        if edge.inside && !row.sees.contains(&edge.to.as_str()) && !serves_tests {
            complaints.push(format!("`{}` (layer {}) must not depend on `{}`", row.name, row.layer, edge.to));
        }
        if let Some(complaint) = wrapped_complaint(edge) {
            complaints.push(complaint);
        }
    }
    complaints
}

fn wrapped_complaint(edge: &Edge) -> Option<String> {
    let wrapped = WRAPPED.iter().find(|wrapped| !edge.inside && wrapped.library == edge.to)?;
    let from = edge.from.as_str();
    let allowed = wrapped.crates.contains(&from) || (edge.for_tests && wrapped.in_tests.contains(&from));
    (!allowed).then(|| format!("`{from}` must not depend on {}: it belongs to {:?}", edge.to, wrapped.crates))
}

/// The runtimes that a `cargo tree` listing (one package a line) holds.
fn runtimes_in(tree: &str) -> Vec<String> {
    let found: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|package| RUNTIMES.contains(package))
        .collect();
    found.into_iter().map(|package| format!("`room` is pure, yet its dependencies reach {package}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str) -> Edge {
        let inside = HOUSE.iter().any(|row| row.name == to);
        Edge { from: from.to_owned(), to: to.to_owned(), inside, for_tests: false }
    }

    fn whole_house() -> BTreeSet<String> {
        HOUSE.iter().map(|row| row.name.to_owned()).collect()
    }

    #[test]
    fn the_table_itself_keeps_the_rules_of_the_house() {
        const ADAPTERS: [&str; 4] = ["store-embedded", "store-cql", "bus-redis", "rpc"];
        let layer: BTreeMap<&str, u8> = HOUSE.iter().map(|row| (row.name, row.layer)).collect();
        for row in HOUSE {
            for seen in row.sees {
                let ground_floor = row.layer == 0 && layer[seen] == 0;
                assert!(layer[seen] < row.layer || ground_floor, "{} sees {seen}: not downwards", row.name);
                let may_see_adapters = ["node", "testkit"].contains(&row.name);
                assert!(may_see_adapters || !ADAPTERS.contains(seen), "{} sees the adapter {seen}", row.name);
            }
        }
    }

    #[test]
    fn a_planted_edge_between_two_services_is_refused() {
        assert!(check(&whole_house(), &[edge("rooms", "entity")]).is_empty());
        let complaints = check(&whole_house(), &[edge("rooms", "users")]);
        assert_eq!(complaints, ["`rooms` (layer 3) must not depend on `users`"]);
    }

    #[test]
    fn an_edge_upwards_or_to_an_adapter_is_refused() {
        for (from, to) in [("types", "room"), ("store", "entity"), ("api", "store-embedded"), ("server", "api")] {
            assert_eq!(check(&whole_house(), &[edge(from, to)]).len(), 1, "{from} -> {to}");
        }
    }

    #[test]
    fn a_crate_without_a_row_is_refused() {
        let mut crates = whole_house();
        crates.insert("cellar".to_owned());
        assert_eq!(check(&crates, &[]).len(), 1);
    }

    #[test]
    fn an_outside_library_is_refused_outside_its_one_crate() {
        assert!(check(&whole_house(), &[edge("http", "actix-web"), edge("entity", "actix")]).is_empty());
        assert_eq!(check(&whole_house(), &[edge("api", "actix-web")]).len(), 1);
        assert_eq!(check(&whole_house(), &[edge("api", "actix-rt")]).len(), 1);
        let in_tests = Edge { for_tests: true, ..edge("api", "actix-rt") };
        assert!(check(&whole_house(), &[in_tests]).is_empty());
    }

    #[test]
    fn tests_of_any_crate_may_use_what_is_there_for_tests() {
        for to in FOR_TESTS {
            let in_tests = Edge { for_tests: true, ..edge("rooms", to) };
            assert!(check(&whole_house(), &[in_tests]).is_empty());
            assert_eq!(check(&whole_house(), &[edge("rooms", to)]).len(), 1);
        }
    }

    #[test]
    fn a_runtime_in_the_tree_of_the_room_rules_is_found() {
        assert!(runtimes_in("cofactor-room v0.1.0\nruma v0.17.2\ntokio-util v0.7.0\n").is_empty());
        assert_eq!(runtimes_in("cofactor-room v0.1.0\ntokio v1.0.0\ntokio v1.0.0 (*)\n").len(), 1);
    }

    #[test]
    fn the_binary_and_the_crates_get_the_names_of_their_folders() {
        assert_eq!(room_name("cofactor"), "server");
        assert_eq!(room_name("cofactor-store-embedded"), "store-embedded");
        assert_eq!(room_name("serde"), "serde");
    }
}
