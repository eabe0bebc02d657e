//! Only the linter's stage makes what may be signed.
use citadel_ca_server::issuance::{Prepared, Template};

fn forge(template: Template, other: Prepared) -> Prepared {
    Prepared { template, ..other }
}

fn main() {
    let _ = forge;
}
