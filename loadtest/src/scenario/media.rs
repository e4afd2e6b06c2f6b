//! Uploads and downloads of growing size.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use hyper::Method;

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, add_open, asking, cost_of};
use crate::client::Ask;
use crate::world::World;

const UPLOAD: &str = "media upload";
const DOWNLOAD: &str = "media download";
/// Transfers at a time.
const IN_FLIGHT: usize = 4;
/// Bytes that the uploads of one phase may leave on the server.
const UPLOADED_BYTES_MAX: u64 = 200_000_000;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Media::default())
}

#[derive(Default)]
struct Media {
    /// The content to download, by size: its path.
    uploaded: BTreeMap<u64, String>,
}

#[async_trait(?Send)]
impl Scenario for Media {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |series: &str, size: u64| Case {
            series: series.to_owned(),
            variable: "bytes",
            size,
            in_flight: IN_FLIGHT,
            floor: FloorOf::Nothing,
        };
        let both = [UPLOAD, DOWNLOAD];
        both.iter().flat_map(|series| plan.media.iter().map(move |size| case(series, *size))).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let user = world.users(1, &context.progress).await?[0].clone();
        let answer = world.server.expect("upload", upload(&user.token, &content(case.size, 0)?)).await?;
        let uri = answer["content_uri"].as_str().context("an upload has no content_uri")?;
        let place = uri.strip_prefix("mxc://").context("a content_uri is no mxc://")?;
        // https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
        self.uploaded.insert(case.size, format!("/_matrix/client/v1/media/download/{place}"));
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let token = world.users(1, &context.progress).await?[0].token.clone();
        let allowed = (UPLOADED_BYTES_MAX / case.size.max(1)).max(4);
        let plan = Plan { requests_max: context.plan.requests_max.min(allowed), ..context.plan.clone() };
        let work = if case.series == UPLOAD {
            // Servers may store equal content once: each upload begins with other bytes.
            let content = content(case.size, u64::from(round) + 1)?.to_vec();
            asking(&world.server, move |number| {
                let mut content = content.clone();
                for (byte, other) in content.iter_mut().zip(number.to_le_bytes()) {
                    *byte ^= other;
                }
                upload(&token, &content.into())
            })
        } else {
            let path = self.uploaded.get(&case.size).context("the case was not prepared")?.clone();
            let ask = Ask::get(path.clone(), &token);
            let answer = world.server.client.send(ask).await?;
            let (status, length) = (answer.status, answer.body.len() as u64);
            ensure!(
                status == 200 && length == case.size,
                "a download is {status} with {length} of {} bytes",
                case.size
            );
            asking(&world.server, move |_| Ask::get(path.clone(), &token))
        };
        let mut sample = cost_of(&world.target, IN_FLIGHT, &plan, &work).await?;
        add_open(&mut sample, &plan, round, &work).await?;
        Ok(sample)
    }
}

fn content(size: u64, seed: u64) -> Result<Bytes> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bytes = (0..usize::try_from(size)?).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    Ok(bytes.collect::<Vec<u8>>().into())
}

fn upload(token: &str, content: &Bytes) -> Ask {
    Ask {
        method: Method::POST,
        path: "/_matrix/media/v3/upload?filename=load.bin".to_owned(),
        token: Some(token.to_owned()),
        body: Some((content.clone(), "application/octet-stream")),
    }
}
