//! A proxy between the store and its server that loses what a test wants lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};

#[derive(Default)]
struct Faults {
    swallow: AtomicBool,
    refuse: AtomicBool,
    broken: Notify,
}

pub(crate) struct Proxy {
    pub(crate) address: String,
    faults: Arc<Faults>,
}

impl Proxy {
    /// Listens, and passes everything on to `server`.
    pub(crate) async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let faults = Arc::new(Faults::default());
        let (server, shared) = (server.to_owned(), Arc::clone(&faults));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !shared.refuse.load(Ordering::SeqCst) {
                    tokio::spawn(pass(client, server.clone(), Arc::clone(&shared)));
                }
            }
        });
        Self { address, faults }
    }

    /// From now on nothing that the server says arrives.
    pub(crate) fn swallow_answers(&self) {
        self.faults.swallow.store(true, Ordering::SeqCst);
    }

    /// From now on every new connection is closed at once.
    pub(crate) fn refuse_connections(&self) {
        self.faults.refuse.store(true, Ordering::SeqCst);
    }

    /// Closes the connections there are.
    pub(crate) fn break_connections(&self) {
        self.faults.broken.notify_waiters();
    }
}

async fn pass(client: TcpStream, server: String, faults: Arc<Faults>) {
    let broken = faults.broken.notified();
    let server = TcpStream::connect(server).await.expect("the server");
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let never = AtomicBool::new(false);
    tokio::select! {
        () = copy(client_read, server_write, &never) => {}
        () = copy(server_read, client_write, &faults.swallow) => {}
        () = broken => {}
    }
}

/// Passes on what arrives, until either side is closed.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallow: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if !swallow.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
