//! The one order that compiles: it shows that the cases beside it fail for their own reason.
use std::time::Duration;

use citadel_ca_server::{
    authz::Grant,
    issuance::{IssuanceError, Issuer, Signed, Svid, Template},
    store::Store,
};
use citadel_identity::csr::ProvenKey;
use time::OffsetDateTime;

async fn issue(
    grant: Grant,
    key: ProvenKey,
    issuer: &Issuer,
    store: &dyn Store,
    now: OffsetDateTime,
) -> Result<Vec<Svid>, IssuanceError> {
    let template = Template::new(grant, key, issuer, Duration::from_secs(10), now)?;
    let signed = template.prepare(issuer)?.intend(issuer)?.sign(issuer).await?;
    let recorded = Signed::record(vec![signed], issuer, store).await?;
    Ok(recorded.into_iter().map(|one| one.release()).collect())
}

fn main() {
    let _ = issue;
}
