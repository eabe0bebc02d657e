//! A service's data path: bytes from its address to a pod's.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::reactor::on_harness;

/// Forwards for as long as the test program runs.
pub(super) async fn start(listen: SocketAddr, target: SocketAddr) {
    on_harness(async move {
        let listener = TcpListener::bind(listen)
            .await
            .unwrap_or_else(|e| panic!("{listen}: {e}"));
        tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else {
                    continue;
                };
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
    })
    .await;
}
