//! What can befall a store under a running CA, each once for real: nothing is released that
//! is not recorded, the answer is Unavailable, health says why, and it passes with its cause.

mod clock;
mod postgres;
mod sqlite;
mod standby;

use std::time::Duration;

use citadel_ledger::{Receipt, VerifierKey};
use citadel_proto::v1::X509Svid;
use citadel_tests::client::Client;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use tonic::Code;

use crate::support::{LogOf, Scene};

/// From a fault to its notice, and from its end to certificates.
const SOON: Duration = Duration::from_secs(30);

/// A CA with one client, and what that received.
struct Patient {
    scene: Scene<'static>,
    client: Client,
    received: Vec<X509Svid>,
}

impl Patient {
    /// Its pod has a namespace of this name.
    async fn of(scene: Scene<'static>, namespace: &str) -> Self {
        let workload = scene.workload(namespace).await;
        let client = scene.client_of(&workload);
        let mut this = Self {
            scene,
            client,
            received: Vec::new(),
        };
        this.recovers().await;
        this
    }

    /// Asks until that is refused, as Unavailable, and health says that the store is not
    /// ready, in words that hold this. What fits into room that is left may be issued.
    async fn fails(&mut self, words: &str) {
        wait::until(&format!("health says {words}"), SOON, async || {
            match self.client.issue(&csr::plain()).await {
                Ok(answer) => {
                    self.received.push(answer.svid.expect("an SVID"));
                    return None;
                }
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
            let answer = self.scene.ca.readyz().await?;
            (answer.status == 503 && answer.body.contains(words)).then_some(())
        })
        .await;
    }

    /// It stays so as long as its cause.
    async fn still_fails(&self) {
        for _ in 0..3 {
            let refused = self.client.issue(&csr::plain()).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        }
    }

    /// Waits until a certificate arrives and the CA is ready.
    async fn recovers(&mut self) {
        let answer = wait::until("a certificate arrives", SOON, async || {
            self.client.issue(&csr::plain()).await.ok()
        })
        .await;
        self.received.push(answer.svid.expect("an SVID"));
        wait::until("the CA is ready", SOON, async || {
            self.scene.ca.is_ready().await.then_some(())
        })
        .await;
    }

    /// All that the client received is in a log without a gap, and proven.
    async fn has_lost_nothing(&self) {
        let mut log = LogOf::default();
        log.read_on(&self.scene.admin).await;
        let newest = self.received.last().expect("some arrived");
        let key: VerifierKey = self.scene.admin.info().await.log_key.parse().unwrap();
        wait::until("a checkpoint covers all", SOON, async || {
            self.scene.admin.receipt(&newest.serial).await.ok()
        })
        .await;
        for svid in &self.received {
            assert!(
                log.serials.contains(&svid.serial),
                "{} is lost",
                svid.serial
            );
            let receipt = self.scene.admin.receipt(&svid.serial).await.unwrap();
            let receipt = Receipt::parse(receipt.as_bytes()).unwrap();
            receipt.verify(std::slice::from_ref(&key)).unwrap();
            assert_eq!(receipt.index, svid.log_index);
        }
    }
}
