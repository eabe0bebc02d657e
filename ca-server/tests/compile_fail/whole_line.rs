//! The one order that compiles: it shows that the cases beside it fail for their own reason.
use std::time::Duration;

use citadel_ca_server::{
    issuance::{Issuer, Signed, Template},
    store::Store,
};

async fn issue(issuer: &Issuer, store: &dyn Store) {
    let _ = async |grant, proven_key, now| {
        let template = Template::new(grant, proven_key, issuer, Duration::from_secs(10), now)?;
        let signed = template.prepare(issuer)?.intend(issuer)?.sign(issuer).await?;
        let recorded = Signed::record(vec![signed], issuer, store).await?;
        let svids = recorded.into_iter().map(|one| one.release()).collect();
        Ok::<Vec<_>, citadel_ca_server::issuance::IssuanceError>(svids)
    };
}

fn main() {
    let _ = issue;
}
