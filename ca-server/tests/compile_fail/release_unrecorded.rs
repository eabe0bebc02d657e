//! What is signed but not recorded can't be released.
use citadel_ca_server::issuance::{Signed, Svid};

fn release(signed: Signed) -> Svid {
    signed.release()
}

fn main() {
    let _ = release;
}
