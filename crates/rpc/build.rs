//! Compiles `proto/cofactor.proto` with a compiler written in Rust: no `protoc` is needed.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let file = folder.join("cofactor.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [&folder])?;
    // The client is not generated: `client.rs` must know the moment in which a request leaves, and so sends it itself.
    tonic_prost_build::configure().build_client(false).bytes(".cofactor.v1").compile_fds(descriptors)?;
    Ok(())
}
