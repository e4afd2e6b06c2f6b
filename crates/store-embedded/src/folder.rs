//! The data folder: whose it is, in which format, and that one process has it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// The number in the format file. A release that finds a higher one refuses the folder.
const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";

/// Why the data folder cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error("the data folder {} is in use by another process; stop that one, or give this one a folder of its own (option `data_dir`)", .0.display())]
    Locked(PathBuf),
    /// It holds something else.
    #[error("the folder {} is not empty and was not made by Cofactor; choose another one (option `data_dir`)", .0.display())]
    Foreign(PathBuf),
    /// It was written by a later release.
    #[error("the data folder {} has format {found}, and this release reads up to {FORMAT}; use the release that wrote it, or a later one", .path.display())]
    TooNew {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: String,
    },
    /// The file system refuses.
    #[error("the data folder {} cannot be used: {source}; check that it exists or can be made, and who owns it", .path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The database in it cannot be opened.
    #[error("the database in {} cannot be opened: {message}", .path.display())]
    Database {
        /// The folder.
        path: PathBuf,
        /// What the database says.
        message: String,
    },
}

/// A data folder that this process has. Dropping it lets it go.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder, making it if it is not there.
    pub(crate) fn take(path: &Path) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        if path.exists() {
            check_ours(path)?;
        } else {
            fs::create_dir_all(path).map_err(at(path))?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_dir(parent).map_err(at(parent))?;
            }
        }
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path: lock_path, source }),
        }
        let format_path = path.join(FORMAT_FILE);
        if !format_path.exists() {
            let mut file = File::create(&format_path).map_err(at(&format_path))?;
            file.write_all(format!("cofactor {FORMAT}\n").as_bytes()).map_err(at(&format_path))?;
            file.sync_all().map_err(at(&format_path))?;
            sync_dir(path).map_err(at(path))?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where the database lives.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("store")
    }
}

/// An empty folder becomes ours; any other must say that it is.
fn check_ours(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    match File::open(path.join(FORMAT_FILE)) {
        Ok(file) => {
            file.take(64).read_to_string(&mut text).map_err(io)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(path).map_err(io)?;
            // A process that died between taking the lock and writing the format leaves the lock file alone.
            let foreign = entries.any(|entry| entry.map_or(true, |entry| entry.file_name() != LOCK_FILE));
            return if foreign { Err(OpenError::Foreign(path.to_owned())) } else { Ok(()) };
        }
        Err(error) => return Err(io(error)),
    }
    match text.trim().strip_prefix("cofactor ").map(str::parse::<u32>) {
        Some(Ok(found)) if found <= FORMAT => Ok(()),
        Some(_) => Err(OpenError::TooNew { path: path.to_owned(), found: text.trim().to_owned() }),
        None => Err(OpenError::Foreign(path.to_owned())),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
