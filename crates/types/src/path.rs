//! Paths to properties of events.

/// The names along a dot-separated path: `\.` is a dot of a name, `\\` a backslash, any other backslash stands for itself.
/// <https://spec.matrix.org/v1.19/appendices/#dot-separated-property-paths>
pub fn split_property_path(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let escaped = if char == '\\' { chars.next_if(|next| matches!(next, '.' | '\\')) } else { None };
        match (char, escaped) {
            ('.', None) => names.push(std::mem::take(&mut name)),
            (char, escaped) => name.push(escaped.unwrap_or(char)),
        }
    }
    names.push(name);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_part_names_unless_they_are_escaped() {
        for (path, names) in [
            ("", &[""][..]),
            ("content.body", &["content", "body"]),
            (r"content.m\.relates_to.x", &["content", "m.relates_to", "x"]),
            (r"a\\.b\c", &[r"a\", r"b\c"]),
            (r"a\", &[r"a\"]),
        ] {
            assert_eq!(split_property_path(path), names, "{path}");
        }
    }
}
