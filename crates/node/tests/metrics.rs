//! The table of metrics in the documents is complete.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Every word in quotes or backquotes that begins like a metric.
fn names(text: &str, quote: char) -> BTreeSet<String> {
    let words = text.split(quote).filter(|word| word.starts_with("cofactor_"));
    words.filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_code_stands_in_the_table_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for krate in fs::read_dir(root.join("crates")).unwrap() {
        let source = krate.unwrap().path().join("src");
        if source.is_dir() {
            sources(&source, &mut files);
        }
    }
    let mut made = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        for start in ["metrics::counter!(", "metrics::gauge!(", "metrics::histogram!("] {
            // The name is the first string after the macro, perhaps on the next line.
            let calls = text.split(start).skip(1);
            made.extend(calls.filter_map(|call| call.split('"').nth(1)).map(str::to_owned));
        }
    }
    let table = fs::read_to_string(root.join("docs/operating.md")).unwrap();
    let rows: String = table.lines().filter(|line| line.starts_with("| `cofactor_")).collect();
    let told = names(&rows, '`');
    assert!(made.len() > 30, "{made:?}");
    assert_eq!(made.difference(&told).collect::<Vec<_>>(), [""; 0], "metrics that the table leaves out");
    assert_eq!(told.difference(&made).collect::<Vec<_>>(), [""; 0], "metrics of the table that nothing makes");
}
