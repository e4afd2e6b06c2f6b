//! A small reader of Rust text: enough of the lexer to tell code from comments and literals, and braces from one
//! another. It knows nothing of types or macros, which is all that [`crate::tidy`] needs.

use std::ops::Range;

/// A function found in the text: its name, and the lines from its `fn` to its closing brace (1-based).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) first_line: usize,
    pub(crate) last_line: usize,
}

/// The text with every comment and the inside of every literal blanked out. Same length, same line breaks.
pub(crate) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_or_comment_end(bytes, at);
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Blanking replaces whole literals and comments, whose ends are ASCII, so no character is cut in two.
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn literal_or_comment_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_end(bytes, at),
        [b'"', ..] => string_end(bytes, at),
        [b'b' | b'c', b'"', ..] if !after_word => string_end(bytes, at + 1),
        [b'r', ..] if !after_word => raw_string_end(bytes, at + 1).unwrap_or(at),
        [b'b' | b'c', b'r', ..] if !after_word => raw_string_end(bytes, at + 2).unwrap_or(at),
        [b'\'', ..] => char_end(bytes, at).unwrap_or(at),
        _ => at,
    }
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `r#"…"#` whose hashes start at `hashes`; nothing if no raw string stands there.
fn raw_string_end(bytes: &[u8], hashes: usize) -> Option<usize> {
    let count = bytes.get(hashes..)?.iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(hashes + count) != Some(&b'"') {
        return None;
    }
    let closing = [b"\"".as_slice(), &vec![b'#'; count]].concat();
    let body = hashes + count + 1;
    let length = bytes[body..].windows(closing.len()).position(|window| window == closing);
    Some(length.map_or(bytes.len(), |length| body + length + closing.len()))
}

/// The end of a character literal; nothing if the quote begins a lifetime or a label.
fn char_end(bytes: &[u8], quote: usize) -> Option<usize> {
    let rest = &bytes[quote + 1..];
    if rest.first() == Some(&b'\\') {
        let close = rest.iter().skip(2).position(|byte| *byte == b'\'')?;
        return Some(quote + 1 + 2 + close + 1);
    }
    let width = std::str::from_utf8(&rest[..rest.len().min(4)])
        .map_or_else(|error| error.valid_up_to(), str::len)
        .min(rest.len());
    let first = std::str::from_utf8(&rest[..width]).ok()?.chars().next()?;
    (rest.get(first.len_utf8()) == Some(&b'\'')).then(|| quote + 1 + first.len_utf8() + 1)
}

/// Whether a byte can stand in an identifier.
pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The 1-based line of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The byte ranges of the items under `#[cfg(test)]` in `code` (the output of [`code_only`]).
pub(crate) fn test_ranges(code: &str) -> Vec<Range<usize>> {
    let marks = code.match_indices("#[cfg(test)]");
    marks.map(|(start, mark)| start..body_end(code, start + mark.len()).unwrap_or(code.len())).collect()
}

/// Every function with a body in `code` (the output of [`code_only`]) that no range of `skip` holds.
pub(crate) fn functions(code: &str, skip: &[Range<usize>]) -> Vec<Function> {
    let bytes = code.as_bytes();
    let starts = code.match_indices("fn ").filter(|(at, _)| *at == 0 || !is_word(bytes[at - 1]));
    starts
        .filter(|(at, _)| !skip.iter().any(|range| range.contains(at)))
        .filter_map(|(at, keyword)| {
            let name: String =
                code[at + keyword.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let end = body_end(code, at + keyword.len())?;
            let has_body = !name.is_empty() && bytes.get(end - 1) == Some(&b'}');
            has_body.then(|| Function { name, first_line: line_of(code, at), last_line: line_of(code, end - 1) })
        })
        .collect()
}

/// The offset after the item that continues at `from`: after its `;`, or after its closing brace.
fn body_end(code: &str, from: usize) -> Option<usize> {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => others += 1,
            b')' | b']' => others = others.checked_sub(1)?,
            b';' if braces == 0 && others == 0 => return Some(at + 1),
            b'{' => braces += 1,
            b'}' if braces == 1 && others == 0 => return Some(at + 1),
            b'}' => braces = braces.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_stay() {
        let text = "let a = \"todo!()\"; // dbg!\n/* { /* nested */ } */ let b = r#\"un\"} \"#; let c = '}'; let d: &'a str;\n";
        let code = code_only(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.lines().count(), text.lines().count());
        for gone in ["todo", "dbg", "nested", "}", "un\""] {
            assert!(!code.contains(gone), "{gone} is still in {code}");
        }
        assert!(code.contains("&'a str"));
    }

    #[test]
    fn escaped_quotes_and_characters_of_many_bytes_end_where_they_should() {
        let code = code_only(r#"f('\'', '"', 'é', b"\"{", '\u{1F600}', "\\"); g();"#);
        assert!(code.ends_with("g();"), "{code}");
        assert!(!code.contains('{'));
    }

    #[test]
    fn a_function_is_measured_from_its_name_to_its_closing_brace() {
        let code = "impl A {\n    fn short(&self) -> [u8; 2] { [0; 2] }\n    fn long(\n        x: u8,\n    ) {\n        if x == 0 {}\n    }\n    fn declared();\n}\n";
        let found = functions(code, &[]);
        assert_eq!(found[0], Function { name: "short".to_owned(), first_line: 2, last_line: 2 });
        assert_eq!(found[1], Function { name: "long".to_owned(), first_line: 3, last_line: 7 });
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn what_stands_under_cfg_test_is_left_out() {
        let code = "fn kept() {}\n#[cfg(test)]\nmod tests {\n    fn skipped() {}\n}\nfn kept_too() {}\n";
        let names: Vec<_> = functions(code, &test_ranges(code)).into_iter().map(|function| function.name).collect();
        assert_eq!(names, ["kept", "kept_too"]);
    }
}
