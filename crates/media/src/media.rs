//! Keeping and finding media.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use cofactor_store::{Durability, Mutation, Store, key, record, tables};
use cofactor_types::{Clock, Entropy, ErrorClass, Fault};
use futures::{Stream, StreamExt, stream::BoxStream};
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart, local::LocalFileSystem, path::Path as ObjectPath};
use ruma::{OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::{
    ThumbnailSize,
    thumbnail::{self},
};

/// Characters of a media id: 24 of 62 letters.
const ID_CHARS: usize = 24;

/// The longest content type and file name, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// What an operator may choose.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The folder of the bytes, the same for all processes that serve clients. None: `media` in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The largest upload, in MiB.
    pub upload_mib_max: u64,
    /// The largest image that thumbnails are made of, in millions of pixels.
    pub megapixels_max: u64,
    /// How long a reserved media id waits for its upload, in hours.
    pub reservation_h: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { dir: None, upload_mib_max: 50, megapixels_max: 35, reservation_h: 24 }
    }
}

/// What is known of media: a row of the `media` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The uploader.
    pub user_id: OwnedUserId,
    /// The content type that the uploader said.
    pub content_type: String,
    /// The file name that the uploader said.
    pub file_name: Option<String>,
    /// The size in bytes.
    pub bytes: u64,
    /// When it was uploaded or reserved, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Only reserved so far.
    #[serde(default)]
    pub reserved: bool,
}

/// Media on its way out.
pub struct Stored {
    /// What is known of it.
    pub meta: Meta,
    /// Its bytes.
    pub stream: BoxStream<'static, Result<Bytes, MediaError>>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// Why media cannot be had or kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaError {
    /// There is none.
    #[error("there is no such media")]
    NotFound,
    /// It is reserved, and not there yet.
    #[error("the media is not uploaded yet")]
    NotYet,
    /// It is there already.
    #[error("the media is uploaded already")]
    Taken,
    /// The reservation is somebody else's.
    #[error("the media id was reserved by somebody else")]
    NotYours,
    /// It is too large.
    #[error("the upload is larger than the {0} bytes allowed here")]
    TooLarge(u64),
    /// There is no thumbnail of it.
    #[error("there is no thumbnail: {0}")]
    NoThumbnail(String),
    /// The upload broke off.
    #[error("the upload broke off: {0}")]
    Broken(String),
    /// The object store fails.
    #[error("the media store fails: {0}")]
    Objects(String),
    /// The store fails.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<MediaError> for Fault {
    fn from(error: MediaError) -> Self {
        let message = error.to_string();
        match error {
            MediaError::NotFound => Self::not_found(message),
            MediaError::NotYet => Self::new(ErrorClass::Unavailable, "M_NOT_YET_UPLOADED", message),
            MediaError::Taken => Self::new(ErrorClass::Conflict, "M_CANNOT_OVERWRITE_MEDIA", message),
            MediaError::NotYours => Self::forbidden(message),
            MediaError::TooLarge(_) => Self::new(ErrorClass::Invalid, "M_TOO_LARGE", message),
            MediaError::NoThumbnail(_) => Self::new(ErrorClass::Invalid, "M_UNKNOWN", message),
            MediaError::Broken(_) => Self::new(ErrorClass::Invalid, "M_UNKNOWN", message),
            MediaError::Objects(_) => Self::unavailable(message),
            MediaError::Fault(fault) => fault,
        }
    }
}

/// The media of this deployment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Media {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    objects: Box<dyn ObjectStore>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Images decoded at once.
    decoders: Semaphore,
}

impl Media {
    /// Media in the folder `path`, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn open(
        path: &Path,
        options: Options,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, Fault> {
        let unusable = |error: &dyn std::fmt::Display| {
            Fault::unavailable(format!("the media folder {} cannot be used: {error}", path.display()))
        };
        std::fs::create_dir_all(path).map_err(|error| unusable(&error))?;
        let objects = LocalFileSystem::new_with_prefix(path).map_err(|error| unusable(&error))?.with_fsync(true);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let decoders = Semaphore::new(cores.div_ceil(2));
        let inner = Inner { options, objects: Box::new(objects), store, clock, entropy, decoders };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The largest upload, in bytes.
    pub fn upload_bytes_max(&self) -> u64 {
        self.inner.options.upload_mib_max << 20
    }

    /// A media id that nobody has.
    pub fn new_id(&self) -> String {
        self.inner.entropy.alphanumeric(ID_CHARS)
    }

    /// Reserves a media id; returns it, and when the reservation ends, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn reserve(&self, server: &ServerName, user_id: &UserId) -> Result<(String, u64), MediaError> {
        let media_id = self.new_id();
        let at_ms = self.inner.clock.now_ms();
        let meta = Meta {
            user_id: user_id.to_owned(),
            content_type: String::new(),
            file_name: None,
            bytes: 0,
            at_ms,
            reserved: true,
        };
        self.put_meta(server, &media_id, "", &meta).await?;
        Ok((media_id, at_ms + self.inner.options.reservation_h * 3_600_000))
    }

    /// Whether `user_id` may upload to a reserved id.
    ///
    /// # Errors
    /// If it is not reserved, not by this user, or used already.
    pub async fn check_reservation(
        &self,
        server: &ServerName,
        media_id: &str,
        user_id: &UserId,
    ) -> Result<(), MediaError> {
        let meta = self.meta(server, media_id, "").await?.ok_or(MediaError::NotFound)?;
        let end_ms = meta.at_ms + self.inner.options.reservation_h * 3_600_000;
        match meta {
            Meta { reserved: false, .. } => Err(MediaError::Taken),
            Meta { user_id: owner, .. } if owner != user_id => Err(MediaError::NotYours),
            _ if end_ms < self.inner.clock.now_ms() => Err(MediaError::NotFound),
            _ => Ok(()),
        }
    }

    /// Takes an upload under `media_id`. When this returns it is durable and can be found.
    ///
    /// # Errors
    /// If it is too large or breaks off: then nothing is kept.
    pub async fn upload<E: std::fmt::Display>(
        &self,
        server: &ServerName,
        media_id: &str,
        user_id: &UserId,
        content_type: &str,
        file_name: Option<String>,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(), MediaError> {
        let path = object_path(server, media_id, "").ok_or(MediaError::NotFound)?;
        let upload = self.inner.objects.put_multipart(&path).await.map_err(|error| objects(&error))?;
        let mut writer = WriteMultipart::new(upload);
        let mut bytes = 0_u64;
        let mut failed = None;
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => {
                    bytes += piece.len() as u64;
                    if bytes > self.upload_bytes_max() {
                        failed = Some(MediaError::TooLarge(self.upload_bytes_max()));
                        break;
                    }
                    writer.put(piece);
                    writer.wait_for_capacity(2).await.map_err(|error| objects(&error))?;
                }
                Err(error) => {
                    failed = Some(MediaError::Broken(error.to_string()));
                    break;
                }
            }
        }
        if let Some(error) = failed {
            // What was written so far is a staged file that nobody finds.
            let _ = writer.abort().await;
            return Err(error);
        }
        writer.finish().await.map_err(|error| objects(&error))?;
        let meta = Meta {
            user_id: user_id.to_owned(),
            content_type: bounded(content_type),
            file_name: file_name.map(|name| bounded(&name)),
            bytes,
            at_ms: self.inner.clock.now_ms(),
            reserved: false,
        };
        self.put_meta(server, media_id, "", &meta).await
    }

    /// Media.
    ///
    /// # Errors
    /// If there is none.
    pub async fn get(&self, server: &ServerName, media_id: &str) -> Result<Stored, MediaError> {
        let meta = self.meta(server, media_id, "").await?.ok_or(MediaError::NotFound)?;
        if meta.reserved {
            return Err(MediaError::NotYet);
        }
        let stream = self.stream(server, media_id, "").await?;
        Ok(Stored { meta, stream })
    }

    /// A thumbnail, made now if it was not before.
    ///
    /// # Errors
    /// If there is no media, or none that thumbnails are made of.
    pub async fn thumbnail(
        &self,
        server: &ServerName,
        media_id: &str,
        size: ThumbnailSize,
    ) -> Result<Stored, MediaError> {
        let variant = size.variant();
        if let Some(meta) = self.meta(server, media_id, &variant).await? {
            let stream = self.stream(server, media_id, &variant).await?;
            return Ok(Stored { meta, stream });
        }
        let mut original = self.get(server, media_id).await?;
        let mut image = Vec::with_capacity(usize::try_from(original.meta.bytes).unwrap_or(0));
        while let Some(piece) = original.stream.next().await {
            image.extend_from_slice(&piece?);
        }
        let png = self.decode(image.into(), size).await?;
        let path = object_path(server, media_id, &variant).ok_or(MediaError::NotFound)?;
        self.inner.objects.put(&path, png.clone().into()).await.map_err(|error| objects(&error))?;
        let meta = Meta {
            content_type: "image/png".to_owned(),
            file_name: None,
            bytes: png.len() as u64,
            at_ms: self.inner.clock.now_ms(),
            ..original.meta
        };
        self.put_meta(server, media_id, &variant, &meta).await?;
        Ok(Stored { meta, stream: futures::stream::iter([Ok(png)]).boxed() })
    }

    async fn decode(&self, image: Bytes, size: ThumbnailSize) -> Result<Bytes, MediaError> {
        let stopping = || Fault::unavailable("the server is stopping");
        let _permit = self.inner.decoders.acquire().await.map_err(|_| stopping())?;
        let pixels_max = self.inner.options.megapixels_max * 1_000_000;
        let made = tokio::task::spawn_blocking(move || thumbnail::make(&image, size, pixels_max)).await;
        made.map_err(|error| MediaError::NoThumbnail(error.to_string()))?
    }

    async fn stream(
        &self,
        server: &ServerName,
        media_id: &str,
        variant: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, MediaError>>, MediaError> {
        let path = object_path(server, media_id, variant).ok_or(MediaError::NotFound)?;
        let found = self.inner.objects.get(&path).await.map_err(|error| objects(&error))?;
        Ok(found.into_stream().map(|piece| piece.map_err(|error| objects(&error))).boxed())
    }

    async fn meta(&self, server: &ServerName, media_id: &str, variant: &str) -> Result<Option<Meta>, MediaError> {
        let partition = key![server.as_str(), media_id];
        let found = self.inner.store.get(&tables::MEDIA, &partition, &key![variant]).await.map_err(Fault::from)?;
        Ok(found.map(|value| record::decode(&value)).transpose().map_err(Fault::from)?)
    }

    async fn put_meta(
        &self,
        server: &ServerName,
        media_id: &str,
        variant: &str,
        meta: &Meta,
    ) -> Result<(), MediaError> {
        let row = Mutation {
            table: &tables::MEDIA,
            partition: key![server.as_str(), media_id],
            clustering: key![variant],
            value: Some(record::encode(meta).map_err(Fault::from)?),
        };
        Ok(self.inner.store.write(vec![row], Durability::Synced).await.map_err(Fault::from)?)
    }
}

/// The path of an object; `None` for an id that is not of the alphabet of media ids, which is no path then.
fn object_path(server: &ServerName, media_id: &str, variant: &str) -> Option<ObjectPath> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if media_id.len() < 4 || media_id.len() > NAME_BYTES_MAX || !media_id.bytes().all(plain) {
        return None;
    }
    let name = if variant.is_empty() { media_id.to_owned() } else { format!("{media_id}.{variant}") };
    // Folders of bounded size: by server, then by the first letters of the id.
    Some(ObjectPath::from_iter([server.as_str(), &media_id[..2], &media_id[2..4], &name]))
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn objects(error: &dyn std::fmt::Display) -> MediaError {
    MediaError::Objects(error.to_string())
}

#[cfg(test)]
mod tests {
    use cofactor_store::model::ModelStore;
    use cofactor_types::{SystemClock, SystemEntropy};
    use ruma::{server_name, user_id};

    use super::*;

    #[test]
    fn what_is_known_of_media_is_read_for_ever() {
        let meta = Meta {
            user_id: user_id!("@alice:example.org").to_owned(),
            content_type: "image/png".to_owned(),
            file_name: Some("picture.png".to_owned()),
            bytes: 70_000,
            at_ms: 1_780_000_000_000,
            reserved: true,
        };
        cofactor_golden::Golden::new("store/media").optional(&["file_name", "reserved"]).record(&[meta]);
    }

    fn media(path: &Path) -> Media {
        let store = Arc::new(ModelStore::new(1, true));
        let options = Options { upload_mib_max: 1, ..Options::default() };
        Media::open(path, options, store, Arc::new(SystemClock), Arc::new(SystemEntropy)).unwrap()
    }

    fn body(pieces: Vec<Result<Bytes, String>>) -> impl Stream<Item = Result<Bytes, String>> + Unpin {
        futures::stream::iter(pieces)
    }

    async fn read(mut stored: Stored) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = stored.stream.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn an_upload_comes_back_and_one_that_breaks_off_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let media = media(dir.path());
        let (server, alice) = (server_name!("example.org"), user_id!("@alice:example.org"));
        let pieces = vec![Ok(Bytes::from_static(b"one ")), Ok(Bytes::from_static(b"two"))];
        media.upload(server, "abcdef", alice, "text/plain", None, body(pieces)).await.unwrap();
        let stored = media.get(server, "abcdef").await.unwrap();
        assert_eq!(stored.meta.bytes, 7);
        assert_eq!(read(stored).await, b"one two");

        let broken = vec![Ok(Bytes::from_static(b"one ")), Err("gone".to_owned())];
        let outcome = media.upload(server, "broken", alice, "text/plain", None, body(broken)).await;
        assert!(matches!(outcome, Err(MediaError::Broken(_))));
        assert_eq!(media.get(server, "broken").await.unwrap_err(), MediaError::NotFound);

        let large = vec![Ok(Bytes::from(vec![0; 1 << 20])), Ok(Bytes::from_static(b"!"))];
        let outcome = media.upload(server, "large0", alice, "text/plain", None, body(large)).await;
        assert_eq!(outcome, Err(MediaError::TooLarge(1 << 20)));
    }

    #[tokio::test]
    async fn ids_that_are_no_ids_are_no_paths() {
        let dir = tempfile::tempdir().unwrap();
        let media = media(dir.path());
        let server = server_name!("example.org");
        for id in ["../../../etc/passwd", "..", "a/b/c/d", "abc\0def", "äöüäöü", "", "%2e%2e%2f"] {
            assert!(object_path(server, id, "").is_none(), "{id}");
            assert_eq!(media.get(server, id).await.unwrap_err(), MediaError::NotFound);
        }
    }

    #[tokio::test]
    async fn a_reservation_is_used_once_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let media = media(dir.path());
        let (server, alice) = (server_name!("example.org"), user_id!("@alice:example.org"));
        let (id, _) = media.reserve(server, alice).await.unwrap();
        assert_eq!(media.get(server, &id).await.unwrap_err(), MediaError::NotYet);
        let mallory = user_id!("@mallory:example.org");
        assert_eq!(media.check_reservation(server, &id, mallory).await, Err(MediaError::NotYours));
        media.check_reservation(server, &id, alice).await.unwrap();
        let pieces = vec![Ok(Bytes::from_static(b"x"))];
        media.upload(server, &id, alice, "text/plain", None, body(pieces)).await.unwrap();
        assert_eq!(media.check_reservation(server, &id, alice).await, Err(MediaError::Taken));
    }
}
