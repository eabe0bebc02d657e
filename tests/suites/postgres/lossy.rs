//! A way to a server on which an answer can get lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use citadel_tests::ports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes connections on; on demand it takes questions to the server, and drops the
/// connection in place of the answer.
pub(crate) struct Lossy {
    pub(crate) address: SocketAddr,
    loses: Arc<AtomicBool>,
}

impl Lossy {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let address = ports::address();
        let listener = TcpListener::bind(address).await.expect("a free port");
        let loses = Arc::new(AtomicBool::new(false));
        let of_all = Arc::clone(&loses);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, server, Arc::clone(&of_all)));
            }
        });
        Self { address, loses }
    }

    /// Whether answers get lost from now on.
    pub(crate) fn lose_answers(&self, loses: bool) {
        self.loses.store(loses, Ordering::SeqCst);
    }
}

async fn pass_on(client: TcpStream, server: SocketAddr, loses: Arc<AtomicBool>) {
    let server = TcpStream::connect(server).await.expect("the server");
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let questions = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut answer = vec![0; 16 * 1024];
    while let Ok(length) = from_server.read(&mut answer).await {
        // The server has done what it was asked: only the answer is gone.
        if length == 0 || loses.load(Ordering::SeqCst) {
            break;
        }
        if to_client.write_all(&answer[..length]).await.is_err() {
            break;
        }
    }
    questions.abort();
}
