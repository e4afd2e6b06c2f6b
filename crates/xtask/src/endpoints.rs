//! `cargo xtask endpoints`: what the server routes, against the specification's list and the project's own.
//!
//! The server prints its routes (`cofactor endpoints`, one `METHOD /path/{template}` a line). They are compared with
//! `docs/reference/served.txt`, which is the promise (`--bless` rewrites it), and with `docs/reference/endpoints.tsv`,
//! which is the specification's list of the five HTTP APIs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

const SERVED: &str = "docs/reference/served.txt";
const SPECIFIED: &str = "docs/reference/endpoints.tsv";
/// The APIs that a homeserver serves; the others are served to it.
const OURS: &[&str] = &["client-server", "server-server"];

/// A method and a path template whose variables have lost their names.
type Route = (String, String);

/// Compares the routes (from `--routes FILE`, from standard input with `-`, from the server `--binary FILE`, or from a
/// server built for it) with both lists. Fails if the promise and the routes differ; a missing endpoint of the specification is printed, not failed.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let bless = arguments.iter().any(|argument| argument == "--bless");
    let printed = match (option(arguments, "--routes")?, option(arguments, "--binary")?) {
        (Some("-"), _) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
        (Some(file), _) => fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?,
        (None, Some(binary)) => ask(Command::new(binary).arg("endpoints"))?,
        (None, None) => {
            let build_and_ask = ["run", "--quiet", "--package", "cofactor", "--", "endpoints"];
            ask(Command::new("cargo").args(build_and_ask).current_dir(root))?
        }
    };
    let routed = parse_routes(&printed)?;
    if bless {
        fs::write(root.join(SERVED), render(&routed)).with_context(|| format!("cannot write {SERVED}"))?;
    }
    let promised = parse_routes(&fs::read_to_string(root.join(SERVED)).unwrap_or_default())?;
    let specified = fs::read_to_string(root.join(SPECIFIED)).with_context(|| format!("cannot read {SPECIFIED}"))?;
    println!("{}", coverage(&specified, &routed)?);
    crate::verdict("endpoints", &broken_promises(&promised, &routed))
}

/// The value that follows `flag`, if the flag is there.
fn option<'a>(arguments: &'a [String], flag: &str) -> Result<Option<&'a str>> {
    let Some(at) = arguments.iter().position(|argument| argument == flag) else { return Ok(None) };
    let value = arguments.get(at + 1).with_context(|| format!("{flag} needs a value"))?;
    Ok(Some(value))
}

fn ask(server: &mut Command) -> Result<String> {
    let output = server.output().with_context(|| format!("cannot start {server:?}"))?;
    if !output.status.success() {
        bail!("`cofactor endpoints` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("`cofactor endpoints` printed bytes that are not UTF-8")
}

/// Reads `METHOD /path` lines; blank lines and lines that begin with `#` are skipped.
fn parse_routes(text: &str) -> Result<BTreeSet<Route>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [method, path] => Ok((method.to_owned(), path.to_owned())),
            _ => bail!("`{line}` is not a method and a path"),
        })
        .collect()
}

fn render(routed: &BTreeSet<Route>) -> String {
    let mut by_path: Vec<&Route> = routed.iter().collect();
    by_path.sort_by_key(|(method, path)| (path, method));
    let mut text = String::from("# What the server routes. Generated: cargo xtask endpoints --bless\n");
    for (method, path) in by_path {
        text.push_str(&format!("{method} {path}\n"));
    }
    text
}

/// `/rooms/{roomId}/state/{eventType}` and `/rooms/{room_id}/state/{event_type}` are one path.
fn nameless(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for character in path.chars() {
        inside = (inside || character == '{') && character != '}';
        if !inside {
            out.push(if character == '}' { '*' } else { character });
        }
    }
    out.trim_end_matches('/').to_owned()
}

/// One line for each endpoint of the specification that a homeserver serves, and a sum for each API.
fn coverage(specified: &str, routed: &BTreeSet<Route>) -> Result<String> {
    let routed: BTreeSet<Route> = routed.iter().map(|(method, path)| (method.clone(), nameless(path))).collect();
    let mut lines = Vec::new();
    let mut sums = Vec::new();
    for api in OURS {
        let (mut found, mut all) = (0, 0);
        for line in specified.lines() {
            let columns: Vec<&str> = line.split('\t').collect();
            let [name, method, path, operation, ..] = columns[..] else {
                bail!("`{line}` in {SPECIFIED} has fewer than four columns")
            };
            if name != *api {
                continue;
            }
            let is_routed = routed.contains(&(method.to_owned(), nameless(path)));
            all += 1;
            found += usize::from(is_routed);
            let state = if is_routed { "routed " } else { "missing" };
            lines.push(format!("{state} {api} {method} {path} ({operation})"));
        }
        sums.push(format!("{api}: {found} of {all} endpoints routed"));
    }
    lines.extend(sums);
    Ok(lines.join("\n"))
}

fn broken_promises(promised: &BTreeSet<Route>, routed: &BTreeSet<Route>) -> Vec<String> {
    let lost =
        promised.difference(routed).map(|(method, path)| format!("{SERVED} promises {method} {path}: not routed"));
    let new = routed.difference(promised).map(|(method, path)| {
        format!("{method} {path} is routed but not in {SERVED}: run `cargo xtask endpoints --bless`")
    });
    lost.chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(text: &str) -> BTreeSet<Route> {
        parse_routes(text).unwrap()
    }

    #[test]
    fn names_of_path_variables_do_not_matter() {
        assert_eq!(nameless("/a/{roomId}/b/{event_type}/"), nameless("/a/{room_id}/b/{eventType}"));
        assert_ne!(nameless("/a/{x}"), nameless("/a/{x}/{y}"));
        let text = coverage(
            "client-server\tGET\t/a/{roomId}\tgetA\t\nserver-server\tPUT\t/b\tputB\t\n",
            &routes("GET /a/{r}"),
        );
        let text = text.unwrap();
        assert!(text.contains("routed  client-server GET /a/{roomId} (getA)"), "{text}");
        assert!(text.contains("client-server: 1 of 1 endpoints routed"), "{text}");
        assert!(text.contains("server-server: 0 of 1 endpoints routed"), "{text}");
    }

    #[test]
    fn a_lost_and_an_unlisted_route_are_both_complaints() {
        assert!(broken_promises(&routes("GET /a"), &routes("# comment\n\nGET  /a\n")).is_empty());
        assert_eq!(broken_promises(&routes("GET /a"), &routes("PUT /a")).len(), 2);
    }

    #[test]
    fn what_is_blessed_reads_back_the_same() {
        let routed = routes("PUT /b\nGET /b\nGET /a/{x}");
        assert_eq!(routes(&render(&routed)), routed);
    }

    #[test]
    fn a_line_that_is_no_route_is_refused() {
        assert!(parse_routes("GET").is_err());
    }
}
