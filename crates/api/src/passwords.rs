//! Password hashing, off the threads that serve requests and bounded.

use std::sync::Arc;

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use cofactor_http::ApiError;
use cofactor_types::Fault;
use tokio::sync::Semaphore;

/// The longest password, in bytes: longer ones cost memory for nothing.
const PASSWORD_BYTES_MAX: usize = 512;

/// Requests that may wait for hashing.
const WAITING_MAX: usize = 64;

/// Hashes and verifies passwords on a bounded number of threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Passwords {
    threads: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Verified against for users that do not exist, so that they take as long as those that do.
    decoy: Arc<str>,
}

/// The hash of a password in PHC form (argon2id, its recommended parameters).
///
/// # Errors
/// If the password is too long.
pub fn hash_password(password: &str) -> Result<String, Fault> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Fault::invalid(format!("a password has at most {PASSWORD_BYTES_MAX} bytes")));
    }
    let hash = Argon2::default().hash_password(password.as_bytes());
    hash.map(|hash| hash.to_string()).map_err(|error| Fault::internal(error.to_string()))
}

impl Passwords {
    /// Hashing on at most half of the cores.
    ///
    /// # Errors
    /// If hashing does not work at all.
    pub fn new() -> Result<Self, Fault> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            threads: Arc::new(Semaphore::new(cores.div_ceil(2))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            decoy: hash_password("")?.into(),
        })
    }

    /// Hashes a password.
    ///
    /// # Errors
    /// 429 if too many wait.
    pub async fn hash(&self, password: String) -> Result<String, ApiError> {
        self.run(move || hash_password(&password)).await?.map_err(Into::into)
    }

    /// Whether `password` is the one hashed in `hash`; without a hash it takes as long and is false.
    ///
    /// # Errors
    /// 429 if too many wait.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, ApiError> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.decoy.to_string());
        let verify = move || {
            let parsed = PasswordHash::new(&hash);
            let fits = |parsed| Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok();
            password.len() <= PASSWORD_BYTES_MAX && parsed.is_ok_and(fits)
        };
        Ok(self.run(verify).await? && known)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let _place = self.waiting.try_acquire().map_err(|_| ApiError::limit_exceeded(2_000))?;
        let _thread = self.threads.acquire().await.map_err(|_| Fault::unavailable("the server is stopping"))?;
        tokio::task::spawn_blocking(work).await.map_err(|error| Fault::internal(error.to_string()).into())
    }
}
