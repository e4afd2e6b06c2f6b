//! Thumbnails. <https://spec.matrix.org/v1.19/client-server-api/#thumbnails>

use std::io::Cursor;

use bytes::Bytes;
use image::{DynamicImage, ImageFormat, ImageReader, Limits, imageops::FilterType};

use crate::MediaError;

/// How an image is made to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Cut to exactly the size.
    Crop,
    /// Shrunk to be no larger than the size.
    Scale,
}

/// A size that thumbnails are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThumbnailSize {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// How images are made to fit.
    pub method: Method,
}

/// The sizes of the specification, smallest first.
const SIZES: [ThumbnailSize; 5] = [
    ThumbnailSize { width: 32, height: 32, method: Method::Crop },
    ThumbnailSize { width: 96, height: 96, method: Method::Crop },
    ThumbnailSize { width: 320, height: 240, method: Method::Scale },
    ThumbnailSize { width: 640, height: 480, method: Method::Scale },
    ThumbnailSize { width: 800, height: 600, method: Method::Scale },
];

impl ThumbnailSize {
    /// The size that serves a request: the smallest that is no smaller, or the largest.
    pub fn serving(width: u32, height: u32, method: Method) -> Self {
        let of_method = || SIZES.iter().filter(|size| size.method == method);
        let fits = of_method().find(|size| size.width >= width && size.height >= height);
        // A cut one that is large enough is not among the sizes; a scaled one then serves better than a small one.
        let fits = fits.or_else(|| SIZES.iter().find(|size| size.width >= width && size.height >= height));
        *fits.or_else(|| of_method().next_back()).unwrap_or(&SIZES[SIZES.len() - 1])
    }

    /// The name of the variant in the table and the object store.
    pub(crate) fn variant(self) -> String {
        let method = match self.method {
            Method::Crop => "crop",
            Method::Scale => "scale",
        };
        format!("{method}-{}x{}", self.width, self.height)
    }
}

/// Makes a PNG thumbnail. Blocks; call it where that is allowed.
pub(crate) fn make(image: &Bytes, size: ThumbnailSize, pixels_max: u64) -> Result<Bytes, MediaError> {
    let refused = |error: &dyn std::fmt::Display| MediaError::NoThumbnail(error.to_string());
    // What the bytes are is looked up in the bytes; what somebody says that they are opens no decoder.
    let format = image::guess_format(image).map_err(|error| refused(&error))?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::WebP) {
        return Err(MediaError::NoThumbnail("the format is none of PNG, JPEG, GIF and WebP".into()));
    }
    let reader = || ImageReader::with_format(Cursor::new(&image[..]), format);
    let (width, height) = reader().into_dimensions().map_err(|error| refused(&error))?;
    if u64::from(width) * u64::from(height) > pixels_max {
        return Err(MediaError::NoThumbnail(format!("the image has more than {pixels_max} pixels")));
    }
    let mut reader = reader();
    let mut limits = Limits::default();
    limits.max_alloc = Some(pixels_max.saturating_mul(8));
    reader.limits(limits);
    let decoded = reader.decode().map_err(|error| refused(&error))?;
    let mut out = Cursor::new(Vec::new());
    fit(&decoded, size).write_to(&mut out, ImageFormat::Png).map_err(|error| refused(&error))?;
    Ok(out.into_inner().into())
}

fn fit(image: &DynamicImage, size: ThumbnailSize) -> DynamicImage {
    let fits_already = image.width() <= size.width && image.height() <= size.height;
    match size.method {
        // Small images are not blown up.
        _ if fits_already => image.clone(),
        Method::Crop => image.resize_to_fill(size.width, size.height, FilterType::Triangle),
        Method::Scale => image.resize(size.width, size.height, FilterType::Triangle),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Bytes {
        let mut out = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(width, height).write_to(&mut out, ImageFormat::Png).unwrap();
        out.into_inner().into()
    }

    fn size_of(bytes: &Bytes) -> (u32, u32) {
        let image = image::load_from_memory(bytes).unwrap();
        (image.width(), image.height())
    }

    #[test]
    fn images_are_cut_or_shrunk_and_never_blown_up() {
        let crop = ThumbnailSize::serving(96, 96, Method::Crop);
        assert_eq!(size_of(&make(&png(400, 200), crop, 1_000_000).unwrap()), (96, 96));
        let scale = ThumbnailSize::serving(320, 240, Method::Scale);
        assert_eq!(size_of(&make(&png(640, 320), scale, 1_000_000).unwrap()), (320, 160));
        assert_eq!(size_of(&make(&png(10, 20), scale, 1_000_000).unwrap()), (10, 20));
    }

    #[test]
    fn the_size_that_serves_is_the_smallest_that_is_no_smaller() {
        assert_eq!(ThumbnailSize::serving(33, 20, Method::Crop).width, 96);
        assert_eq!(ThumbnailSize::serving(321, 20, Method::Scale).width, 640);
        assert_eq!(ThumbnailSize::serving(5_000, 5_000, Method::Scale).width, 800);
    }

    #[test]
    fn a_huge_image_in_few_bytes_is_refused_before_it_is_decoded() {
        let mut bomb = png(1, 1).to_vec();
        // Width and height stand at fixed places of a PNG's header.
        bomb[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let scale = ThumbnailSize::serving(320, 240, Method::Scale);
        assert!(make(&bomb.into(), scale, 35_000_000).is_err());
        let cut = png(300, 300).slice(..60);
        assert!(make(&cut, scale, 35_000_000).is_err());
        let svg = Bytes::from_static(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>");
        assert!(make(&svg, scale, 35_000_000).is_err());
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        DynamicImage::new_rgb8(20, 10).write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

        /// Bytes that strangers chose: refused or shrunk, never a panic and never more pixels than allowed.
        #[test]
        fn damaged_images_are_refused_or_shrunk(
            format in 0_usize..4,
            cut in 0.0_f64..1.2,
            changes in proptest::collection::vec((0.0_f64..1.0, proptest::num::u8::ANY), 0..6),
        ) {
            let format = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP][format];
            let mut bytes = encoded(format);
            for (place, byte) in changes {
                let place = (place * bytes.len() as f64) as usize;
                bytes[place] = byte;
            }
            bytes.truncate((cut * bytes.len() as f64) as usize);
            let size = ThumbnailSize::serving(32, 32, Method::Crop);
            if let Ok(made) = make(&bytes.into(), size, 100_000) {
                let (width, height) = size_of(&made);
                assert!(u64::from(width) * u64::from(height) <= 100_000);
            }
        }

        #[test]
        fn bytes_of_any_kind_are_refused_or_shrunk(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            for magic in [&b""[..], b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"BM", b"II*\0"] {
                let image = Bytes::from([magic, &bytes].concat());
                let _ = make(&image, ThumbnailSize::serving(32, 32, Method::Scale), 100_000);
            }
        }
    }
}
