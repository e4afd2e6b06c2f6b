//! The server under the test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A CQL server, stopped when it is dropped if it was started here.
pub(crate) struct Server {
    pub(crate) address: String,
    folder: Option<TempDir>,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/services/cql")
}

impl Server {
    pub(crate) fn start() -> Self {
        if let Ok(address) = std::env::var("COFACTOR_TEST_CQL") {
            return Self { address, folder: None };
        }
        let folder = tempfile::tempdir().expect("a folder");
        let started = Command::new(script())
            .arg("start")
            .arg(folder.path())
            // A test that is killed drops nothing.
            .env("COFACTOR_STOP_WITH", std::process::id().to_string())
            .stderr(Stdio::inherit())
            .output();
        let started = started.expect("scripts/services/cql runs");
        let mut server = Self { address: String::new(), folder: Some(folder) };
        assert!(started.status.success(), "scripts/services/cql could not start a server; what it said is above");
        server.address = String::from_utf8(started.stdout).expect("an address").trim().to_owned();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // The script says what it could not do; a second panic would hide the first.
            let _ = Command::new(script()).arg("stop").arg(folder.path()).status();
        }
    }
}
