//! `cargo xtask tidy`: what the compiler and clippy cannot see of the project's conventions.
//!
//! The rules on text are the table [`FORBIDDEN`]; to add one, add a row. Limits on size are constants.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::scan;

/// The longest Rust file, in lines.
const FILE_LINES_MAX: usize = 600;
/// The longest function outside tests, in lines, from its `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// A word that must not stand in Rust code, and where it may stand all the same.
struct Forbidden {
    word: &'static str,
    why: &'static str,
    /// Path prefixes in which the word is allowed.
    allowed_in: &'static [&'static str],
    /// Whether tests may use it.
    allowed_in_tests: bool,
}

const fn forbid(word: &'static str, why: &'static str) -> Forbidden {
    Forbidden { word, why, allowed_in: &[], allowed_in_tests: false }
}

const fn ambient(word: &'static str, allowed_in: &'static [&'static str]) -> Forbidden {
    let why = "time, randomness and the environment are parameters: take a Clock, Entropy or an option";
    Forbidden { word, why, allowed_in, allowed_in_tests: true }
}

const UNBOUNDED: &str = "every queue has a bound with a name";
const UNFINISHED: &str = "finish it, or say in the type that it cannot happen";

/// Where the outside world enters the process: its clock, its configuration, its command line, its logs, its tests.
const EDGES: &[&str] = &[
    "crates/types/src/clock",
    "crates/telemetry/",
    "crates/node/src/config",
    "crates/server/",
    "crates/xtask/",
    "crates/testkit/",
    "loadtest/",
];
/// As [`EDGES`], and what measures how long a request, a commit or an outside system took.
const STOPWATCHES: &[&str] = &[
    "crates/types/src/clock",
    "crates/telemetry/",
    "crates/http/",
    "crates/node/src/config",
    "crates/server/",
    "crates/xtask/",
    "crates/testkit/",
    "loadtest/",
    "crates/store-embedded/",
    "crates/store-cql/",
    "crates/bus-redis/",
];

const FORBIDDEN: &[Forbidden] = &[
    forbid("#[allow(", "use #[expect(lint, reason = \"…\")]"),
    forbid("#![allow(", "use #![expect(lint, reason = \"…\")]"),
    forbid("#[ignore", "a test runs or is deleted"),
    forbid("todo!", UNFINISHED),
    forbid("unimplemented!", UNFINISHED),
    forbid("dbg!", "log through tracing"),
    forbid("unbounded_channel", UNBOUNDED),
    forbid("mpsc::unbounded", UNBOUNDED),
    ambient("env::var", EDGES),
    ambient("SystemTime::now", EDGES),
    ambient("Instant::now", STOPWATCHES),
    ambient("thread_rng", EDGES),
    ambient("rand::random", EDGES),
    ambient("rand::rng()", EDGES),
];

/// Text that betrays one machine or its network. Cut in two so that this file passes its own check.
const MACHINE_WORDS: &[(&str, &str)] = &[
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("/fa", "rm/"),
    ("/tmp/bash", "_jobs"),
    ("registry.npm", "js.org"),
    ("py", "pi.org"),
    ("files.python", "hosted.org"),
    ("static.crat", "es.io"),
    ("index.crat", "es.io"),
    ("deb.deb", "ian.org"),
];

/// Kinds of text file that are read; anything else (pictures, golden frames) is left alone.
const TEXT_KINDS: &[&str] =
    &["rs", "toml", "md", "py", "js", "mjs", "json", "sh", "txt", "tsv", "yaml", "yml", "proto", "sql", "svg", ""];

/// Checks every file of the workspace at `root` that git tracks or would track.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut complaints = Vec::new();
    for path in files(root)? {
        let kind = Path::new(&path).extension().map_or(String::new(), |kind| kind.to_string_lossy().into_owned());
        if path.ends_with("Cargo.lock") || !TEXT_KINDS.contains(&kind.as_str()) {
            continue;
        }
        // A file deleted but not yet committed is still listed.
        let Ok(bytes) = fs::read(root.join(&path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else {
            complaints.push(format!("{path}: not UTF-8"));
            continue;
        };
        complaints.extend(text_complaints(&path, &text));
        if kind == "rs" {
            complaints.extend(rust_complaints(&path, &text));
        }
    }
    crate::verdict("tidy", &complaints)
}

fn files(root: &Path) -> Result<Vec<String>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(list).current_dir(root).output().context("cannot start git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The rules for text of any kind.
fn text_complaints(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // Two spaces at the end of a line mean a line break in Markdown.
        if line.ends_with([' ', '\t']) && !path.ends_with(".md") {
            complaints.push(format!("{path}:{}: trailing whitespace", index + 1));
        }
        for (head, tail) in MACHINE_WORDS {
            let word = format!("{head}{tail}");
            if let Some(at) = line.find(&word) {
                let inside_a_path =
                    at > 0 && (scan::is_word(line.as_bytes()[at - 1]) || b".-}".contains(&line.as_bytes()[at - 1]));
                if !inside_a_path {
                    complaints.push(format!("{path}:{}: `{word}` names one machine or registry", index + 1));
                }
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        complaints.push(format!("{path}: no line break at the end"));
    }
    complaints
}

/// The rules for Rust.
fn rust_complaints(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        complaints.push(format!("{path}: {lines} lines; the wall is {FILE_LINES_MAX}"));
    }
    let is_crate_root = (path.starts_with("crates/") || path.starts_with("loadtest/"))
        && (path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs"));
    if is_crate_root && !text.starts_with("//!") {
        complaints.push(format!("{path}: a crate begins with its documentation"));
    }
    let code = scan::code_only(text);
    let whole_file = std::iter::once(0..code.len());
    let tests: Vec<_> = if is_test_file(path) { whole_file.collect() } else { scan::test_ranges(&code) };
    for function in scan::functions(&code, &tests) {
        let length = function.last_line - function.first_line + 1;
        if length > FUNCTION_LINES_MAX {
            let (name, line) = (function.name, function.first_line);
            complaints.push(format!("{path}:{line}: `{name}` has {length} lines; the wall is {FUNCTION_LINES_MAX}"));
        }
    }
    complaints.extend(FORBIDDEN.iter().flat_map(|rule| forbidden_complaints(rule, path, &code, &tests)));
    complaints
}

fn is_test_file(path: &str) -> bool {
    ["/tests/", "/tests.rs", "/benches/", "/examples/"].iter().any(|mark| path.contains(mark))
}

fn forbidden_complaints(rule: &Forbidden, path: &str, code: &str, tests: &[Range<usize>]) -> Vec<String> {
    if rule.allowed_in.iter().any(|prefix| path.starts_with(prefix)) {
        return Vec::new();
    }
    let starts_a_word =
        |at: usize| at == 0 || !scan::is_word(rule.word.as_bytes()[0]) || !scan::is_word(code.as_bytes()[at - 1]);
    code.match_indices(rule.word)
        .filter(|(at, _)| starts_a_word(*at))
        .filter(|(at, _)| !(rule.allowed_in_tests && tests.iter().any(|range| range.contains(at))))
        .map(|(at, word)| format!("{path}:{}: `{word}`: {}", scan::line_of(code, at), rule.why))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "crates/rooms/src/actor.rs";

    #[test]
    fn clean_code_passes_and_words_in_comments_do_not_count() {
        let text =
            "//! Docs.\n\n/// Never call todo!() or Instant::now().\nfn f() -> &'static str {\n    \"dbg!\"\n}\n";
        assert_eq!(rust_complaints("crates/rooms/src/lib.rs", text), Vec::<String>::new());
        assert_eq!(text_complaints(HERE, text), Vec::<String>::new());
    }

    #[test]
    fn each_forbidden_word_is_found_in_code() {
        for rule in FORBIDDEN {
            let text = format!("fn f() {{\n    {};\n}}\n", rule.word);
            let complaints = rust_complaints(HERE, &text);
            assert_eq!(complaints.len(), 1, "{}: {complaints:?}", rule.word);
            assert!(complaints[0].starts_with("crates/rooms/src/actor.rs:2:"), "{complaints:?}");
        }
    }

    #[test]
    fn the_clock_may_read_the_time_and_so_may_tests() {
        let text = "fn f() { let _ = std::time::SystemTime::now(); }\n";
        assert!(rust_complaints("crates/types/src/clock.rs", text).is_empty());
        assert!(rust_complaints("crates/rooms/tests/it/main.rs", text).is_empty());
        assert!(rust_complaints(HERE, &format!("#[cfg(test)]\nmod tests {{\n{text}}}\n")).is_empty());
        assert_eq!(rust_complaints(HERE, text).len(), 1);
    }

    #[test]
    fn a_long_function_and_a_long_file_are_refused() {
        let body = "    let _ = 1;\n".repeat(FUNCTION_LINES_MAX);
        let complaints = rust_complaints(HERE, &format!("fn long() {{\n{body}}}\n"));
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("`long` has 72 lines"));
        assert_eq!(rust_complaints(HERE, &"// a line\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
    }

    #[test]
    fn a_crate_without_documentation_is_refused() {
        assert_eq!(rust_complaints("crates/rooms/src/lib.rs", "mod actor;\n").len(), 1);
    }

    #[test]
    fn paths_of_a_machine_and_trailing_blanks_are_refused() {
        let path_of_a_machine = ["cd /wo", "rk/main\n"].concat();
        assert_eq!(text_complaints("scripts/run", &path_of_a_machine).len(), 1);
        assert!(text_complaints("scripts/run", "cd home/wo").iter().all(|complaint| complaint.contains("line break")));
        assert_eq!(text_complaints("scripts/run", "echo \n").len(), 1);
        assert_eq!(text_complaints("scripts/run", "echo").len(), 1);
    }
}
