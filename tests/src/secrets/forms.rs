//! How a secret looks when a program writes it down.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Every way of writing `secret`, with the name of that way. None contains
/// white space, except by what the secret itself has.
pub(super) fn of(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms = vec![
        ("as it is", secret.to_vec()),
        ("hex", hex::encode(secret).into_bytes()),
        ("upper-case hex", hex::encode_upper(secret).into_bytes()),
        (
            "hex with colons",
            joined(secret, ":", |byte| format!("{byte:02x}")),
        ),
        (
            "upper-case hex with colons",
            joined(secret, ":", |byte| format!("{byte:02X}")),
        ),
        // What `{:?}` makes of a Vec<u8>, white space removed.
        (
            "list of numbers",
            joined(secret, ",", std::string::ToString::to_string),
        ),
        // What `{:?}` makes of a byte string.
        (
            "escaped bytes",
            secret.escape_ascii().to_string().into_bytes(),
        ),
    ];
    for skipped in 0..3 {
        forms.push(("base64", inner_base64(&STANDARD_NO_PAD, secret, skipped)));
        forms.push(("base64url", inner_base64(&URL_SAFE_NO_PAD, secret, skipped)));
    }
    forms
}

fn joined(bytes: &[u8], separator: &str, spell: impl Fn(&u8) -> String) -> Vec<u8> {
    bytes
        .iter()
        .map(spell)
        .collect::<Vec<_>>()
        .join(separator)
        .into_bytes()
}

/// Three bytes become four letters, so where the secret begins inside of a
/// larger text decides its spelling. Only whole groups are the secret's alone.
fn inner_base64(engine: &impl Engine, secret: &[u8], skipped: usize) -> Vec<u8> {
    let rest = &secret[skipped..];
    engine.encode(&rest[..rest.len() / 3 * 3]).into_bytes()
}
