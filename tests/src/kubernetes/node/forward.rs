//! A service's data path: bytes from its address to a pod's.

use std::collections::HashMap;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};

use crate::reactor::on_harness;

/// The addresses that are served, and where each leads.
#[derive(Default)]
pub(super) struct Forwarder {
    routes: Mutex<HashMap<SocketAddr, watch::Sender<SocketAddr>>>,
}

impl Forwarder {
    /// New connections to `listen` go to `target` from now on. Whether it is a new address,
    /// which `prepare` is called for before it is bound.
    pub(super) async fn route(
        &self,
        listen: SocketAddr,
        target: SocketAddr,
        prepare: impl FnOnce(),
    ) {
        let mut routes = self.routes.lock().await;
        if let Some(route) = routes.get(&listen) {
            route.send_replace(target);
            return;
        }
        prepare();
        let (sender, target) = watch::channel(target);
        on_harness(async move {
            let listener = TcpListener::bind(listen)
                .await
                .unwrap_or_else(|e| panic!("{listen}: {e}"));
            tokio::spawn(serve(listener, target));
        })
        .await;
        routes.insert(listen, sender);
    }
}

/// For as long as the test program runs.
async fn serve(listener: TcpListener, target: watch::Receiver<SocketAddr>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            continue;
        };
        let target = *target.borrow();
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(target).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
