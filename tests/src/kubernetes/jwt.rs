//! Tokens put together and taken apart by hand.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::Value;

use super::SigningKey;
use crate::secrets;

/// Who signs a made-up token.
#[derive(Clone, Copy)]
pub enum Signer<'a> {
    /// A private key.
    Key(&'a SigningKey),
    /// HMAC-SHA256 with these bytes as the secret.
    Hmac(&'a [u8]),
    /// Nobody: the signature is empty.
    Nobody,
}

/// A token of exactly this header and these claims.
pub fn assemble(header: &Value, claims: &Value, signer: Signer<'_>) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = match signer {
        Signer::Key(key) => key.sign(message.as_bytes()),
        Signer::Hmac(secret) => {
            let key = EncodingKey::from_secret(secret);
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("an HMAC")
        }
        Signer::Nobody => String::new(),
    };
    let token = format!("{message}.{signature}");
    secrets::register_token("made-up token", &token);
    token
}

/// The claims of a token, unverified.
pub fn claims_of(token: &str) -> Value {
    part_of(token, 1)
}

/// The header of a token, unverified.
pub fn header_of(token: &str) -> Value {
    part_of(token, 0)
}

fn part_of(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).expect("a JWT has three parts");
    let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}
