//! A template was not linted: it has no `intend` and no `sign`.
use citadel_ca_server::issuance::{Intended, Issuer, Template};

async fn sign(template: Template, issuer: &Issuer) {
    let _ = Intended::sign(template, issuer).await;
}

fn main() {
    let _ = sign;
}
