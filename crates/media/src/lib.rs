//! Media: upload, download, thumbnails, on an object store.
//!
//! Bytes live in the object store (a folder, so far), what is known of them in the `media` table. Media is found only once
//! its row is there, and the row is written only after the bytes are durable, so a crash leaves at most bytes that nobody
//! finds. Media ids never become paths unless they are of our own alphabet. Only images of four formats are ever decoded,
//! and only within a number of pixels that is read from the header first.

mod headers;
mod media;
mod thumbnail;

pub use self::{
    headers::{content_disposition, security_headers},
    media::{Media, MediaError, Meta, Options, Stored},
    thumbnail::{Method, ThumbnailSize},
};
