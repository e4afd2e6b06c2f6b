//! A node in a thread of its own, and a client that says exactly what it is told.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use cofactor_node::{Config, Node};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// How long a test waits for what should come at once. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running node.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    admin: Option<SocketAddr>,
    pub(crate) data_dir: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The node of all tests that need no options of their own.
pub(crate) fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| start(|_| ()))
}

/// Starts a node with changed options on an empty folder.
pub(crate) fn start(change: impl FnOnce(&mut Config)) -> Server {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("edge-{}-{count}", std::process::id()));
    let _ = std::fs::remove_dir_all(&data_dir);
    drop(logs());
    let mut config = Config { server_name: "edge.example".into(), data_dir: data_dir.clone(), ..Config::default() };
    config.http.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.http.workers = 2;
    config.registration.open = true;
    config.rate_limits.enabled = false;
    change(&mut config);
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        actix_rt::System::new().block_on(async move {
            let node = Node::start(&config).await.unwrap();
            ready.send((node.addresses()[0], node.admin_addresses().first().copied())).unwrap();
            let _ = stopped.await;
            node.stop().await;
        });
    });
    let (address, admin) = is_ready.recv_timeout(PATIENCE).unwrap();
    Server { address, admin, data_dir, stop: Some(stop), thread: Some(thread) }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Server {
    /// Asks it to end, and does not wait.
    pub(crate) fn begin_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        Self::connect_to(self.address)
    }

    /// One request of an operator.
    pub(crate) fn ask_admin(&self, method: &str, path: &str) -> Reply {
        Self::connect_to(self.admin.unwrap()).ask(method, path, None, b"").unwrap()
    }

    fn connect_to(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { stream, buffer: Vec::new(), end: Instant::now() + PATIENCE }
    }

    /// One request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &[u8]) -> Reply {
        self.connect().ask(method, path, token, body).unwrap()
    }

    /// As [`Self::ask`], with JSON, for what must succeed.
    pub(crate) fn must(&self, method: &str, path: &str, token: Option<&str>, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = self.ask(method, path, token, body.as_bytes());
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.text());
        reply.json()
    }

    /// A new user.
    pub(crate) fn user(&self, name: &str) -> User {
        self.user_with(name, "correct horse battery")
    }

    /// A new user with a password.
    pub(crate) fn user_with(&self, name: &str, password: &str) -> User {
        let mut body = json!({ "username": name, "password": password, "refresh_token": true, "device_id": "PHONE" });
        let begun = self.ask("POST", "/_matrix/client/v3/register", None, body.to_string().as_bytes());
        assert_eq!(begun.status, 401, "{}", begun.text());
        body["auth"] = json!({ "type": "m.login.dummy", "session": begun.json()["session"] });
        let answer = self.must("POST", "/_matrix/client/v3/register", None, &body);
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        User { id: text("user_id"), token: text("access_token"), refresh: text("refresh_token") }
    }

    /// That the server still answers.
    pub(crate) fn assert_well(&self) {
        assert_eq!(self.ask("GET", "/_matrix/client/versions", None, b"").status, 200);
    }
}

/// A logged-in user.
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) refresh: String,
}

impl User {
    pub(crate) fn token(&self) -> Option<&str> {
        Some(&self.token)
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn errcode(&self) -> String {
        self.json()["errcode"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(400)]).into_owned()
    }

    /// No failure of the server, and a refusal says why in the form of the specification.
    pub(crate) fn assert_decent(&self, what: &str) {
        assert!(self.status < 500, "{what}: {} {}", self.status, self.text());
        if self.status >= 400 {
            let interactive = self.status == 401 && self.json()["flows"].is_array();
            assert!(interactive || self.errcode().starts_with("M_"), "{what}: {} {}", self.status, self.text());
        }
    }
}

/// A socket.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    end: Instant,
}

impl Connection {
    /// Writes; whether the other side still took it.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Says that nothing more comes.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, token: Option<&str>, body: &[u8]) -> Option<Reply> {
        let head = head(method, path, token, &format!("content-length: {}\r\n", body.len()));
        self.send([head.as_bytes(), body].concat());
        self.reply()
    }

    /// The next answer; `None` if the connection ends instead.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        let head = loop {
            let head = self.line_end(b"\r\n\r\n");
            if let Some(end) = head {
                break end;
            }
            if !self.fill() {
                return None;
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
        self.buffer.drain(..head + 4);
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(':').unwrap());
        let headers: Vec<_> =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let mut reply = Reply { status, headers, body: Vec::new() };
        let length = reply.header("content-length").map(|length| length.parse().unwrap());
        if reply.header("transfer-encoding").is_some() {
            reply.body = self.chunks()?;
        } else {
            reply.body = self.take(length.unwrap_or(0))?;
        }
        Some(reply)
    }

    /// Whether the connection ends without another answer.
    pub(crate) fn is_over(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill()
    }

    /// Writes a byte whenever nothing has come back for a while, until something does. Whether something came.
    pub(crate) fn drip(&mut self, byte: u8) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(25))).unwrap();
        let came = loop {
            self.assert_in_time();
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => break false,
                Ok(count) => {
                    self.buffer.extend_from_slice(&piece[..count]);
                    break true;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    // A server that has closed may have an answer on its way all the same.
                    self.send([byte]);
                }
                Err(_) => break false,
            }
        };
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        came
    }

    /// Waits without reading until the other side is gone, which only a write can tell.
    pub(crate) fn wait_for_the_end(&mut self) {
        while self.send([b' ']) {
            self.assert_in_time();
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// That the server has not put up with this for too long.
    pub(crate) fn assert_in_time(&self) {
        assert!(Instant::now() < self.end, "no deadline cut this off");
    }

    fn line_end(&self, end: &[u8]) -> Option<usize> {
        self.buffer.windows(end.len()).position(|window| window == end)
    }

    /// Reads what comes; false at the end.
    fn fill(&mut self) -> bool {
        let mut piece = [0; 65536];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&piece[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server neither answered nor closed")
            }
            Err(_) => false,
        }
    }

    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let end = loop {
                match self.line_end(b"\r\n") {
                    Some(end) => break end,
                    None if self.fill() => {}
                    None => return None,
                }
            };
            let size = usize::from_str_radix(std::str::from_utf8(&self.buffer[..end]).unwrap(), 16).unwrap();
            self.buffer.drain(..end + 2);
            all.extend(self.take(size)?);
            self.take(2)?;
            if size == 0 {
                return Some(all);
            }
        }
    }
}

/// The head of a request with further header lines.
pub(crate) fn head(method: &str, path: &str, token: Option<&str>, more: &str) -> String {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!("{method} {path} HTTP/1.1\r\nhost: edge.example\r\n{token}{more}\r\n")
}

/// Every route of the generated reference: method and path template.
pub(crate) fn served() -> Vec<(&'static str, &'static str)> {
    let list = include_str!("../../../../docs/reference/served.txt");
    list.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' ')).collect()
}

/// Fills every argument of a template.
pub(crate) fn fill(template: &str, value: &str) -> String {
    let mut path = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        path.push_str(before);
        path.push_str(value);
        rest = after.split_once('}').unwrap().1;
    }
    path + rest
}

/// All that this process logs, at the levels of somebody who looks for a fault.
pub(crate) fn logs() -> MutexGuard<'static, Vec<u8>> {
    static BEGUN: OnceLock<()> = OnceLock::new();
    BEGUN.get_or_init(|| {
        let filter = EnvFilter::new("info,cofactor=trace");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(Captured).with_ansi(false).init();
    });
    LOGS.lock().unwrap_or_else(PoisonError::into_inner)
}

static LOGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Captured;

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Captured;

    fn make_writer(&'a self) -> Captured {
        Captured
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGS.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
