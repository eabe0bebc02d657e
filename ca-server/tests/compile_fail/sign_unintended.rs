//! What is prepared goes through `intend` before the signer.
use citadel_ca_server::issuance::{Issuer, Prepared};

async fn sign(prepared: Prepared, issuer: &Issuer) {
    let _ = prepared.sign(issuer).await;
}

fn main() {
    let _ = sign;
}
