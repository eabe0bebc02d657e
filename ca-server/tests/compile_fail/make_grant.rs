//! Only the policy makes a grant.
use citadel_ca_server::authz::Grant;

fn forge(grant: Grant) -> Grant {
    Grant { lifetime: std::time::Duration::from_secs(1), ..grant }
}

fn main() {
    let _ = forge;
}
