//! A signed certificate is recorded once.
use citadel_ca_server::{
    issuance::{Issuer, Signed},
    store::Store,
};

async fn twice(signed: Signed, issuer: &Issuer, store: &dyn Store) {
    let _ = Signed::record(vec![signed], issuer, store).await;
    let _ = Signed::record(vec![signed], issuer, store).await;
}

fn main() {
    let _ = twice;
}
