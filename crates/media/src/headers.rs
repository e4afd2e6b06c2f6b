//! What a browser is told about media, which strangers may have made.
//! <https://spec.matrix.org/v1.19/client-server-api/#serving-inline-content>

/// Content types that a browser may show where they are.
const INLINE: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// The longest file name that is passed on, in characters.
const NAME_CHARS_MAX: usize = 255;

/// The `Content-Disposition` of media.
pub fn content_disposition(content_type: &str, file_name: Option<&str>) -> String {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let kind = if INLINE.contains(&essence.as_str()) { "inline" } else { "attachment" };
    let Some(name) = file_name.filter(|name| !name.is_empty()) else { return kind.to_owned() };
    // RFC 6266 with RFC 5987 for what is not plain.
    let mut encoded = String::new();
    for character in name.chars().take(NAME_CHARS_MAX) {
        let mut bytes = [0; 4];
        for byte in character.encode_utf8(&mut bytes).bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    if encoded == name { format!("{kind}; filename={name}") } else { format!("{kind}; filename*=utf-8''{encoded}") }
}

/// Headers of every answer with media in it.
/// <https://spec.matrix.org/v1.19/client-server-api/#security-considerations-5>
pub fn security_headers() -> [(&'static str, &'static str); 4] {
    [
        (
            "content-security-policy",
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
             style-src 'unsafe-inline'; object-src 'self';",
        ),
        ("cross-origin-resource-policy", "cross-origin"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "private, max-age=31536000, immutable"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_content_is_never_shown_in_place() {
        assert_eq!(content_disposition("image/png", None), "inline");
        assert_eq!(content_disposition("image/svg+xml", None), "attachment");
        assert_eq!(content_disposition("text/html; charset=utf-8", Some("a.html")), "attachment; filename=a.html");
        assert_eq!(content_disposition("text/plain; charset=utf-8", None), "inline");
        let tricky = content_disposition("image/png", Some("ä\r\nx: y\".png"));
        assert_eq!(tricky, "inline; filename*=utf-8''%C3%A4%0D%0Ax%3A%20y%22.png");
    }

    proptest::proptest! {
        #[test]
        fn whatever_strangers_say_the_header_is_one_line_of_plain_text(content_type in ".{0,40}", name in ".{0,300}") {
            let header = content_disposition(&content_type, Some(&name));
            assert!(header.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{header}");
            assert!(header.starts_with("inline") || header.starts_with("attachment"));
            assert!(!header.contains(['"', '\\', '/']));
        }
    }
}
